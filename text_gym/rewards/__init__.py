"""Rewards: functions and classes that score finished sequences."""

from text_gym.rewards.cached import CachedReward
from text_gym.rewards.functions import FunctionReward
from text_gym.rewards.reward import Reward
from text_gym.rewards.scorer import Score, Scorer, make_reward, register_reward, registered_rewards

__all__ = [
    "CachedReward",
    "FunctionReward",
    "Reward",
    "Score",
    "Scorer",
    "make_reward",
    "register_reward",
    "registered_rewards",
]
