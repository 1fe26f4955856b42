"""Registered agents. Listing them imports neither the agents nor torch."""

from __future__ import annotations

from collections.abc import Callable

from text_gym.registry import Registry

AGENTS: Registry[Callable[..., object]] = Registry(
    "agent",
    {
        "mle": "agents.mle:MLE",
        "ss": "agents.scheduled_sampling:ScheduledSampling",
        "reinforce": "agents.reinforce:Reinforce",
        "pg-bleu": "agents.reinforce:Reinforce",
        "seqgan": "agents.seqgan:SeqGAN",
        "ppo": "agents.ppo:PPO",
        "a2c": "agents.ppo:A2C",
        "maskable-ppo": "agents.ppo:MaskablePPO",
        "nlpo": "agents.nlpo:NLPO",
        "uniform": "agents.experiments.reference_models:Uniform",
        "real": "agents.experiments.reference_models:RealData",
    },
    about={
        "mle": "Maximum likelihood. A step of learn() is an epoch.",
        "ss": "Scheduled sampling. A step of learn() is an epoch.",
        "reinforce": "REINFORCE on the environment's reward. A step of learn() is a policy update.",
        "pg-bleu": "REINFORCE with BLEU in place of the environment's reward.",
        "seqgan": "SeqGAN. A step of learn() is a round; pretraining comes before the first round.",
        "ppo": "Proximal policy optimisation, from Stable-Baselines3. A step of learn() is an iteration.",
        "a2c": "Advantage actor-critic, from Stable-Baselines3. A step of learn() is a policy update.",
        "maskable-ppo": "PPO with the environment's action masks, from sb3-contrib (extra: contrib).",
        "nlpo": "Natural-language policy optimisation, based on sb3-contrib (extra: contrib).",
        "uniform": "Uniformly random tokens, EOS included.",
        "real": "Real sequences: new samples if the task has a source, else the validation split.",
    },
)


def register_agent(name: str, factory: Callable[..., object], replace: bool = False) -> None:
    """Register `factory(env, ...)` as an agent that `text-gym train` and `compare` find by name."""
    AGENTS.register(name, factory, replace)


def registered_agents() -> dict[str, str]:
    """Return the registered names, each with a description."""
    return AGENTS.describe()
