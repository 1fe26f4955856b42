"""Imports point one way, those inside functions included."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted([*(ROOT / "text_gym").rglob("*.py"), *(ROOT / "agents").rglob("*.py")])

# Modules and folders of text_gym from the ground up: each line may import itself and the lines before it.
TEXT_GYM = [
    "arrays errors files terminal",
    "extras validation registry",
    "observations rendering",
    "vocab sequences",
    "bleu language_model corpus",
    "tasks",
    "rewards",
    "rules",
    "env vector_env",
    "__init__",
    "__main__",
]
HEIGHT = {name: height for height, names in enumerate(TEXT_GYM) for name in names.split()}

# What each module or folder of agents may import of agents.
AGENTS = {
    "networks": "",
    "common": "networks",
    "sb3": "networks common",
    "mle": "networks common",
    "scheduled_sampling": "networks common mle",
    "reinforce": "networks common",
    "seqgan": "networks common mle reinforce",
    "ppo": "networks common sb3",
    "nlpo": "networks common sb3 ppo",
    "report": "",
    "experiments": "networks common report",
    "bench": "networks common sb3",
    "web": "networks common experiments report",
    "cli": "common experiments report bench web",
    "__init__": "common mle scheduled_sampling reinforce seqgan ppo nlpo experiments report",
}


def module_of(path):
    """The dotted name of a file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def imports_of(path):
    """Each module that a file imports, at its top or inside a function, and whether it is at its top."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = set(tree.body)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module, node in top
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node in top


def place_of(module):
    """The package that a module belongs to, and the module or folder in it."""
    package, _, rest = module.partition(".")
    return package, rest.partition(".")[0] or "__init__"


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module):
    package, place = place_of(module)
    for name, at_top in imports_of(MODULES[module]):
        target, there = place_of(name)
        assert target not in ("tests", "examples"), f"{module} imports {name}"
        if package == "text_gym":
            assert target != "agents" or module == "text_gym.__main__", f"{module} imports {name}"
            assert not (target == "torch" and at_top and module != "text_gym.language_model"), f"{module}: torch"
            if target == "text_gym" and there in HEIGHT:
                assert there == place or HEIGHT[there] <= HEIGHT[place], f"{module} imports {name}"
        elif target == "agents":
            assert there in (place, *AGENTS[place].split()), f"{module} imports {name}"


def test_every_module_and_folder_has_its_place():
    places = {place_of(module) for module in MODULES}
    assert {place for package, place in places if package == "text_gym"} == set(HEIGHT)
    assert {place for package, place in places if package == "agents"} == set(AGENTS)


def test_no_imports_go_in_a_circle():
    graph = {module: {n for n, _ in imports_of(path) if n in MODULES} for module, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as problem:
        pytest.fail(f"a circle of imports: {' -> '.join(problem.args[1])}")
