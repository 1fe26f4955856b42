"""From what a user writes ("bleu", "bleu(n=2)", "my_file.py:score") to the object meant."""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import operator
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from text_gym.errors import OptionError, TextGymError, UnknownNameError


def suggest(name: str, known: Iterable[str]) -> str:
    """The tail of an error message: near names if there are any, and all of them if few.

    >>> suggest("blue", ["bleu", "length"])
    " Did you mean 'bleu'? Known: bleu, length."
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    return f"{hint} Known: {', '.join(names)}." if names else hint


def whole_number(name: str, value: Any, least: int) -> int:
    """`value` as an int, whatever kind of whole number it is; an error that names it if it is none.

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
    """`value` as a float; an error that names it if it is no finite number."""
    try:
        number = float("nan") if isinstance(value, str | bytes | bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not abs(number) < float("inf"):
        raise OptionError(f"{name} must be a finite number, not {value!r}")
    return number


def check_switch(name: str, value: Any) -> None:
    """Refuse what is neither True nor False."""
    if not isinstance(value, bool):
        raise OptionError(f"{name}={value!r} must be True or False")


def check_options(what: str, factory: Callable[..., Any], options: Mapping[str, Any]) -> None:
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


def parse_call(spec: str) -> tuple[str, dict[str, Any]]:
    """Split `"name(key=value, ...)"` into the name and its options, which must be literals.

    >>> parse_call("bleu(n=2, smoothing=None)")
    ('bleu', {'n': 2, 'smoothing': None})
    >>> parse_call("bleu")
    ('bleu', {})
    """
    name, bracket, rest = spec.partition("(")
    if not bracket:
        return spec.strip(), {}
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError("options are written key=value")
        options = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg}
        if len(options) != len(call.keywords):
            raise ValueError("options are written key=value")
    except (SyntaxError, ValueError, TypeError, RecursionError) as problem:
        raise OptionError(
            f"cannot read {spec!r}: {problem}. Write it as name or name(key=value, ...), "
            "with numbers, strings, lists or None as values."
        ) from problem
    return name.strip(), options


def model_source(name: str, option: str) -> str:
    """Where transformers finds a model: the folder of this name, or else the name, for its hub.

    A name on the hub has at most one slash, so that what has more, or looks like a path in another way, is a folder.

    Args:
        name: What the user wrote.
        option: How it was written, for the error where there is no such folder.

    >>> model_source("gpt2", "model='gpt2'"), model_source("google/flan-t5-small", "model='google/flan-t5-small'")
    ('gpt2', 'google/flan-t5-small')
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder)
    looks_local = (
        folder.is_absolute()
        or name.startswith((".", "~"))
        or len(folder.parts) > 2
        or "\\" in name
        or name.endswith("/")
        or (len(folder.parts) == 2 and Path(folder.parts[0]).is_dir())
    )
    if looks_local:
        raise OptionError(f"{option}: there is no such folder (seen from {Path.cwd()}); is the path right?")
    return name


def load_attribute(spec: str) -> Any:
    """Import what `"module:attribute"` or `"path/to/file.py:attribute"` names."""
    module_name, _, attribute = spec.rpartition(":")
    try:
        if module_name.endswith(".py"):
            module = _module_from_file(Path(module_name))
        else:
            module = importlib.import_module(module_name)
    except TextGymError:
        raise
    except Exception as problem:  # the module is the user's own, and may fail in any way
        raise UnknownNameError(
            f"cannot import {module_name!r} for {spec!r}: {type(problem).__name__}: {problem}. "
            "Write module:attribute for an importable module, or path/to/file.py:attribute for a file."
        ) from problem
    target = module
    for part in attribute.split("."):
        if not hasattr(target, part):
            raise UnknownNameError(
                f"{module_name!r} has no {part!r}." + suggest(part, [n for n in vars(module) if not n.startswith("_")])
            )
        target = getattr(target, part)
    return target


def _module_from_file(path: Path) -> Any:
    """A file as a module: loaded once, and again when it has changed."""
    if not path.is_file():
        raise UnknownNameError(f"no file {str(path)!r}; is the path right?")
    identity = f"{path.resolve()} {path.stat().st_mtime_ns}"
    digest = hashlib.blake2b(identity.encode(), digest_size=4).hexdigest()
    name = f"{path.stem}_{digest}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def lookup(kind: str, name: str, registry: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """What a name, or "module:attribute", stands for; `kind` is for the error message."""
    if ":" in name:
        return load_attribute(name)  # type: ignore[no-any-return]
    if name not in registry:
        raise UnknownNameError(f"unknown {kind} {name!r}." + suggest(name, registry))
    return registry[name]


def register(
    kind: str, name: str, factory: Callable[..., Any], registry: dict[str, Callable[..., Any]], replace: bool
) -> None:
    """Add a name to a registry, refusing one that is taken unless it is to be replaced."""
    if not callable(factory):
        raise OptionError(f"{factory!r} cannot be registered as a {kind}: it cannot be called")
    if not isinstance(name, str) or not name.isidentifier():
        raise OptionError(f"the name of a {kind} must be an identifier, not {name!r}")
    if name in registry and not replace:
        raise OptionError(f"there is a {kind} {name!r} already; choose another name, or pass replace=True")
    registry[name] = factory
