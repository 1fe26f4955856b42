"""Registries of tasks, rewards and agents, and specs such as "bleu", "bleu(n=2)" or "my_file.py:score"."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from text_gym.errors import OptionError, TextGymError, UnknownNameError
from text_gym.validation import suggest

Options = dict[str, Any]
"""Keyword arguments of a spec, which are Python literals."""
T = TypeVar("T", bound=Callable[..., object])


class Registry(Generic[T]):
    """Maps names to factories of one kind; an entry "package.module:attribute" is imported when it is looked up.

    >>> formats = Registry("format", {"json": "json:loads"})
    >>> formats.find("json")("[1]")
    [1]

    Args:
        kind: The kind in error messages, such as "task".
        entries: The factory of each name, or "package.module:attribute".
        about: Descriptions of entries whose import takes long; the others are described by the first line of their
            docstring.
    """

    def __init__(self, kind: str, entries: Mapping[str, str | T], about: Mapping[str, str] | None = None) -> None:
        """Store the entries without importing them."""
        self.kind = kind
        self.entries: dict[str, str | T] = dict(entries)
        self.about: dict[str, str] = dict(about or {})

    def register(self, name: str, thing: T, replace: bool = False) -> None:
        """Add a name; OptionError if it exists and `replace` is False."""
        if not callable(thing):
            raise OptionError(
                f"{thing!r} cannot be registered as a {self.kind}: it cannot be called; give a function or a class"
            )
        if not isinstance(name, str) or not name.isidentifier():
            raise OptionError(f"the name of a {self.kind} must be an identifier, not {name!r}")
        if name in self.entries and not replace:
            raise OptionError(f"{self.kind} {name!r} is already registered; choose another name, or pass replace=True")
        self.entries[name] = thing
        self.about.pop(name, None)

    def find(self, name: str, trust: bool = False) -> T:
        """Look up a name, or import "module:attribute" or "path/to/file.py:attribute".

        Args:
            name: A registered name, "module:attribute" or "path/to/file.py:attribute".
            trust: Whether to import code that is not registered; pass False for names that are read from a file.
        """
        if ":" not in name and name not in self.entries:
            raise UnknownNameError(f"unknown {self.kind} {name!r}." + suggest(name, self.entries))
        entry = self.entries.get(name, name)
        trust = trust or name in self.entries
        return load_attribute(entry, trust) if isinstance(entry, str) else entry

    def resolve(self, spec: str, trust: bool = False) -> tuple[str, T, Options]:
        """Parse "name(option=value)"; return the name, the factory that find() returns, and the options."""
        name, options = parse_call(spec)
        return name, self.find(name, trust), options

    def describe(self) -> dict[str, str]:
        """Return the names, each with a one-line description."""
        return {name: self.about.get(name) or _first_line(self.find(name)) for name in self.entries}


def _first_line(thing: object) -> str:
    """Return the first line of a docstring."""
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def parse_call(spec: str) -> tuple[str, Options]:
    """Parse `"name(key=value, ...)"`; return the name and the options, which must be Python literals.

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
            raise ValueError("options must be written as key=value")
        options = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg}
        if len(options) != len(call.keywords):
            raise ValueError("options must be written as key=value")
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as problem:
        raise OptionError(
            f"cannot read {spec!r}: {problem}; write name or name(key=value, ...), "
            "with numbers, strings, lists or None as values"
        ) from problem
    return name.strip(), options


def load_attribute(spec: str, trust: bool = False) -> Any:
    """Import `"module:attribute"` or `"path/to/file.py:attribute"`; OptionError without trust."""
    if not trust:
        raise OptionError(f"{spec!r} names code, which is only run with trust; give a registered name instead")
    module_name, _, attribute = spec.rpartition(":")
    try:
        if module_name.endswith(".py"):
            module = _module_from_file(Path(module_name))
        else:
            module = importlib.import_module(module_name)
    except TextGymError:
        raise
    except Exception as problem:  # user code may raise anything
        raise UnknownNameError(
            f"cannot import {module_name!r} for {spec!r}: {type(problem).__name__}: {problem}; "
            "give module:attribute for an importable module, or path/to/file.py:attribute for a file"
        ) from problem
    target = module
    for part in attribute.split("."):
        if not hasattr(target, part):
            raise UnknownNameError(
                f"{module_name!r} has no {part!r}." + suggest(part, [n for n in vars(module) if not n.startswith("_")])
            )
        target = getattr(target, part)
    return target


def _module_from_file(path: Path) -> ModuleType:
    """Import a Python file; return the same module until the file changes."""
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
