"""Import optional dependencies."""

from __future__ import annotations

import importlib
from types import ModuleType

from text_gym.errors import DependencyError


def import_extra(module: str, feature: str, extra: str) -> ModuleType:
    """Import a module of an optional dependency.

    Args:
        module: The module.
        feature: The feature that needs it, for the error message.
        extra: The extra of this package that installs it.

    Raises:
        DependencyError: The dependency is not installed.

    >>> import_extra("json", "nothing", "hf").loads("[1]")
    [1]
    """
    try:
        return importlib.import_module(module)
    except ImportError as problem:
        library = module.partition(".")[0].replace("_", "-")
        raise DependencyError(f"{feature} needs {library}: pip install 'text-gym[{extra}]'") from problem
