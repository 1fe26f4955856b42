"""The layout of the tests: they mirror the packages, and share code through tests/helpers."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent
PACKAGES = ("text_gym", "agents")
MODULES = sorted(TESTS.rglob("*.py"))


def imported_names(source):
    """Names that a program imports, "from a import b" as a.b; programs in its strings count too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "import" in node.value:
            try:
                yield from imported_names(node.value)
            except SyntaxError:
                continue


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(TESTS)))
def test_no_test_imports_another_test(module):
    names = list(imported_names(module.read_text(encoding="utf-8")))
    assert not [name for name in names if name.startswith(".")], "relative imports"
    assert not [name for name in names if name.startswith("tests.") and not name.startswith("tests.helpers.")]


@pytest.mark.parametrize("package", PACKAGES)
def test_tests_mirror_the_packages(package):
    """A folder for each folder that is tested, and tests of a module under its name."""
    for module in {*(TESTS / package).rglob("*.py")} - {*TESTS.rglob("conftest.py")}:
        tested = ROOT / module.relative_to(TESTS).with_name(module.name.removeprefix("test_"))
        assert tested.exists(), f"{module.relative_to(ROOT)} tests no module"


def test_beside_the_packages_there_are_only_fuzzers_and_helpers():
    folders = {path.relative_to(TESTS).parts[0] for path in MODULES if path.parent != TESTS}
    assert folders == {*PACKAGES, "fuzz", "helpers"}
