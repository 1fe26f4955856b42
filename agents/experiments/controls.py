"""The models that must not do as well as the agents compared, if the agents are to have shown anything.

An agent that learns from a reward may gain by its update rule alone, whatever it is paid for: its controls
make as many updates of the same kind on a reward that is constant, and on one that is random.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from agents.common.agent import Agent
from agents.experiments.registry import Recipe, find_agent
from agents.experiments.run import RunSpec
from text_gym.errors import OptionError

UNINFORMATIVE = ("constant(value=0.5)", "random")
EARLY_PATIENCE = 5  # epochs


class PlannedModel(NamedTuple):
    """What is to be trained in every seed, before it has a seed."""

    spec: RunSpec
    recipe: Recipe


Spec = Callable[..., RunSpec]
"""Makes a run of the comparison at hand from a label, an agent, and what else is said of it."""


def controls(agents: Sequence[PlannedModel], start: str | None, spec: Spec) -> list[PlannedModel]:
    """All controls of a comparison, and real data beside them.

    Args:
        agents: What is compared.
        start: The label of the agent that others begin with.
        spec: Makes their runs.
    """
    tested = tuple(entry.spec.label for entry in agents if entry.spec.label != start)
    models = _without_information(agents, start, spec)
    models += [_stopped_early(entry, tested, spec) for entry in agents if _goes_on(entry, start)]
    uniform = spec("uniform", "uniform", kind="control", words="uniform noise", controls_for=tested, trivial=True)
    real = spec("real", "real", kind="reference", words="real data")
    models += [PlannedModel(uniform, find_agent("uniform")), PlannedModel(real, find_agent("real"))]
    return [model for model in models if not _is_compared(model, agents)]


def begins_with(entry: PlannedModel, start: str | None) -> PlannedModel:
    """The model, beginning with the start's policy if it can."""
    if start is None or not entry.recipe.takes_start:
        return entry
    return entry._replace(spec=replace(entry.spec, start=start))


def _is_compared(control: PlannedModel, agents: Sequence[PlannedModel]) -> bool:
    """Whether a control is among the agents already; an agent of another kind must not have its name."""
    label = control.spec.label
    for entry in agents:
        if entry.spec.label == label and entry.recipe.factory is not control.recipe.factory:
            raise OptionError(f"{label!r} is what a control is called; call the agent otherwise, or say --no-controls")
    return any(entry.spec.label == label for entry in agents)


def _goes_on(entry: PlannedModel, start: str | None) -> bool:
    """Whether it is the start, and learns on when validation has stopped to improve."""
    return entry.spec.label == start and not entry.recipe.settings(entry.spec.preset).early_stopping


def _stopped_early(entry: PlannedModel, tested: tuple[str, ...], spec: Spec) -> PlannedModel:
    """The start with the weights of its best epoch in validation."""
    options = {**entry.spec.options, "early_stopping": True, "patience": EARLY_PATIENCE}
    its = spec(
        f"{entry.spec.label}-early", "mle", preset=entry.spec.preset, options=options, steps=entry.spec.steps,
        kind="control", words="likelihood stopped early", controls_for=tested,
    )  # fmt: skip
    return PlannedModel(its, find_agent("mle", entry.spec.preset, **options))


class UpdateRule(NamedTuple):
    """An update rule, on a reward that says nothing."""

    recipe: Recipe
    preset: str | None
    reward: str

    @property
    def identity(self) -> Any:
        """What tells it from another: agents with equal rules share their controls."""
        settings = self.recipe.settings(self.preset)
        what = repr(sorted(self.recipe.options.items())) if settings is None else repr(settings)
        return self.recipe.factory, what, self.recipe.steps, self.reward


def _without_information(agents: Sequence[PlannedModel], start: str | None, spec: Spec) -> list[PlannedModel]:
    """Each agent's update rule on a reward that is constant, and on one that is random; equal ones once."""
    found: dict[Any, tuple[UpdateRule, list[str]]] = {}
    for entry in agents:
        for reward in UNINFORMATIVE:
            rule = _rule(entry, reward)
            if rule is not None:
                found.setdefault(rule.identity, (rule, []))[1].append(entry.spec.label)
    alone = len({labels[0] for _, labels in found.values()}) == 1
    return [_control(rule, tuple(labels), alone, start, spec) for rule, labels in found.values()]


def _control(rule: UpdateRule, labels: tuple[str, ...], alone: bool, start: str | None, spec: Spec) -> PlannedModel:
    kind = rule.reward.partition("(")[0]
    its = spec(
        kind if alone else f"{kind}-{labels[0]}", rule.recipe.name, preset=rule.preset, steps=rule.recipe.steps,
        options={**rule.recipe.options, "reward": rule.reward}, kind="control", words=f"a {kind} reward",
        controls_for=labels,
    )  # fmt: skip
    return begins_with(PlannedModel(its, rule.recipe._replace(reward=rule.reward)), start)


def _rule(entry: PlannedModel, reward: str) -> UpdateRule | None:
    """How an agent learns, with another reward; None for one that learns from none, or none but its own."""
    recipe, preset = entry.recipe, entry.spec.preset
    if isinstance(recipe.factory, type) and issubclass(recipe.factory, Agent):
        updates = recipe.factory.same_updates(recipe.settings(preset), recipe.steps, reward)
        if updates is None or updates.agent is None:
            return None if updates is None else UpdateRule(recipe, preset, reward)
        return UpdateRule(find_agent(updates.agent, None, **updates.settings), None, reward)
    learns = not isinstance(recipe.factory, type) or callable(getattr(recipe.factory, "learn", None))
    own_reward = hasattr(recipe.factory, "rewards")
    return UpdateRule(recipe, preset, reward) if recipe.learns_from_reward and learns and not own_reward else None


def is_start(entry: PlannedModel) -> bool:
    """Whether it is what other agents begin with: maximum likelihood itself."""
    return bool(getattr(entry.recipe.factory, "is_warm_start", False))
