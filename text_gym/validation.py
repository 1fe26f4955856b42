"""Checks of arguments, with errors that name the argument and what it should be."""

from __future__ import annotations

import difflib
import inspect
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from text_gym.errors import OptionError, UnknownNameError


def suggest(name: str, known: Iterable[str]) -> str:
    """Build the end of an error message: similar names, and all known names.

    >>> suggest("blue", ["bleu", "length"])
    " Did you mean 'bleu'? Known: bleu, length."
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    return f"{hint} Known: {', '.join(names)}." if names else hint


def whole_number(name: str, value: Any, least: int) -> int:
    """Convert any kind of whole number to an int; anything else is an error that names the argument.

    >>> whole_number("n", 3, least=1)
    3
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least:
        raise OptionError(f"{name} must be a whole number of at least {least}, not {value!r}")
    return number


def finite_number(name: str, value: Any) -> float:
    """Convert a finite number to a float; anything else is an error that names the argument."""
    try:
        number = float("nan") if isinstance(value, str | bytes | bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not abs(number) < float("inf"):
        raise OptionError(f"{name} must be a finite number, not {value!r}")
    return number


def check_switch(name: str, value: object) -> None:
    """Refuse a value that is neither True nor False."""
    if not isinstance(value, bool):
        raise OptionError(f"{name}={value!r} must be True or False")


def check_whole(settings: object, least: int, *names: str, group: str = "") -> None:
    """Refuse settings that are not whole numbers of at least so much; None is accepted where it is the default."""
    for name in names:
        value = getattr(settings, name)
        if value is not None or getattr(type(settings), name, 0) is not None:
            whole_number(group + name, value, least)


def check_positive(settings: object, *names: str, group: str = "") -> None:
    """Refuse settings that are not finite numbers above 0; None is accepted where it is the default."""
    for name in names:
        value = getattr(settings, name)
        if value is None and getattr(type(settings), name, 0) is None:
            continue
        if finite_number(group + name, value) <= 0:
            raise OptionError(f"{group}{name}={value} must be above 0")


def check_not_negative(settings: object, *names: str, group: str = "") -> None:
    """Refuse settings that are not finite numbers of at least 0."""
    for name in names:
        if finite_number(group + name, getattr(settings, name)) < 0:
            raise OptionError(f"{group}{name} must not be negative, and is {getattr(settings, name)}")


def check_options(what: str, factory: Callable[..., object], options: Mapping[str, object]) -> None:
    """Refuse options that the factory does not take, or lacks, before anything is built."""
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError) as problem:
        raise UnknownNameError(f"{what} is {factory!r}, which cannot be called to make one") from problem
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for option in options:
        if option not in signature.parameters and not takes_any:
            raise OptionError(f"{what} has no option {option!r}." + suggest(option, signature.parameters))
    try:
        signature.bind(**options)
    except TypeError as problem:
        raise OptionError(f"{what}: {problem}") from problem
