"""Command lines to settings: every hyper-parameter of every agent is a flag.

The words are read twice. The first time tells which agents are meant, and which preset; the second time
knows their hyper-parameters, with the values of the preset as defaults, so that --help shows both.
Help without agents imports none of them.
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
Flat = tyro.conf.arg(name="")  # fields of a settings class, as flags without a prefix
HELP = ("-h", "--help")
TRAIN = "Train one agent, measure it, and keep everything in a folder. Name the agent first: its flags are listed too."
COMPARE = (
    "Train several agents from the same start with their controls, over several seeds, and write a report. "
    "Name the agents first: their hyper-parameters are listed too. Example: "
    "text-gym compare mle seqgan --task grammar --preset demo --seqgan.rounds 5"
)


@dataclass(frozen=True)
class Training:
    """What `text-gym train` is asked for."""

    agent: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="AGENT")]
    """A name, name(option=value), or module:attribute."""
    task: str | None = None
    """A name, name(option=value), or the path of a corpus; if not given, that of --start, or grammar."""
    reward: str | None = None
    """A name, name(option=value), or module:attribute; the task's own if not given."""
    preset: str | None = None
    """A set of hyper-parameters."""
    seed: int = 0
    """Decides everything random."""
    out: Path | None = None
    """The folder of the run; runs/<agent> if not given. The same command goes on where it stopped."""
    start: Path | None = None
    """The folder of a run whose policy this one begins with; random weights, or what the agent does, if not given."""
    steps: int | None = None
    """Epochs, updates or rounds; as many as the agent's settings say if not given."""
    device: str = "auto"
    """cpu, cuda, or auto for a GPU where there is one."""
    threads: int = 1
    """Of torch on a CPU."""
    trust: bool = False
    """Let the run to start from name modules and files of your own, which are then run."""
    config: Path | None = None
    """A TOML file with any of these settings and hyper-parameters; flags go before it."""
    metrics: Annotated[MetricSettings, Flat] = field(default_factory=MetricSettings)
    """What is measured when it has learned."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        whole_number("seed", self.seed, least=0)
        whole_number("threads", self.threads, least=1)
        if self.steps is not None:
            whole_number("steps", self.steps, least=0)


@dataclass(frozen=True)
class Comparing(Comparison):
    """What `text-gym compare` is asked for."""

    agents: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="AGENT ...")] = Comparison.agents
    """Names, name(option=value), or module:attribute; label=agent calls one otherwise."""
    metrics: Annotated[MetricSettings, Flat] = field(default_factory=MetricSettings)
    """What is measured of each model, and on how much."""
    options: tyro.conf.Suppress[Mapping[str, Mapping[str, object]]] = field(default_factory=dict)
    config: Path | None = None
    """A TOML file with any of these settings, and a table of hyper-parameters for each label; flags go before it."""


def read_training(words: Sequence[str]) -> tuple[Training, Values]:
    """Read what `train` is asked for, and the hyper-parameters that differ from the preset's."""
    words = _joined(words)
    known, hyper = split_config(Training, read_config(words))
    first = _first_reading(Training, words, {"agent": "", **known})
    if not first.agent:
        return _parse(Training, words), {}  # says what is missing, or helps
    from agents.common.settings import difference, merged  # with the agents comes torch
    from agents.experiments.recipes import find_agent

    name, written = parse_call(first.agent)
    preset = written.pop("preset", first.preset)
    options = merged(written, hyper)
    recipe = find_agent(name, preset, **options)
    recipe.check_preset(preset)
    defaults = replace(recipe, options={}).settings(preset)
    if defaults is not None:
        _check_file(name, defaults, hyper)
    settings = recipe.settings(preset)
    if settings is None or defaults is None:
        plain = _parse(Training, words, first)
        _check_place(plain.agent, first.agent)
        return replace(plain, agent=name, preset=preset), options
    taken = {field.name for field in fields(Training)} | {field.name for field in fields(MetricSettings)}
    prefix = "hyper" if taken & {field.name for field in fields(settings)} else ""
    run, given = _parse_parts(Training, words, first, {prefix: settings})
    _check_place(run.agent, first.agent)
    run = replace(run, agent=name, preset=preset, steps=recipe.steps if run.steps is None else run.steps)
    changes = difference(given[prefix], defaults)
    if "reward" in options:
        changes["reward"] = options["reward"]
    return run, changes


