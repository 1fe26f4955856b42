"""What git, GitHub and package indexes read: workflows, hooks, citation, changelog, the layout in CONTRIBUTING.md."""

import configparser
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import text_gym

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z]+):(?!=)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
SCHEMAS = {
    "github-workflows": [*WORKFLOWS],
    "github-issue-forms": [ROOT / ".github" / "ISSUE_TEMPLATE" / name for name in ("bug.yml", "proposal.yml")],
    "dependabot": [ROOT / ".github" / "dependabot.yml"],
    "citation-file-format": [ROOT / "CITATION.cff"],
}


def load(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def setup(section, option):
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser[section][option]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_files_follow_their_schema(schema):
    command = shutil.which("check-jsonschema", path=Path(sys.executable).parent)
    if command is None:
        pytest.skip("check-jsonschema is not installed")
    done = subprocess.run([command, "--builtin-schema", f"vendor.{schema}", *SCHEMAS[schema]], capture_output=True)
    assert done.returncode == 0, done.stdout.decode()


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_targets_of_the_makefile(workflow):
    """A step that fails on GitHub can be run by the same words at home."""
    jobs = load(workflow)["jobs"].values()
    commands = [step["run"] for job in jobs for step in job["steps"] if "run" in step]
    assert commands
    for command in commands:
        make, target, *variables = shlex.split(command)
        assert (make, target in TARGETS) == ("make", True), command
        assert all(re.match(r"[A-Z]+=", word) for word in variables), command


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_have_no_more_rights_than_they_need(workflow):
    content = load(workflow)
    assert content["permissions"] == {"contents": "read"}
    for job in content["jobs"].values():
        assert "timeout-minutes" in job
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/checkout"):
                assert step["with"]["persist-credentials"] is False


def test_every_python_that_is_claimed_is_tested():
    claimed = re.findall(r"Python :: (3\.\d+)", setup("metadata", "classifiers"))
    assert load(ROOT / ".github/workflows/tests.yml")["jobs"]["test"]["strategy"]["matrix"]["python-version"] == claimed
    assert setup("options", "python_requires") == f">={claimed[0]}"


def test_hooks_run_the_tools_of_the_project():
    for hook in load(ROOT / ".pre-commit-config.yaml")["repos"][0]["hooks"]:
        program = shlex.split(hook["entry"])[0]
        assert program.startswith(".venv/bin/")
        assert program.removeprefix(".venv/bin/") in {"python", "ruff", "mypy", "check-jsonschema"}


def test_the_citation_is_of_this_version():
    citation = load(ROOT / "CITATION.cff")
    assert citation["version"] == text_gym.__version__
    assert citation["license"] == setup("metadata", "license_expression")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## {text_gym.__version__} - {citation['date-released']}\n" in changelog


def test_the_changelog_has_the_sections_of_keep_a_changelog():
    order = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    _, *releases = re.split(r"^## ", changelog, flags=re.MULTILINE)
    assert releases[0].startswith("Unreleased\n")
    for release in releases:
        title, *rest = release.splitlines()
        assert re.fullmatch(r"Unreleased|\d+\.\d+\.\d+ - \d{4}-\d\d-\d\d", title)
        sections = [line.removeprefix("### ") for line in rest if line.startswith("#")]
        assert sections == sorted(set(sections), key=order.index)
        first = next((line for line in rest if line.strip()), "### ")
        assert first.startswith("### "), f"{title}: entries stand in a section"


@pytest.mark.parametrize("package", ["text_gym", "agents"])
def test_contributing_shows_what_lies_where(package):
    tree = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Where things are")[1].split("```")[1]
    inside = re.search(rf"^{package}/.*\n((?: .*\n)+)", tree, re.MULTILINE)[1]
    shown = re.findall(r"(?<!\S)\w+(?:/|\.py)(?!\S)", inside)
    lies = [path.name + "/" * path.is_dir() for path in (ROOT / package).iterdir()]
    assert sorted(shown) == sorted(name for name in lies if not name.startswith("__") and name != "py.typed")
