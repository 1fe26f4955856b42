"""What holds the project together: light imports, the package, and documentation that runs."""

import importlib.metadata
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import text_gym
from agents.cli.main import main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_making_the_default_environment_imports_neither_torch_nor_agents():
    code = (
        "import sys, gymnasium as gym, text_gym\n"
        "env = gym.make('TextGen-v0'); env.reset(); env.step(0)\n"
        "heavy = ('torch', 'agents', 'scipy', 'tyro', 'tqdm', 'stable_baselines3')\n"
        "optional = ('transformers', 'sacrebleu', 'nltk', 'rouge_score', 'trl')\n"
        "print([m for m in (*heavy, *optional) if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The package, built from a copy so that nothing is left in the checkout."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("text_gym", "agents"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-q", "-w", copy]
    subprocess.run(command, cwd=copy, check=True, capture_output=True)
    (built,) = copy.glob("*.whl")
    return built


def test_the_wheel_holds_both_packages_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.partition("/")[0] for name in names if "dist-info" not in name} == {"text_gym", "agents"}
    assert {
        "text_gym/py.typed",
        "agents/py.typed",
        "agents/cli/main.py",
        "agents/report/report.html",
        "text_gym/env.py",
    } <= set(names)
    assert not [name for name in names if "test" in name or "example" in name]


@pytest.mark.slow
def test_a_plain_install_gives_the_packages_and_the_command(wheel, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    constraints = ROOT / "constraints.txt"
    subprocess.run([python, "-m", "pip", "install", "-q", "-c", constraints, wheel], check=True, cwd=tmp_path)
    code = "import agents, text_gym, gymnasium as gym; print(gym.make('TextGen-v0').unwrapped.task)"
    done = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "Task('grammar', 209 tokens, max_length=21)\n"
    command = tmp_path / "venv" / "bin" / "text-gym"
    assert "grammar" in subprocess.run([command, "tasks"], capture_output=True, text=True, check=True).stdout


def test_the_version_is_one_and_has_its_changes():
    assert importlib.metadata.version("text-gym") == text_gym.__version__
    assert f"## {text_gym.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.filterwarnings(
    "ignore:.* is deprecated and will be removed in v6:FutureWarning:transformers"
)  # by TRL's use
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_programs_in_the_documentation_run(page):
    namespace = {"__name__": "__main__"}
    for program in blocks(page, "python"):
        exec(compile(program, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_documentation_run(page, capsys):
    for line in "".join(blocks(page, "sh")).splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["text-gym"]:
            assert main(words[1:]) == 0, line
        elif words:
            target = words[1]
            assert words[0] == "make", line
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_in_the_documentation_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)(#[\w-]+)?\)", page.read_text(encoding="utf-8")):
        path, anchor = link
        if path.startswith("http"):
            continue
        target = page.parent / path
        assert target.exists(), path
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor[1:] in {h.lower().replace(" ", "-") for h in headings}, link


def test_the_readmes_first_screen():
    """What this is, the two commands and ten lines of Python stand in the first forty lines."""
    first = "\n".join((ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:40])
    assert "Text generation as a" in first
    assert first.index("make demo") < first.index("make test") < first.index("```python")
    program = blocks(ROOT / "README.md", "python")[0]
    assert len(program.strip().splitlines()) <= 11
