"""What holds the project together: light imports, the package, and documentation that runs."""

import importlib.metadata
import os
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
NAMES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "examples/README.md")
PAGES = [*(ROOT / name for name in NAMES), *sorted((ROOT / "docs").glob("*.md"))]


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
        entry_points = archive.read("text_gym-0.1.0.dist-info/entry_points.txt").decode()
    files = [path for package in ("text_gym", "agents") for path in (ROOT / package).rglob("*") if path.is_file()]
    ours = {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}
    assert {name for name in names if "dist-info" not in name} == ours
    assert {"text_gym/py.typed", "agents/py.typed", "agents/report/page.html", "agents/report/report.html"} < ours
    assert {"agents/web/play.html", "agents/web/watch.html"} < ours
    assert "text-gym = text_gym.__main__:main" in entry_points


@pytest.mark.slow
def test_a_plain_install_gives_the_packages_and_the_command(wheel, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, "-m", "venv", "venv"], check=True)
    programs = tmp_path / "venv" / "bin"
    install = [programs / "python", "-m", "pip", "install", "-q", "--no-compile"]
    subprocess.run([*install, "-c", ROOT / "constraints.txt", wheel], check=True)

    code = "import agents, text_gym, gymnasium as gym; print(gym.make('TextGen-v0').unwrapped.task, agents.__file__)"
    done = subprocess.run([programs / "python", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"Task('grammar', 209 tokens, max_length=21) {tmp_path}")

    tiny = shlex.split(
        "--preset demo --seeds 1 --no-controls --samples 50 --sweep-samples 50 --references 50 --out run"
    )
    done = subprocess.run([programs / "text-gym", "compare", "mle(steps=1)", *tiny], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "mle" in Path("run/report.md").read_text(encoding="utf-8")
    assert "<svg" in Path("run/report.html").read_text(encoding="utf-8")


@pytest.fixture
def other_agents(tmp_path):
    """A folder with another package of the name agents; importing it fails."""
    (tmp_path / "other" / "agents").mkdir(parents=True)
    (tmp_path / "other" / "agents" / "__init__.py").write_text("raise RuntimeError('imported')\n", encoding="utf-8")
    return tmp_path / "other"


def run_the_command(*path):
    """Start text-gym with these folders first on Python's path."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    command = [sys.executable, "-m", "text_gym", "tasks"]
    return subprocess.run(command, env=environment, cwd=path[0], capture_output=True, text=True)


def test_the_command_tells_that_another_package_is_imported_as_agents(other_agents):
    done = run_the_command(other_agents, ROOT)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"text-gym: 'import agents' finds {other_agents / 'agents' / '__init__.py'}, which")
    assert "openai-agents" in done.stderr
    assert "an environment of its own" in done.stderr
    assert "grammar" in run_the_command(ROOT, other_agents).stdout


@pytest.mark.parametrize("leaves", ["its own file", "nothing"])
def test_the_command_tells_that_another_package_has_replaced_agents(leaves, other_agents):
    """Installed into the same place, it replaces agents/__init__.py; uninstalled, it takes that with it."""
    for package in ("text_gym", "agents"):
        ignored = shutil.ignore_patterns("__pycache__", "__init__.py" if package == "agents" else "")
        shutil.copytree(ROOT / package, other_agents / package, ignore=ignored, dirs_exist_ok=True)
    if leaves == "nothing":
        (other_agents / "agents" / "__init__.py").unlink()
    done = run_the_command(other_agents)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("text-gym: 'import agents' finds ")
    assert "install text-gym again" in done.stderr


def test_the_version_is_one_and_has_its_changes():
    assert importlib.metadata.version("text-gym") == text_gym.__version__
    assert f"## {text_gym.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.filterwarnings(
    "ignore:.* is deprecated and will be removed in v6:FutureWarning:transformers"
)  # by TRL's use
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_programs_in_the_documentation_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some leave a folder runs/
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
            assert anchor[1:] in {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}, link


def test_the_readmes_first_screen():
    """What this is, the two commands and ten lines of Python stand in the first forty lines."""
    first = "\n".join((ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:40])
    assert "Text generation as a" in first
    assert first.index("make demo") < first.index("make test") < first.index("```python")
    program = blocks(ROOT / "README.md", "python")[0]
    assert len(program.strip().splitlines()) <= 11


def test_the_examples_are_listed():
    listed = re.findall(
        r"^\| \[(\w+\.py)\]", (ROOT / "examples" / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert sorted(listed) == sorted(path.name for path in (ROOT / "examples").glob("*.py"))
