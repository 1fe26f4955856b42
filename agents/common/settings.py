"""Hyperparameters: frozen dataclasses, in which a group of hyperparameters is a nested dataclass.

The docstrings of the fields are the text of --help.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import numpy as np

from text_gym.errors import OptionError
from text_gym.validation import suggest

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

S = TypeVar("S", bound="DataclassInstance")
Presets = Mapping[str, Mapping[str, object]]
"""Named sets of hyperparameters."""


@dataclass(frozen=True)
class NoSettings:
    """Settings of agents without hyperparameters."""


def changed(settings: S, changes: Mapping[str, object], owner: str, prefix: str = "") -> S:
    """Return the settings with some values replaced.

    Args:
        settings: A frozen dataclass.
        changes: New values by name. The value of a group is a dict of new values, or an instance of its dataclass. For
            a group with a field `kind`, a string is the new kind.
        owner: Name of the agent, for error messages.
        prefix: Name of the group and a dot, for error messages; "" outside of groups.
    """
    known = {field.name: getattr(settings, field.name) for field in fields(settings)}
    values: dict[str, object] = {}
    for name, value in changes.items():
        if name not in known:
            raise OptionError(f"{owner} has no hyperparameter {prefix + name!r}." + suggest(name, known))
        group = known[name]
        if _is_group(group) and isinstance(value, str) and hasattr(group, "kind"):
            value = {"kind": value}
        if _is_group(group) and isinstance(value, Mapping):
            value = changed(group, value, owner, f"{prefix}{name}.")
        elif _is_group(group) and not isinstance(value, type(group)):
            raise OptionError(
                f"{owner} has a group of hyperparameters {prefix}{name}, and {value!r} is not a dict; give for "
                f"example {name}={{{fields(group)[0].name!r}: {getattr(group, fields(group)[0].name)!r}}}"
            )
        values[name] = value.item() if isinstance(value, np.generic) else value
    return replace(settings, **values)


def merged(options: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Update options with changes. Options of the same group are merged.

    >>> merged({"kl": {"weight": 0.1}, "rounds": 3}, {"kl": {"target": 0.05}, "rounds": 4})
    {'kl': {'weight': 0.1, 'target': 0.05}, 'rounds': 4}
    >>> merged({"discriminator": "recurrent"}, {"discriminator": {"hidden": 8}})
    {'discriminator': {'kind': 'recurrent', 'hidden': 8}}
    """
    result = dict(options)
    for name, value in changes.items():
        old = result.get(name)
        if isinstance(old, str) and isinstance(value, Mapping):
            old = {"kind": old}
        elif isinstance(old, Mapping) and isinstance(value, str):
            value = {"kind": value}
        result[name] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def difference(settings: DataclassInstance, before: DataclassInstance) -> dict[str, object]:
    """Return the settings that differ from `before`, with a dict for each group that differs."""
    result: dict[str, object] = {}
    for field in fields(before):
        new, old = getattr(settings, field.name), getattr(before, field.name)
        if new != old:
            result[field.name] = difference(new, old) if _is_group(old) else new
    return result


def flattened(settings: DataclassInstance, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield the name and the value of every hyperparameter. In groups, the name is "group.name"."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        if _is_group(value):
            yield from flattened(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def as_json(settings: DataclassInstance) -> dict[str, object]:
    """Convert settings to types of JSON: tuples to lists, groups to dicts."""
    return {field.name: _plain(getattr(settings, field.name)) for field in fields(settings)}


def _is_group(value: object) -> TypeGuard[DataclassInstance]:
    return is_dataclass(value) and not isinstance(value, type)


def _plain(value: object) -> object:
    if _is_group(value):
        return as_json(value)
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def filled(saved: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in defaults for missing settings, also in groups."""
    values = {**defaults, **saved}
    for name, value in defaults.items():
        if isinstance(value, dict) and isinstance(values[name], dict):
            values[name] = filled(values[name], value)
    return values


def describe_difference(saved: object, ours: object, prefix: str = "") -> str:
    """Describe how saved values differ from current ones, for an error message.

    >>> describe_difference({"kl": {"weight": 0.1}, "rounds": 3}, {"kl": {"weight": 0.2}, "rounds": 3})
    'kl.weight was 0.1 and is 0.2'
    """
    if not (isinstance(saved, dict) and isinstance(ours, dict)):
        return f"{prefix} was {saved!r} and is {ours!r}" if prefix else f"{saved!r}, not {ours!r}"
    dot = f"{prefix}." if prefix else ""
    names = [name for name in {**saved, **ours} if saved.get(name) != ours.get(name)]
    return ", ".join(describe_difference(saved.get(name), ours.get(name), dot + str(name)) for name in names)
