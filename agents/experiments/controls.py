"""The models that must not do as well as the agents compared, if the agents are to have shown anything.

An agent that learns from a reward may gain by its update rule alone, whatever it is paid for: its controls
make as many updates of the same kind on a reward that is constant, and on one that is random.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from agents.experiments.recipes import Recipe, find_agent
from agents.experiments.settings import RunSpec
from text_gym.errors import OptionError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

UNINFORMATIVE = ("constant(value=0.5)", "random")
EARLY_PATIENCE = 5  # epochs


class PlannedModel(NamedTuple):
    """A model of a comparison, which is trained with every seed."""

    spec: RunSpec
    """The run; its seed does not count."""
    recipe: Recipe
    """The recipe of the agent."""

    @property
    def label(self) -> str:
        """Name in the comparison."""
        return self.spec.label

    @property
    def settings(self) -> DataclassInstance | None:
        """All hyper-parameters; None for an agent that does not list them."""
        return self.recipe.settings(self.spec.preset)

    @property
    def is_start(self) -> bool:
        """Whether other agents start from its policy."""
        return self.recipe.agent_class.is_warm_start

    def starting_from(self, start: str | None) -> PlannedModel:
        """Return the model with a warm start from the model of this label, if it can have one; and say so."""
        if start is None or start == self.label or not self.recipe.takes_start:
            return self._replace(spec=replace(self.spec, begins_with=self.recipe.begins_with(self.spec.preset)))
        return self._replace(spec=replace(self.spec, start=start, begins_with=start))


def controls(agents: Sequence[PlannedModel], start: str | None, template: RunSpec) -> list[PlannedModel]:
    """Plan all controls of a comparison, and real data beside them.

    Args:
        agents: What is compared.
        start: Label of the agent that others start from.
        template: What all runs of the comparison share.
    """
    tested = tuple(agent.label for agent in agents if agent.label != start)
    models = _uninformed(agents, template)
    models += [early for agent in agents if agent.label == start and (early := _stopped_early(agent, tested))]
    uniform = replace(
        template, label="uniform", agent="uniform", kind="control", words="uniform noise", controls_for=tested,
        trivial=True,
    )  # fmt: skip
    real = replace(template, label="real", agent="real", kind="reference", words="real data")
    models += [PlannedModel(spec, find_agent(spec.agent)) for spec in (uniform, real)]
    return [model.starting_from(start) for model in models if not _is_compared(model, agents)]


def _is_compared(control: PlannedModel, agents: Sequence[PlannedModel]) -> bool:
    """Whether a control is among the agents already; an agent of another kind must not have its name."""
    for agent in agents:
        if agent.label == control.label and agent.recipe.factory is not control.recipe.factory:
            raise OptionError(
                f"{agent.label!r} is what a control is called; call the agent otherwise, or say --no-controls"
            )
    return any(agent.label == control.label for agent in agents)


def _stopped_early(agent: PlannedModel, tested: tuple[str, ...]) -> PlannedModel | None:
    """Plan the start with the weights of its best epoch in validation; None if it has them already."""
    changes = agent.recipe.agent_class.stopped_early(agent.settings, EARLY_PATIENCE)
    if changes is None:
        return None
    spec = replace(
        agent.spec, label=f"{agent.label}-early", options={**agent.spec.options, **changes}, kind="control",
        words="likelihood stopped early", controls_for=tested,
    )  # fmt: skip
    return PlannedModel(spec, find_agent(spec.agent, spec.preset, **spec.options))


class UpdateRule(NamedTuple):
    """An agent's way of learning, on an uninformative reward."""

    recipe: Recipe
    preset: str | None
    reward: str

    @property
    def identity(self) -> tuple[object, ...]:
        """A key that equal rules share, and with it their controls."""
        settings = self.recipe.settings(self.preset)
        what = repr(sorted(self.recipe.options.items())) if settings is None else repr(settings)
        return self.recipe.factory, what, self.recipe.steps, self.reward


def _uninformed(agents: Sequence[PlannedModel], template: RunSpec) -> list[PlannedModel]:
    """Plan each agent's update rule on a reward that is constant, and on one that is random; equal ones once."""
    found: dict[tuple[object, ...], tuple[UpdateRule, list[str]]] = {}
    for agent in agents:
        for reward in UNINFORMATIVE:
            rule = _update_rule(agent, reward)
            if rule is not None:
                found.setdefault(rule.identity, (rule, []))[1].append(agent.label)
    alone = len({labels[0] for _, labels in found.values()}) == 1
    models = []
    for rule, labels in found.values():
        kind = rule.reward.partition("(")[0]
        spec = replace(
            template, label=kind if alone else f"{kind}-{labels[0]}", agent=rule.recipe.name, preset=rule.preset,
            options={**rule.recipe.options, "reward": rule.reward}, steps=rule.recipe.steps, kind="control",
            words=f"a {kind} reward", controls_for=tuple(labels),
        )  # fmt: skip
        recipe = replace(rule.recipe, reward=rule.reward)
        models.append(PlannedModel(spec, recipe))
    return models


def _update_rule(agent: PlannedModel, reward: str) -> UpdateRule | None:
    """Find how an agent learns, with another reward; None if it learns from none, or from none but its own."""
    recipe = agent.recipe
    updates = recipe.agent_class.same_updates(agent.settings, recipe.steps, reward)
    if updates is None:
        return None
    if updates.agent is None:
        return UpdateRule(recipe, agent.spec.preset, reward)
    return UpdateRule(find_agent(updates.agent, None, **updates.settings), None, reward)
