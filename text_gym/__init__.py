"""Text generation as a Gymnasium environment: the state is the prefix, the action is the next token.

>>> import gymnasium as gym, text_gym
>>> env = gym.make("TextGen-v0")
>>> observation, info = env.reset(seed=0)
>>> env.unwrapped.task
Task('grammar', 209 tokens, max_length=21)
"""

import os as _os
import sys as _sys

if _sys.argv[:1] == ["-m"] and _sys.orig_argv[-len(_sys.argv)].endswith("text_gym") and _sys.path[0] == _os.getcwd():
    _sys.path.append(_sys.path.pop(0))  # in `python -m text_gym`, local files must not shadow the imports below

import gymnasium as _gym

from text_gym.env import TextGenEnv
from text_gym.errors import TextGymError
from text_gym.rewards import Reward, make_reward, register_reward
from text_gym.sequences import Batch
from text_gym.tasks import Task, make_task, register_task
from text_gym.vector_env import TextGenVectorEnv

__version__ = "0.1.0"

_gym.register(
    id="TextGen-v0",
    entry_point="text_gym.env:TextGenEnv",
    vector_entry_point="text_gym.vector_env:TextGenVectorEnv",
)

__all__ = [
    "Batch",
    "Reward",
    "Task",
    "TextGenEnv",
    "TextGenVectorEnv",
    "TextGymError",
    "make_reward",
    "make_task",
    "register_reward",
    "register_task",
]
