"""Command lines and TOML files to settings: every hyper-parameter of every agent is a flag.

The words are read twice. The first time tells which agents are meant, and which preset; the second time
knows their hyper-parameters, with the values of the preset as defaults, so that --help shows both.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import tyro

from agents.common.settings import difference, merged
from agents.experiments.comparison import Comparison, label_of, recipe_of
from agents.experiments.metrics import MetricSettings
from agents.experiments.registry import Recipe, find_agent
from text_gym.errors import DataError, OptionError
from text_gym.registry import parse_call
from text_gym.validation import suggest, whole_number

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Flat = tyro.conf.arg(name="")  # fields of a settings class, as flags without a prefix
HELP = ("-h", "--help")
WORDS = {str: "a text", Path: "a text", int: "a whole number", float: "a number", bool: "true or false"}
TRAIN = "Train one agent, measure it, and keep everything in a folder. Name the agent first: its flags are listed too."
COMPARE = (
    "Train several agents from the same start with their controls, over several seeds, and write a report. "
    "Name the agents first: their hyper-parameters are listed too. Example: "
    "text-gym compare mle seqgan --task grammar --preset demo --seqgan.rounds 5"
)
T = TypeVar("T")


@dataclass(frozen=True)
class Training:
    """What `text-gym train` is asked for."""

    agent: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="AGENT")]
    """A name, name(option=value), or module:attribute."""
    task: str = "grammar"
    """A name, name(option=value), or the path of a corpus."""
    reward: str | None = None
    """A name, name(option=value), or module:attribute; the task's own if not given."""
    preset: str | None = None
    """A set of hyper-parameters."""
    seed: int = 0
    """Decides everything random."""
    out: Path | None = None
    """The folder of the run; runs/<agent> if not given. The same command goes on where it stopped."""
    start: Path | None = None
    """The folder of a run whose policy this one begins with."""
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
    options: tyro.conf.Suppress[Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    config: Path | None = None
    """A TOML file with any of these settings, and a table of hyper-parameters for each label; flags go before it."""


def read_training(words: Sequence[str]) -> tuple[Training, dict[str, Any]]:
    """What `train` is asked for, and the hyper-parameters that differ from the preset's."""
    config = read_config(words)
    known, hyper = _split(Training, config)
    first: Training = _first_reading(Training, words, known)
    if not first.agent:
        return tyro.cli(
            Training, args=list(words), prog="text-gym train", description=TRAIN
        ), {}  # says what is missing, or helps
    name, written = parse_call(first.agent)
    preset = written.pop("preset", first.preset)
    options = merged(written, hyper)
    recipe = find_agent(name, preset, **options)
    recipe.check_preset(preset)
    _check_file(recipe, hyper)
    settings = recipe.settings(preset)
    if settings is None:
        plain: Training = tyro.cli(Training, args=list(words), default=first, prog="text-gym train", description=TRAIN)
        _check_place(plain.agent, first.agent)
        return replace(plain, agent=name, preset=preset), options
    whole = make_dataclass(
        "Whole",
        [("run", Annotated[Training, Flat]), ("hyper", Annotated[type(settings), _prefix(settings, "hyper")])],
        frozen=True,
    )
    parsed: Any = tyro.cli(
        whole, args=list(words), default=whole(first, settings), prog="text-gym train", description=TRAIN
    )
    _check_place(parsed.run.agent, first.agent)
    run = replace(parsed.run, agent=name, preset=preset)
    run = replace(run, steps=recipe.steps) if run.steps is None else run
    changes = difference(parsed.hyper, recipe._replace(options={}).settings(preset))
    if "reward" in options:
        changes["reward"] = options["reward"]
    return run, changes


def read_comparison(words: Sequence[str]) -> Comparing:
    """What `compare` is asked for, with the hyper-parameters of each agent."""
    known, tables = _split(Comparing, read_config(words))
    for label, table in tables.items():
        if not isinstance(table, dict):
            raise OptionError(
                f"the file has a setting {label!r}, which compare does not." + suggest(label, _names(Comparing))
            )
    first = replace(_first_reading(Comparing, words, known), options=tables)
    recipes = {label_of(named): recipe_of(first, named) for named in first.agents}
    found = {label: recipe.settings(preset) for label, (recipe, preset) in recipes.items()}
    before = {label: settings for label, settings in found.items() if settings is not None}
    names = {label: f"hyper_{i}" for i, label in enumerate(before)}  # labels may be no names for Python
    parts: list[Any] = [("run", Annotated[Comparing, Flat])]
    parts += [(names[k], Annotated[type(settings), tyro.conf.arg(name=k)]) for k, settings in before.items()]
    whole = make_dataclass("Whole", parts, frozen=True)
    parsed: Any = tyro.cli(
        whole, args=list(words), default=whole(first, *before.values()), prog="text-gym compare", description=COMPARE
    )
    _check_place(parsed.run.agents, first.agents)
    options = {label: dict(table) for label, table in tables.items()}
    for label, settings in before.items():
        new = difference(getattr(parsed, names[label]), settings)
        if new:
            options[label] = merged(options.get(label, {}), new)
    asked: Comparing = replace(parsed.run, options=options)
    return asked


def read_config(words: Sequence[str]) -> dict[str, Any]:
    """The TOML file that --config names among the words, if any."""
    path = next((w.partition("=")[2] for w in words if w.startswith("--config=")), None)
    if path is None and "--config" in words[:-1]:
        path = words[list(words).index("--config") + 1]
    if path is None:
        return {}
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise DataError(f"cannot read {path}: {problem}") from problem


def _first_reading(kind: type[T], words: Sequence[str], known: Mapping[str, Any]) -> T:
    """The words as far as they are not hyper-parameters, whose flags have all that follows them up to the next."""
    names = {*_names(kind), "config"}
    kept: list[str] = []
    ours = True
    for word in words:
        if word.startswith("--"):
            name = word[2:].partition("=")[0].replace("-", "_")
            ours = name in names or name.removeprefix("no_") in names
        if ours and word not in HELP:
            kept.append(word)
    prog = f"text-gym {'train' if kind is Training else 'compare'}"
    default: Any = _with_defaults(kind, known)
    parsed: tuple[T, list[str]] = tyro.cli(kind, args=kept, default=default, prog=prog, return_unknown_args=True)
    return parsed[0]


def _check_file(recipe: Recipe, hyper: Mapping[str, Any]) -> None:
    """Refuse what a file says that is neither a setting of the run nor a hyper-parameter of the agent."""
    if not hasattr(recipe.factory, "settings_type"):
        return
    defaults = recipe.factory.settings_type()
    known = {"reward", *(f.name for f in fields(defaults))}
    for name, value in hyper.items():
        if isinstance(value, dict) and not is_dataclass(getattr(defaults, name, None)):
            raise OptionError(f"the file has a table [{name}], and {recipe.name} has no such group of hyper-parameters")
        if name not in known:
            raise OptionError(
                f"the file has a setting {name!r}, which neither train nor {recipe.name} does."
                + suggest(name, known | _names(Training))
            )


def _check_place(read: Any, first: Any) -> None:
    """Refuse an agent that stands behind a hyper-parameter, whose flags were not known before it was."""
    if read != first:
        raise OptionError(f"{read!r} is read as an agent behind hyper-parameters; name agents first, then --flags")


def _with_defaults(kind: type[Any], known: Mapping[str, Any]) -> Any:
    """The settings with what a file says as defaults."""
    metrics = {f.name: known[f.name] for f in fields(MetricSettings) if f.name in known}
    rest = {name: value for name, value in known.items() if name not in metrics}
    for settings, values in ((MetricSettings, metrics), (kind, rest)):
        hints = get_type_hints(settings)
        for name, value in values.items():
            if not _fits(value, hints[name]):
                said = list(value) if isinstance(value, tuple) else value
                raise OptionError(f"the file says {name} = {said!r}, which must be {_described(hints[name])}")
    rest = {name: Path(value) if name in ("out", "start") else value for name, value in rest.items()}
    return kind(**{"agent": "", **rest} if kind is Training else rest, metrics=MetricSettings(**metrics))


def _alternatives(hint: Any) -> list[Any]:
    return [kind for kind in (get_args(hint) if isinstance(hint, UnionType) else [hint]) if kind is not type(None)]


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value that TOML has is one for a setting of this type."""
    if isinstance(value, tuple):
        return get_origin(hint) is tuple and all(_fits(part, get_args(hint)[0]) for part in value)
    kinds = {str if kind is Path else kind for kind in _alternatives(hint)}
    return type(value) in kinds or (float in kinds and type(value) is int)


def _described(hint: Any) -> str:
    if get_origin(hint) is tuple:
        return f"a list, of which each is {_described(get_args(hint)[0])}"
    return " or ".join(WORDS[kind] for kind in _alternatives(hint))


def _names(kind: type[Any]) -> set[str]:
    """The settings of a run."""
    return {f.name for of in (kind, MetricSettings) for f in fields(of)} - {"metrics", "options", "config"}


def _split(kind: type[Any], config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What of a file is about the run, lists as tuples, and what is about hyper-parameters."""
    names = _names(kind)
    plain: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            plain[key] = _underscored(value)  # the key may be the label of an agent
        else:
            plain[key.replace("-", "_")] = value
    known = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items() if k in names}
    return known, {k: v for k, v in plain.items() if k not in names}


def _underscored(table: Mapping[str, Any]) -> dict[str, Any]:
    """Replace dashes in the keys of a table and of the tables in it."""
    return {
        key.replace("-", "_"): _underscored(value) if isinstance(value, dict) else value for key, value in table.items()
    }


def _prefix(settings: Any, name: str) -> Any:
    """No prefix, unless a hyper-parameter is called as a setting of the run is."""
    taken = {f.name for kind in (Training, MetricSettings) for f in fields(kind)}
    return tyro.conf.arg(name=name if taken & {f.name for f in fields(settings)} else "")
