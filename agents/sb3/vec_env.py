"""The vector environment of TextGen-v0 as a Stable-Baselines3 `VecEnv`: parallel environments in one process.

>>> import gymnasium as gym, text_gym
>>> from stable_baselines3 import PPO
>>> envs = gym.make_vec("TextGen-v0", num_envs=64, reward="validity", autoreset_mode="SameStep")
>>> model = PPO("MlpPolicy", TextGenVecEnv(envs), n_steps=21, batch_size=64 * 21, n_epochs=1)
>>> model = model.learn(64 * 21)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from text_gym.arrays import AnyArray, FloatArray, IntArray
from text_gym.errors import OptionError
from text_gym.observations import Observation
from text_gym.vector_env import TextGenVectorEnv

METHODS_OF_EACH = ("action_masks",)
"""Methods of the vector environment that return one row per environment."""


class TextGenVecEnv(VecEnv):
    """Stable-Baselines3 interface of a `TextGenVectorEnv` in autoreset mode "SameStep".

    Step by step, it equals a `DummyVecEnv` of scalar environments, each wrapped in a `Monitor`:

    - Each info is the info of the scalar environment. At the end of an episode, it also has `terminal_observation`, and
      `episode` with return, length and time.
    - `seed(s)` seeds environment i with s + i at the next reset.
    - `set_options()` takes the options of reset().
    - `env_method("action_masks")` returns the action masks for MaskablePPO.

    Args:
        envs: Vector environment from gym.make_vec("TextGen-v0", ..., autoreset_mode="SameStep").
    """

    def __init__(self, envs: gym.vector.VectorEnv[Any, Any, Any]) -> None:
        if not isinstance(envs, TextGenVectorEnv):
            raise OptionError(
                f"{envs!r} is not a vector environment of TextGen-v0; make one with "
                "gym.make_vec('TextGen-v0', num_envs=..., autoreset_mode='SameStep')"
            )
        if envs.autoreset_mode is not AutoresetMode.SAME_STEP:
            raise OptionError(
                "Stable-Baselines3 expects an environment to be reset in the step that ends its episode; make the "
                f"environments with autoreset_mode='SameStep', not {envs.autoreset_mode.value!r}"
            )
        self.envs = envs
        self._terms = tuple(envs.rules.scorer.rewards)
        self._actions: AnyArray = np.zeros(0, dtype=np.int64)  # actions of the last step_async()
        self._steps: IntArray = np.zeros(envs.num_envs, dtype=np.int64)  # steps of each episode since its reset
        self._start_time = time.time()
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.envs!r})"

    def reset(self) -> Observation:
        """Reset all environments with the seeds and options that were set."""
        seeds = self._seeds if any(seed is not None for seed in self._seeds) else None
        observations, infos = self.envs.reset(seed=seeds, options=self._merged_options())
        self.reset_infos = [self._info(mask) for mask in infos["action_mask"]]
        self._steps[:] = 0
        self._reset_seeds()
        self._reset_options()
        return observations

    def _merged_options(self) -> dict[str, list[object]]:
        """Merge the options of each environment into one dict of lists for the vector environment."""
        names = set(self._options[0])
        if any(set(options) != names for options in self._options):
            raise OptionError(
                "the environments have options with different names; give every environment the same names"
            )
        return {name: [options[name] for options in self._options] for name in names}

    def step_async(self, actions: AnyArray) -> None:
        """Store the actions for step_wait()."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Append one token to each sequence, and reset the environments whose episodes end."""
        observations, rewards, done, _, infos = self.envs.step(self._actions)
        infos_of_each = [self._info(mask) | {"TimeLimit.truncated": False} for mask in infos["action_mask"]]
        self._steps += 1
        if done.any():
            self._add_final(infos_of_each, infos, np.flatnonzero(done).tolist(), rewards)
        return observations, rewards.astype(np.float32), done, infos_of_each

    def _info(self, mask: AnyArray) -> dict[str, object]:
        """Return the info of an environment within an episode."""
        info: dict[str, object] = {"action_mask": mask, "text": "", "length": 0, "disallowed": 0}
        info["reward_terms"] = dict.fromkeys(self._terms, 0.0)
        return info | {"prompt": ""} if self.envs.task.conditional else info

    def _add_final(
        self, infos_of_each: list[dict[str, object]], infos: dict[str, Any], rows: list[int], rewards: FloatArray
    ) -> None:
        """Add the final info, the terminal observation and the episode statistics to the infos of ended episodes."""
        final = infos["final_info"]
        seconds = round(time.time() - self._start_time, 6)
        for row in rows:
            info = infos_of_each[row]
            self.reset_infos[row] = self._info(infos["action_mask"][row])  # info of the new episode
            info["action_mask"] = final["action_mask"][row]
            info["terminal_observation"] = infos["final_obs"][row]
            info["text"] = final["text"][row]
            info["length"] = int(final["length"][row])
            info["disallowed"] = int(final["disallowed"][row])
            info["reward_terms"] = {name: float(final["reward_terms"][name][row]) for name in self._terms}
            if "prompt" in final:
                info["prompt"] = final["prompt"][row]
            info["episode"] = {"r": float(rewards[row]), "l": int(self._steps[row]), "t": seconds}
            self._steps[row] = 0

    def close(self) -> None:
        """Close the environment."""
        self.envs.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[object]:
        """Return an attribute of the vector environment once per environment, because all environments share it."""
        value = getattr(self.envs, attr_name)
        return [value] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: object, indices: VecEnvIndices = None) -> None:
        """Set an attribute for all environments at once."""
        if indices is not None:
            raise OptionError(f"all environments share {attr_name!r}; set it without indices")
        setattr(self.envs, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: object, indices: VecEnvIndices = None, **method_kwargs: object
    ) -> list[Any]:
        """Call a method of the vector environment once, and return its result for each environment.

        For `action_masks`, the result of an environment is its own mask.
        """
        rows = list(self._get_indices(indices))
        result = getattr(self.envs, method_name)(*method_args, **method_kwargs)
        return [result[row] for row in rows] if method_name in METHODS_OF_EACH else [result] * len(rows)

    def env_is_wrapped(self, wrapper_class: type, indices: VecEnvIndices = None) -> list[bool]:
        """Return whether the environments are wrapped: True for Monitor, whose infos they provide, else False."""
        return [issubclass(wrapper_class, Monitor)] * len(list(self._get_indices(indices)))

    def get_images(self) -> Sequence[AnyArray | None]:
        """Return an image of each text if render_mode is "rgb_array"; None otherwise."""
        frames = self.envs.render() if self.envs.render_mode == "rgb_array" else None
        return [None] * self.num_envs if frames is None else [np.asarray(frame) for frame in frames]
