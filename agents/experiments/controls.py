"""Controls: models that an agent has to beat before its reward can be said to have taught it anything.

The update rule of an agent may change its metrics whatever the reward is. Its controls make the same number of the
same updates on a constant reward and on a random reward.
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
    """A model of a comparison, to be trained with every seed."""

    spec: RunSpec
    """Specification of its runs, in which the seed is a placeholder."""
    recipe: Recipe
    """Recipe of the agent."""

    @property
    def label(self) -> str:
        """Label of the model in the comparison."""
        return self.spec.label

    @property
    def settings(self) -> DataclassInstance | None:
        """All hyperparameters; None for an agent that does not list them."""
        return self.recipe.settings(self.spec.preset)

    @property
    def is_start(self) -> bool:
        """Whether the model is the warm start of other agents."""
        return self.recipe.agent_class.is_warm_start

    def starting_from(self, start: str | None) -> PlannedModel:
        """Return the model with the warm start of this label if it supports one, and its initial policy described."""
        if start is None or start == self.label or not self.recipe.takes_start:
            return self._replace(spec=replace(self.spec, begins_with=self.recipe.begins_with(self.spec.preset)))
        return self._replace(spec=replace(self.spec, start=start, begins_with=start))


def controls(agents: Sequence[PlannedModel], start: str | None, template: RunSpec) -> list[PlannedModel]:
    """Plan the controls of a comparison, and real data as a reference.

    Args:
        agents: Agents of the comparison.
        start: Label of the warm start; None if there is no warm start.
        template: Settings that all runs of the comparison share.
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
    """Whether a control is among the agents already; raise an OptionError if another agent has its label."""
    for agent in agents:
        if agent.label == control.label and agent.recipe.factory is not control.recipe.factory:
            raise OptionError(
                f"{agent.label!r} is the label of a control; rename the agent with label=agent, or use --no-controls"
            )
    return any(agent.label == control.label for agent in agents)


def _stopped_early(agent: PlannedModel, tested: tuple[str, ...]) -> PlannedModel | None:
    """Plan the warm start with early stopping; None if it stops early already."""
    changes = agent.recipe.agent_class.stopped_early(agent.settings, EARLY_PATIENCE)
    if changes is None:
        return None
    spec = replace(
        agent.spec, label=f"{agent.label}-early", options={**agent.spec.options, **changes}, kind="control",
        words="likelihood stopped early", controls_for=tested,
    )  # fmt: skip
    return PlannedModel(spec, find_agent(spec.agent, spec.preset, **spec.options))


class UpdateRule(NamedTuple):
    """The update rule of an agent, with an uninformative reward."""

    recipe: Recipe
    preset: str | None
    reward: str

    @property
    def identity(self) -> tuple[object, ...]:
        """Key that is equal for equal rules: agents with the same key share a control."""
        settings = self.recipe.settings(self.preset)
        values = repr(sorted(self.recipe.options.items())) if settings is None else repr(settings)
        return self.recipe.factory, values, self.recipe.steps, self.reward


def _uninformed(agents: Sequence[PlannedModel], template: RunSpec) -> list[PlannedModel]:
    """Plan each different update rule of the agents with a constant reward and with a random reward."""
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
    """Return the update rule of an agent with another reward; None if it learns from no reward that can be replaced."""
    recipe = agent.recipe
    updates = recipe.agent_class.same_updates(agent.settings, recipe.steps, reward)
    if updates is None:
        return None
    if updates.agent is None:
        return UpdateRule(recipe, agent.spec.preset, reward)
    return UpdateRule(find_agent(updates.agent, None, **updates.settings), None, reward)
