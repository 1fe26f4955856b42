"""TextGen-v0's vector environment as Stable-Baselines3 wants it: many copies in one process.

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
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from text_gym.arrays import AnyArray, IntArray
from text_gym.errors import OptionError
from text_gym.rules import Observation
from text_gym.vector_env import TextGenVectorEnv

OF_EACH_COPY = ("action_masks",)


class TextGenVecEnv(VecEnv):
    """A `TextGenVectorEnv` in autoreset mode "SameStep", behind Stable-Baselines3's interface.

    Step for step it is `DummyVecEnv` with as many scalar environments in a `Monitor`. The info of a copy has
    `action_mask`; at the end of an episode also what the scalar environment says there, `terminal_observation`, and
    `episode` with return, length and time. `seed()` seeds copy i with seed + i at the next reset, `set_options()`
    takes the options of reset(), and `action_masks` is there for MaskablePPO.

    Args:
        envs: From gym.make_vec("TextGen-v0", ..., autoreset_mode="SameStep").
    """

    def __init__(self, envs: gym.vector.VectorEnv[Any, Any, Any]) -> None:
        """Refuse what is no such environment."""
        if not isinstance(envs, TextGenVectorEnv):
            raise OptionError(
                f"{envs!r} is no vector environment of TextGen-v0's own; make one with "
                "gym.make_vec('TextGen-v0', num_envs=..., autoreset_mode='SameStep')"
            )
        if envs.autoreset_mode is not AutoresetMode.SAME_STEP:
            raise OptionError(
                "Stable-Baselines3 resets a copy in the step it ends in: make the environments with "
                f"autoreset_mode='SameStep', not {envs.autoreset_mode.value!r}"
            )
        self.envs = envs
        self._actions: AnyArray = np.zeros(0, dtype=np.int64)  # of step_async()
        self._steps: IntArray = np.zeros(envs.num_envs, dtype=np.int64)  # of each episode, without a prefix given
        self._begun = time.time()
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

    def reset(self) -> Observation:
        """Begin all episodes, with the seeds and options that were set."""
        seeds = self._seeds if any(seed is not None for seed in self._seeds) else None
        observations, infos = self.envs.reset(seed=seeds, options=self._options_of_all())
        self.reset_infos = [{"action_mask": mask} for mask in infos["action_mask"]]
        self._steps[:] = 0
        self._reset_seeds()
        self._reset_options()
        return observations

    def _options_of_all(self) -> dict[str, Any]:
        """One dict of options for the vector environment, from one for each copy."""
        names = set(self._options[0])
        if any(set(options) != names for options in self._options):
            raise OptionError("the options of all copies must have the same names; give each copy each of them")
        return {name: [options[name] for options in self._options] for name in names}

    def step_async(self, actions: AnyArray) -> None:
        """Keep the actions."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Append a token to each sequence; copies that end begin anew."""
        observations, rewards, done, _, infos = self.envs.step(self._actions)
        listed: list[dict[str, Any]] = [
            {"action_mask": mask, "TimeLimit.truncated": False} for mask in infos["action_mask"]
        ]
        self._steps += 1
        if done.any():
            self._add_final(listed, infos, np.flatnonzero(done).tolist(), rewards)
        return observations, rewards.astype(np.float32), done, listed

    def _add_final(
        self, listed: list[dict[str, Any]], infos: dict[str, Any], rows: Sequence[int], rewards: AnyArray
    ) -> None:
        """Say of the episodes that ended what the scalar environment would say."""
        final, now = infos["final_info"], round(time.time() - self._begun, 6)
        terms = {name: scores for name, scores in final["reward_terms"].items() if not name.startswith("_")}
        for row in rows:
            info = listed[row]
            self.reset_infos[row] = {"action_mask": info["action_mask"]}  # of the episode that begins
            info["action_mask"] = final["action_mask"][row]
            info["terminal_observation"] = infos["final_obs"][row]
            info["text"], info["length"] = final["text"][row], int(final["length"][row])
            info["disallowed"] = int(final["disallowed"][row])
            info["reward_terms"] = {name: float(scores[row]) for name, scores in terms.items()}
            if "prompt" in final:
                info["prompt"] = final["prompt"][row]
            info["episode"] = {"r": float(rewards[row]), "l": int(self._steps[row]), "t": now}
            self._steps[row] = 0

    def close(self) -> None:
        """Close the environment."""
        self.envs.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute of the vector environment, which all copies share."""
        value = getattr(self.envs, attr_name)
        return [value] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute for all copies at once; single copies have none of their own."""
        if indices is not None:
            raise OptionError(f"the copies share {attr_name!r}; set it for all of them, without indices")
        setattr(self.envs, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """The masks of copies; any other method is called once, for all of them."""
        rows = list(self._get_indices(indices))
        result = getattr(self.envs, method_name)(*method_args, **method_kwargs)
        return [result[row] for row in rows] if method_name in OF_EACH_COPY else [result] * len(rows)

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: Any = None) -> list[bool]:
        """No wrappers, but infos have what a Monitor adds."""
        return [issubclass(wrapper_class, Monitor)] * len(list(self._get_indices(indices)))

    def get_images(self) -> Sequence[None]:
        """There are none: text is rendered as text."""
        return [None] * self.num_envs
