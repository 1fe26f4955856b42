"""Flags of `train` and `compare`: every hyperparameter of every agent is a flag.

The command line is parsed twice. The first pass finds the agents and the preset. The second pass adds the flags of
their hyperparameters, with the preset's values as defaults, so that --help shows both.
Without agents on the command line, no agent is imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import tyro

from agents.cli.config import Values, names_of, read_config, settings_of, split_config
from agents.experiments.settings import Comparison, MetricSettings, split_label
from text_gym.errors import OptionError
from text_gym.registry import parse_call
from text_gym.validation import similar, suggest, whole_number

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

S = TypeVar("S", bound="DataclassInstance")
Flat = tyro.conf.arg(name="")  # the fields of a settings class become flags without a prefix
HELP = ("-h", "--help")
TRAIN = """\
Train one agent, evaluate it, and save everything in a folder.

To list the hyperparameters of an agent, too:
  text-gym train seqgan --help"""
COMPARE = """\
Train agents and controls over several seeds, and write a report.

Every agent that supports it starts from the same trained policy (warm start).

To list the hyperparameters of the agents, too:
  text-gym compare mle seqgan --help

Example:
  text-gym compare mle seqgan --task grammar --preset demo --seqgan.rounds 5"""


@dataclass(frozen=True)
class Training:
    """Settings of `text-gym train`."""

    agent: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="AGENT")]
    """Agent: a name, name(option=value), or module:attribute."""
    task: str | None = None
    """Task: a name, name(option=value), or the path of a corpus; None for the task of --start, or grammar."""
    reward: str | None = None
    """Reward: a name, name(option=value), or module:attribute; None for the task's default reward."""
    preset: str | None = None
    """Preset of hyperparameters; text-gym agents AGENT lists the presets."""
    seed: int = 0
    """Random seed."""
    out: Path | None = None
    """Folder of the run; None for runs/AGENT. To resume a run that was stopped, run the same command again."""
    start: Path | None = None
    """Run folder of a warm start, whose policy is the initial policy; None for the agent's own initial policy."""
    steps: int | None = None
    """Training steps: epochs, updates or rounds; None for the agent's default."""
    device: str = "auto"
    """Device: cpu, cuda, or auto (cuda if available)."""
    threads: int = 1
    """Number of torch threads. The last digits of the results depend on it."""
    trust: bool = False
    """Allow the run of --start to load Python code that it names as module:attribute."""
    config: Path | None = None
    """TOML file with any of these settings and hyperparameters; flags override it."""
    metrics: Annotated[MetricSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=MetricSettings)
    """Settings of the evaluation."""

    def __post_init__(self) -> None:
        """Raise an OptionError if a number is out of range."""
        whole_number("seed", self.seed, least=0)
        whole_number("threads", self.threads, least=1)
        if self.steps is not None:
            whole_number("steps", self.steps, least=0)


@dataclass(frozen=True)
class Comparing(Comparison):
    """Settings of `text-gym compare`."""

    agents: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[AGENT ...]")] = Comparison.agents
    """Agents: names, name(option=value), or module:attribute; write label=agent to choose the label."""
    metrics: Annotated[MetricSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=MetricSettings)
    """Settings of the evaluation."""
    options: tyro.conf.Suppress[Mapping[str, Mapping[str, object]]] = field(default_factory=dict)
    watch: bool = False
    """Show the comparison in the browser while it runs, as `text-gym watch` does."""
    config: Path | None = None
    """TOML file with any of these settings, and a table of hyperparameters for each label; flags override it."""


def read_training(words: Sequence[str]) -> tuple[Training, Values]:
    """Parse the command line of `train`: its settings, and the hyperparameters that differ from the preset."""
    words = _joined(words)
    known, hyper = split_config(Training, read_config(words))
    first = _first_pass(Training, words, {"agent": "", **known})
    if not first.agent:
        return _parse(Training, words), {}  # shows the help, or that the agent is missing
    from agents.common.settings import difference, merged  # imports torch
    from agents.experiments.recipes import find_agent

    name, agent_options = parse_call(first.agent)
    preset = agent_options.pop("preset", first.preset)
    options = merged(agent_options, hyper)
    recipe = find_agent(name, preset, **options)
    recipe.check_preset(preset)
    defaults = replace(recipe, options={}).settings(preset)
    if defaults is not None:
        _check_config(name, defaults, hyper)
    settings = recipe.settings(preset)
    if settings is None or defaults is None:
        plain = _parse(Training, words, first)
        _check_agents([plain.agent], [first.agent])
        return replace(plain, agent=name, preset=preset), options
    taken = {field.name for field in fields(Training)} | {field.name for field in fields(MetricSettings)}
    prefix = "hyper" if taken & {field.name for field in fields(settings)} else ""
    run, given = _parse_parts(Training, words, first, {prefix: settings})
    _check_agents([run.agent], [first.agent])
    run = replace(run, agent=name, preset=preset, steps=recipe.steps if run.steps is None else run.steps)
    changes = difference(given[prefix], defaults)
    if "reward" in options:
        changes["reward"] = options["reward"]
    return run, changes


