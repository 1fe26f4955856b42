"""Checks of arguments; errors name the argument, its value and the valid values."""

from __future__ import annotations

import difflib
import inspect
import operator
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from text_gym.errors import OptionError, UnknownNameError, UnknownOptionError

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlong = 40

LARGEST_SIZE = 10_000_000  # maximum size of a vocabulary, a split or a sequence; larger sizes are mistakes

# Names from other libraries, for suggestions in error messages. WORDS: abbreviations and synonyms of single words.
# FILLERS: words that are ignored. MEANINGS: options with a different name here (sorted words of the name, joined).
WORDS = {
    "lr": "learning_rate", "bs": "batch_size", "len": "length", "maxlen": "max_length", "emb": "embedding",
    "embed": "embedding", "temp": "temperature", "coeff": "coef", "entropy": "ent", "minibatch": "batch",
    "freq": "count", "frequency": "count", "validation": "valid",
}  # fmt: skip
FILLERS = {"n", "num", "number", "of", "size", "dim", "per", "device", "train", "name", "or", "path", "fn", "func",
           "function"}  # fmt: skip
MEANINGS = {
    "epoch": ("schedule", "steps", "updates", "rounds"), "learning rate": ("schedule",), "corpus": ("task",),
    "iteration": ("steps", "updates", "rounds"), "iter": ("steps", "updates", "rounds"), "data": ("task",),
    "timestep total": ("steps",), "dataset": ("task",), "random state": ("seed", "seeds"), "worker": ("jobs",),
    "output": ("out",), "dir output": ("out",), "dir log": ("out",), "dir save": ("out",), "gpu": ("device",),
    "cuda": ("device",), "beta": ("kl.weight",), "coef kl": ("kl.weight",),
}  # fmt: skip


def shown(value: object) -> str:
    """Return the repr of a value for an error message, shortened; its type if repr() fails.

    >>> shown("the"), shown(list(range(1000))), shown(10**9999)
    ("'the'", '[0, 1, 2, 3, 4, 5, ...]', '<int>')
    """
    try:
        return _SHORT.repr(value)
    except Exception:  # repr() of user code may raise anything
        return f"<{type(value).__name__}>"


def suggest(name: object, known: Iterable[str]) -> str:
    """Return the end of an error message about an unknown name: similar names, and all known names.

    >>> suggest("blue", ["bleu", "length"])
    " Did you mean 'bleu'? Known: bleu, length."
    """
    names = sorted(known)
    near = similar(name[:100], names) if isinstance(name, str) else []
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    return f"{hint} Known: {', '.join(names)}." if names else hint


def similar(name: str, known: Iterable[str]) -> list[str]:
    """Return up to three known names that are similar to a name, in their words or in their spelling.

    >>> names = ["learning_rate", "n_epochs", "batch_size", "max_length", "lora", "temperature"]
    >>> [similar(name, names) for name in ("lr", "num-epochs", "per_device_train_batch_size", "max_len", "temprature")]
    [['learning_rate'], ['n_epochs'], ['batch_size'], ['max_length'], ['temperature']]
    >>> similar("seqgan.lr", ["seqgan.learning_rate", "seqgan.lora"]), similar("epochs", ["schedule", "hidden"])
    (['seqgan.learning_rate'], ['schedule'])
    """
    names = sorted(known)
    prefix, dot, last = name.rpartition(".")
    meanings = [prefix + dot + other for other in MEANINGS.get(" ".join(sorted(_words(last))), ())]
    share = {other: _overlap(_words(name), _words(other)) for other in names}
    alike = sorted((other for other in names if share[other] >= 0.5), key=lambda other: -share[other])
    same = [other for other in alike if share[other] == 1]
    likely = same or [*(other for other in meanings if other in names), *(o for o in alike if share[o] > 0.6)]
    spelled = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return list(dict.fromkeys(likely or [*spelled, *alike]))[:3]


def _overlap(one: set[str], other: set[str]) -> float:
    """Compute the Jaccard similarity of two sets of words."""
    return len(one & other) / len(one | other) if one & other else 0.0


def _words(name: str) -> set[str]:
    """Split a name into words in the singular, with abbreviations expanded and FILLERS removed."""
    found = [part for word in re.split(r"[\W_]+", name.lower()) for part in WORDS.get(word, word).split("_")]
    return {word.removesuffix("s") for word in found if word} - FILLERS


def whole_number(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Convert an integer of any type to int; OptionError if it is not a whole number in least..most.

    >>> whole_number("n", 3, least=1)
    3
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least:
        raise OptionError(f"{name} must be a whole number of at least {least}, not {shown(value)}")
    if most is not None and number > most:
        raise OptionError(f"{name} must be a whole number of at most {most:,}, not {shown(value)}")
    return number


def finite_number(name: str, value: Any) -> float:
    """Convert a number of any type to float; OptionError if it is not a finite number."""
    try:
        number = float("nan") if isinstance(value, str | bytes | bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not abs(number) < float("inf"):
        raise OptionError(f"{name} must be a finite number, not {shown(value)}")
    return number


def check_switch(name: str, value: object) -> None:
    """Raise OptionError unless the value is True or False."""
    if not isinstance(value, bool):
        raise OptionError(f"{name}={shown(value)} must be True or False")


def check_whole(settings: object, least: int, *names: str, group: str = "") -> None:
    """Raise OptionError unless these settings are whole numbers >= least, or None if None is the default.

    Args:
        settings: A dataclass with these fields.
        least: Minimum value.
        *names: Names of the fields.
        group: Prefix of the names in error messages.
    """
    for name in names:
        value = getattr(settings, name)
        if value is not None or getattr(type(settings), name, 0) is not None:
            whole_number(group + name, value, least)


def check_positive(settings: object, *names: str, group: str = "") -> None:
    """Raise OptionError unless these settings are finite numbers > 0, or None if None is the default."""
    for name in names:
        value = getattr(settings, name)
        if value is None and getattr(type(settings), name, 0) is None:
            continue
        if finite_number(group + name, value) <= 0:
            raise OptionError(f"{group}{name}={value} must be above 0")


def check_not_negative(settings: object, *names: str, group: str = "") -> None:
    """Raise OptionError unless these settings are finite numbers >= 0."""
    for name in names:
        if finite_number(group + name, getattr(settings, name)) < 0:
            raise OptionError(f"{group}{name}={getattr(settings, name)} must not be negative")


def check_options(what: str, factory: Callable[..., object], options: Mapping[str, object]) -> None:
    """Raise an error if the factory does not accept these options, or if a required option is missing."""
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError) as problem:
        raise UnknownNameError(
            f"{what} is {factory!r}, which cannot be called; give a function or a class"
        ) from problem
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for option in options:
        if option not in signature.parameters and not takes_any:
            raise UnknownOptionError(f"{what} has no option {option!r}." + suggest(option, signature.parameters))
    try:
        signature.bind(**options)
    except TypeError as problem:
        raise OptionError(f"{what}: {problem}") from problem
