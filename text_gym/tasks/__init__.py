"""Tasks: what is to be generated."""

from text_gym.tasks.registry import find_task, make_task, register_task, registered_tasks
from text_gym.tasks.task import Source, Task

__all__ = ["Source", "Task", "find_task", "make_task", "register_task", "registered_tasks"]
