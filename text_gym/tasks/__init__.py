"""The tasks: what is to be generated."""

from text_gym.tasks.task import Source, Task, make_task, register_task, registered_tasks

__all__ = ["Source", "Task", "make_task", "register_task", "registered_tasks"]
