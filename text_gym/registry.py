"""From what a user writes ("bleu", "bleu(n=2)", "my_file.py:score") to the object meant."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from text_gym.errors import OptionError, TextGymError, UnknownNameError
from text_gym.validation import suggest


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
