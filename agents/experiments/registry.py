"""Agents by name. Listing them imports none of them, and no torch."""

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
        "reinforce": "REINFORCE on the environment's reward. A step of learn() is one update of the policy.",
        "pg-bleu": "REINFORCE on BLEU, whatever the environment's reward is.",
        "seqgan": "SeqGAN. A step of learn() is a round; before the first one come both pretrainings.",
        "ppo": "Proximal policy optimisation, by Stable-Baselines3. A step of learn() is an iteration.",
        "a2c": "Advantage actor-critic, by Stable-Baselines3: one update for each rollout.",
        "maskable-ppo": "PPO within the environment's masks, by sb3-contrib (extra: contrib).",
        "nlpo": "Natural-language policy optimisation, on sb3-contrib's masked distributions (extra: contrib).",
        "uniform": "Writes tokens that are all as likely, the end among them.",
        "real": "Real sequences: newly drawn where the source is known, else the validation split.",
    },
)


def register_agent(name: str, factory: Callable[..., object], replace: bool = False) -> None:
    """Let `text-gym train` and `compare` call `factory(env, ...)` by this name."""
    AGENTS.register(name, factory, replace)


def registered_agents() -> dict[str, str]:
    """List the registered names, each with a line about it."""
    return AGENTS.describe()