def read_comparison(words: Sequence[str]) -> Comparing:
    """Read what `compare` is asked for, with the hyper-parameters of each agent."""
    words = _joined(words)
    if list(words) in (["--help"], ["-h"]):
        return _parse(Comparing, words)
    known, tables = split_config(Comparing, read_config(words))
    options = {}
    for label, table in tables.items():
        if not isinstance(table, dict):
            raise OptionError(
                f"the file has a setting {label!r}, which compare does not." + suggest(label, names_of(Comparing))
            )
        options[label] = table
    first = replace(_first_reading(Comparing, words, known), options=options)
    from agents.common.settings import difference, merged  # with the agents comes torch
    from agents.experiments.comparison import recipe_of

    before = {}
    for named in first.agents:
        recipe, preset = recipe_of(first, named)
        settings = recipe.settings(preset)
        if settings is not None:
            before[split_label(named)[0]] = settings
    run, given = _parse_parts(Comparing, words, first, before)
    _check_place(run.agents, first.agents)
    for label, settings in before.items():
        new = difference(given[label], settings)
        if new:
            options[label] = merged(options.get(label, {}), new)
    return replace(run, options=options)


def _joined(words: Sequence[str]) -> list[str]:
    """Join the values of `--also a --also b`, of which the parser would keep the last alone, to `--also a b`."""
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
    """Parse the flags of a command alone."""
    prog, about = _command(kind)
    if default is None:
        return tyro.cli(kind, args=list(words), prog=prog, description=about)
    parsed, unknown = tyro.cli(
        kind, args=list(words), default=default, prog=prog, description=about, return_unknown_args=True
    )
    _check_all_read(unknown, names_of(kind))
    return parsed


def _parse_parts(
    kind: type[S], words: Sequence[str], default: S, parts: Mapping[str, DataclassInstance]
) -> tuple[S, dict[str, DataclassInstance]]:
    """Parse the flags of a command, and those of hyper-parameters behind a prefix for each agent."""
    names = {prefix: f"part_{i}" for i, prefix in enumerate(parts)}  # prefixes may be no names for Python
    hyper = [(names[prefix], Annotated[type(part), tyro.conf.arg(name=prefix)]) for prefix, part in parts.items()]
    whole = make_dataclass("Whole", [("run", Annotated[kind, Flat]), *hyper], frozen=True)
    from agents.common.settings import flattened  # with the agents comes torch

    prog, about = _command(kind)
    parsed, unknown = tyro.cli(
        whole, args=list(words), default=whole(default, *parts.values()), prog=prog, description=about,
        return_unknown_args=True,
    )  # fmt: skip
    hyper_names = {f"{prefix}.{name}".lstrip(".") for prefix, part in parts.items() for name, _ in flattened(part)}
    _check_all_read(unknown, names_of(kind) | hyper_names)
    return parsed.run, {prefix: getattr(parsed, name) for prefix, name in names.items()}


def _check_all_read(unknown: Sequence[str], names: Iterable[str]) -> None:
    """Refuse words that are no flag; the usual names of other libraries find the flag that is meant."""
    if not unknown:
        return
    flag = next((word for word in unknown if word.startswith("--")), None)
    if flag is None:
        raise OptionError(f"{unknown[0]!r} is one word too many; name agents first (train takes one), then --flags")
    flag, _, _ = flag.partition("=")
    near = similar(flag.removeprefix("--").replace("-", "_"), names)
    meant = " or ".join("--" + name.replace("_", "-") for name in near)
    raise OptionError(f"there is no flag {flag}.{f' Did you mean {meant}?' if meant else ''} --help lists all flags")


def _command(kind: type[DataclassInstance]) -> tuple[str, str]:
    """Name and describe the command that settings are of."""
    return ("text-gym train", TRAIN) if kind is Training else ("text-gym compare", COMPARE)


def _first_reading(kind: type[S], words: Sequence[str], known: Mapping[str, object]) -> S:
    """Read the words as far as they are not hyper-parameters, whose flags have all that follows up to the next."""
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


def _check_file(agent: str, settings: DataclassInstance, hyper: Mapping[str, object]) -> None:
    """Refuse what a file says that is neither a setting of the run nor a hyper-parameter of the agent."""
    known = {"reward", *(field.name for field in fields(settings))}
    for name, value in hyper.items():
        if isinstance(value, dict) and not is_dataclass(getattr(settings, name, None)):
            raise OptionError(f"the file has a table [{name}], and {agent} has no such group of hyper-parameters")
        if name not in known:
            raise OptionError(
                f"the file has a setting {name!r}, which neither train nor {agent} does."
                + suggest(name, known | names_of(Training))
            )


def _check_place(read: object, first: object) -> None:
    """Refuse an agent that stands behind a hyper-parameter, whose flags were not known before it was."""
    if read != first:
        raise OptionError(f"{read!r} is read as an agent behind hyper-parameters; name agents first, then --flags")
