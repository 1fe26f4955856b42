"""Tasks: text-generation problems with a vocabulary, data and optionally prompts or a known source."""

from text_gym.tasks.registry import find_task, make_task, register_task, registered_tasks
from text_gym.tasks.task import Source, Task

__all__ = ["Source", "Task", "find_task", "make_task", "register_task", "registered_tasks"]
