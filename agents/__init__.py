"""Agents for TextGen-v0, comparisons of agents, and the `text-gym` command.

The package imports text_gym; text_gym never imports it.

>>> import gymnasium as gym, text_gym
>>> from agents import MLE
>>> agent = MLE(gym.make("TextGen-v0"), seed=0, preset="demo")
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agents.common.agent import Agent
    from agents.experiments.comparison import compare
    from agents.mle import MLE
    from agents.nlpo import NLPO
    from agents.ppo import A2C, PPO, MaskablePPO
    from agents.reinforce import Reinforce
    from agents.report.results import Results
    from agents.scheduled_sampling import ScheduledSampling
    from agents.seqgan import SeqGAN

_HOMES = {
    "A2C": "agents.ppo",
    "Agent": "agents.common.agent",
    "MLE": "agents.mle",
    "MaskablePPO": "agents.ppo",
    "NLPO": "agents.nlpo",
    "PPO": "agents.ppo",
    "Reinforce": "agents.reinforce",
    "Results": "agents.report.results",
    "ScheduledSampling": "agents.scheduled_sampling",
    "SeqGAN": "agents.seqgan",
    "compare": "agents.experiments.comparison",
}


def __getattr__(name: str) -> object:
    """Import a name, and with it torch, when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'agents' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


__all__ = [
    "A2C",
    "MLE",
    "NLPO",
    "PPO",
    "Agent",
    "MaskablePPO",
    "Reinforce",
    "Results",
    "ScheduledSampling",
    "SeqGAN",
    "compare",
]
