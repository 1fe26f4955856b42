"""A wrapper of Stable-Baselines3's vector environments that records infos and action masks."""

from typing import NamedTuple

import numpy as np
from stable_baselines3.common.vec_env import VecEnvWrapper


class Masks(NamedTuple):
    """Action masks of one step."""

    prompts: np.ndarray | None
    prefixes: np.ndarray
    allowed: np.ndarray  # [n, V], masks of the text environments
    masks: np.ndarray  # [n, V], masks that the algorithm gets


class Recorder(VecEnvWrapper):
    """Records the infos of every step, and the masks that the algorithm asked for."""

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
    """Wrap the environments of an agent in a recorder, and return it."""
    recorder = Recorder(agent.model.get_env())
    agent.model.set_env(recorder)
    return recorder