def read_comparison(words: Sequence[str]) -> Comparing:
    """Parse the command line of `compare`: its settings, with the hyperparameters of each agent."""
    words = _joined(words)
    if list(words) in (["--help"], ["-h"]):
        return _parse(Comparing, words)
    known, tables = split_config(Comparing, read_config(words))
    options = {}
    for label, table in tables.items():
        if not isinstance(table, dict):
            raise OptionError(
                f"unknown setting {label!r} in the configuration file." + suggest(label, names_of(Comparing))
            )
        options[label] = table
    first = replace(_first_pass(Comparing, words, known), options=options)
    from agents.common.settings import difference, merged  # imports torch
    from agents.experiments.comparison import recipe_of

    before = {}
    for named in first.agents:
        recipe, preset = recipe_of(first, named)
        settings = recipe.settings(preset)
        if settings is not None:
            before[split_label(named)[0]] = settings
    run, given = _parse_parts(Comparing, words, first, before)
    _check_agents(run.agents, first.agents)
    for label, settings in before.items():
        new = difference(given[label], settings)
        if new:
            options[label] = merged(options.get(label, {}), new)
    return replace(run, options=options)


def _joined(words: Sequence[str]) -> list[str]:
    """Join `--also a --also b` to `--also a b`: the parser would keep the last value only."""
    groups: list[list[str]] = [[]]
    for word in words:
        if word.startswith("--"):
            groups.append(["--also", word.removeprefix("--also=")] if word.startswith("--also=") else [word])
        else:
            groups[-1].append(word)
    also = [group for group in groups if group[0:1] == ["--also"]]
    if len(also) < 2:
        return list(words)
    also[0] += [word for group in also[1:] for word in group[1:]]
    return [word for group in groups if group not in also[1:] for word in group]


def _parse(kind: type[S], words: Sequence[str], default: S | None = None) -> S:
    """Parse the flags of a command without hyperparameters."""
    prog, description = _command(kind)
    if default is None:
        return tyro.cli(kind, args=_help_first(words), prog=prog, description=description)
    parsed, unknown = tyro.cli(
        kind, args=_help_first(words), default=default, prog=prog, description=description, return_unknown_args=True
    )
    _check_all_read(unknown, names_of(kind))
    return parsed


def _parse_parts(
    kind: type[S], words: Sequence[str], default: S, parts: Mapping[str, DataclassInstance]
) -> tuple[S, dict[str, DataclassInstance]]:
    """Parse the flags of a command and of hyperparameters, which have a prefix for each agent."""
    names = {prefix: f"part_{i}" for i, prefix in enumerate(parts)}  # prefixes need not be Python names
    hyper = [(names[prefix], Annotated[type(part), tyro.conf.arg(name=prefix)]) for prefix, part in parts.items()]
    whole = make_dataclass("Whole", [("run", Annotated[kind, Flat]), *hyper], frozen=True)
    from agents.common.settings import flattened  # imports torch

    prog, description = _command(kind)
    parsed, unknown = tyro.cli(
        whole, args=_help_first(words), default=whole(default, *parts.values()), prog=prog, description=description,
        return_unknown_args=True,
    )  # fmt: skip
    hyper_names = {f"{prefix}.{name}".lstrip(".") for prefix, part in parts.items() for name, _ in flattened(part)}
    _check_all_read(unknown, names_of(kind) | hyper_names)
    return parsed.run, {prefix: getattr(parsed, name) for prefix, name in names.items()}


def _help_first(words: Sequence[str]) -> list[str]:
    """Move --help to the front: the parser leaves positional arguments before it out of the help."""
    return sorted(words, key=lambda word: word not in HELP)


def _check_all_read(unknown: Sequence[str], names: Iterable[str]) -> None:
    """Raise an OptionError for unknown arguments; suggest flags, also for their names in other libraries."""
    if not unknown:
        return
    flag = next((word for word in unknown if word.startswith("--")), None)
    if flag is None:
        raise OptionError(f"unexpected argument {unknown[0]!r}; name agents first (train takes one), then the flags")
    flag, _, _ = flag.partition("=")
    near = similar(flag.removeprefix("--").replace("-", "_"), names)
    meant = " or ".join("--" + name.replace("_", "-") for name in near)
    raise OptionError(f"unknown flag {flag}.{f' Did you mean {meant}?' if meant else ''} --help lists all flags")


def _command(kind: type[DataclassInstance]) -> tuple[str, str]:
    """Return the name and the description of the command with these settings."""
    return ("text-gym train", TRAIN) if kind is Training else ("text-gym compare", COMPARE)


def _first_pass(kind: type[S], words: Sequence[str], known: Mapping[str, object]) -> S:
    """Parse the command line without hyperparameters: their flags, and all words up to the next flag, are skipped."""
    names = {*names_of(kind), "config"}
    kept: list[str] = []
    ours = True
    for word in words:
        if word.startswith("--"):
            name = word[2:].partition("=")[0].replace("-", "_")
            ours = name in names or name.removeprefix("no_") in names
        if ours and word not in HELP:
            kept.append(word)
    prog, _ = _command(kind)
    parsed, _ = tyro.cli(kind, args=kept, default=settings_of(kind, known), prog=prog, return_unknown_args=True)
    return parsed


def _check_config(agent: str, settings: DataclassInstance, hyper: Mapping[str, object]) -> None:
    """Raise an OptionError if a configuration file sets anything but settings of train and hyperparameters."""
    known = {"reward", *(field.name for field in fields(settings))}
    for name, value in hyper.items():
        if isinstance(value, dict) and not is_dataclass(getattr(settings, name, None)):
            raise OptionError(
                f"the configuration file has a table [{name}], but {agent} has no such group of hyperparameters"
            )
        if name not in known:
            raise OptionError(
                f"unknown setting {name!r} for {agent} in the configuration file."
                + suggest(name, known | names_of(Training))
            )


def _check_agents(parsed: Sequence[str], first: Sequence[str]) -> None:
    """Raise an OptionError if agents come after a hyperparameter, where the first pass cannot find them."""
    if [*parsed] != [*first]:
        named = ", ".join(map(repr, parsed))
        raise OptionError(f"{named} comes after the flag of a hyperparameter; name agents first, then the flags")
