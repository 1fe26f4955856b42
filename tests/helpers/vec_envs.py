"""A wrapper around Stable-Baselines3's environments that keeps what passes through it."""

from typing import NamedTuple

import numpy as np
from stable_baselines3.common.vec_env import VecEnvWrapper


class Masks(NamedTuple):
    """The masks of one step."""

    prompts: np.ndarray | None
    prefixes: np.ndarray
    allowed: np.ndarray  # [n, V], by the text environments themselves
    masks: np.ndarray  # [n, V], as the algorithm gets them


class Recorder(VecEnvWrapper):
    """Keeps the infos of every step, and the masks that the algorithm asked for."""

    def __init__(self, venv):
        super().__init__(venv)
        self.infos, self.masks = [], []

    def reset(self):
        self.observations = self.venv.reset()
        return self.observations

    def step_wait(self):
        result = self.venv.step_wait()
        self.observations = result[0]
        self.infos += result[3]
        return result

    def env_method(self, method_name, *arguments, **options):
        found = super().env_method(method_name, *arguments, **options)
        if method_name == "action_masks":
            here = self.observations if isinstance(self.observations, dict) else {"prefix": self.observations}
            allowed = self.unwrapped.env_method(method_name)
            self.masks.append(Masks(here.get("prompt"), here["prefix"], np.stack(allowed), np.stack(found)))
        return found


def recorded(agent):
    """A recorder around the environments of an agent, from now on."""
    recorder = Recorder(agent.model.get_env())
    agent.model.set_env(recorder)
    return recorder
