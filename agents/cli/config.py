"""Configuration files in TOML: settings of a command, and hyperparameters of agents."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, TypeVar, get_args, get_origin, get_type_hints

from agents.experiments.settings import MetricSettings
from text_gym.errors import DataError, OptionError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

S = TypeVar("S", bound="DataclassInstance")
Values = dict[str, object]
"""Values by name, with a dict for each table."""

TYPE_NAMES = {str: "string", Path: "string", int: "whole number", float: "number", bool: "boolean"}


def read_config(words: Sequence[str]) -> Values:
    """Read the TOML file that --config names; without --config, return an empty dict."""
    path = next((w.partition("=")[2] for w in words if w.startswith("--config=")), None)
    if path is None and "--config" in words[:-1]:
        path = words[list(words).index("--config") + 1]
    if path is None:
        return {}
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise DataError(f"cannot read the configuration file {path}: {problem}") from problem


def names_of(kind: type[DataclassInstance]) -> set[str]:
    """Return the names of the settings that a configuration file may contain, evaluation settings included."""
    return {field.name for part in (kind, MetricSettings) for field in fields(part)} - {"metrics", "options", "config"}


def split_config(kind: type[DataclassInstance], config: Mapping[str, object]) -> tuple[Values, Values]:
    """Split a configuration into the settings of a command, with lists as tuples, and hyperparameters of agents."""
    plain: Values = {}
    for key, value in config.items():
        if isinstance(value, dict):
            plain[key] = _underscored(value)  # the key may be the label of an agent
        else:
            plain[key.replace("-", "_")] = value
    names = names_of(kind) - {"trust"}  # only the command line can set it
    known = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items() if k in names}
    return known, {k: v for k, v in plain.items() if k not in names}


def _underscored(table: Mapping[str, object]) -> Values:
    """Replace dashes by underscores in the keys of a table and of the tables in it."""
    return {
        key.replace("-", "_"): _underscored(value) if isinstance(value, dict) else value for key, value in table.items()
    }


def settings_of(kind: type[S], known: Mapping[str, object]) -> S:
    """Create the settings of a command from the values of a configuration file, after checking their types."""
    metrics = {field.name: known[field.name] for field in fields(MetricSettings) if field.name in known}
    rest = {name: value for name, value in known.items() if name not in metrics}
    parts: list[tuple[type[DataclassInstance], Values]] = [(MetricSettings, metrics), (kind, rest)]
    for settings, values in parts:
        hints = get_type_hints(settings)
        for name, value in values.items():
            if not _fits(value, hints[name]):
                shown = list(value) if isinstance(value, tuple) else value
                raise OptionError(f"the configuration file sets {name} = {shown!r}; it must be {_type_of(hints[name])}")
    paths = {name: Path(value) for name, value in rest.items() if name in ("out", "start") and isinstance(value, str)}
    make_metrics: Callable[..., MetricSettings] = MetricSettings
    make: Callable[..., S] = kind
    return make(**{**rest, **paths, "metrics": make_metrics(**metrics)})


def _fits(value: object, hint: object) -> bool:
    """Whether a TOML value has the type of a setting."""
    if isinstance(value, tuple):
        return get_origin(hint) is tuple and all(_fits(part, get_args(hint)[0]) for part in value)
    kinds = {str if kind is Path else kind for kind in _alternatives(hint)}
    return type(value) in kinds or (float in kinds and type(value) is int)


def _type_of(hint: object) -> str:
    """Describe the type of a setting, for error messages."""
    if get_origin(hint) is tuple:
        return f"a list of {TYPE_NAMES[get_args(hint)[0]]}s"
    return " or ".join(f"a {name}" for kind, name in TYPE_NAMES.items() if kind in _alternatives(hint))


def _alternatives(hint: object) -> list[object]:
    return [kind for kind in (get_args(hint) if isinstance(hint, UnionType) else [hint]) if kind is not type(None)]
