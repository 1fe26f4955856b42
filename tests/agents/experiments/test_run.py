"""Run folders that are untrusted, damaged or incomplete."""

import json
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from agents.experiments.metrics import Metrics
from agents.experiments.registry import AGENTS
from agents.experiments.run import load_model, make_model, prepare_run
from agents.experiments.settings import MetricSettings, RunSpec
from agents.report.run_files import read_log
from tests.helpers.commands import MEASURED, TASK, TINY, run
from text_gym import TextGymError, make_task
from text_gym.errors import OptionError


@pytest.mark.parametrize("left", ["latest.json", "progress.json", "results.json", "weights-of-its-own.pt"])
def test_what_a_run_has_left_is_held_against_others(tmp_path, left):
    spec = RunSpec("mle", "mle", task=TASK, device="cpu")
    prepare_run(tmp_path, spec)
    for name in ("error.txt", "now.json", ".lock", "events.out.tfevents.1"):
        (tmp_path / name).write_text("something", encoding="utf-8")
    (tmp_path / "progress.json").write_text('{"eval/nll_valid": 1.0}', encoding="utf-8")
    prepare_run(tmp_path, replace(spec, seed=1))
    assert not read_log(tmp_path)
    (tmp_path / left).write_text('{"time/step": 1}', encoding="utf-8")
    with pytest.raises(OptionError, match="holds a run with other settings: seed was 1 and is 2"):
        prepare_run(tmp_path, replace(spec, seed=2))
    assert RunSpec.read(tmp_path).seed == 1


@pytest.fixture
def hostile(trained, here, write):
    """Return a function that copies the run with a changed run.json; importing evil.py creates the file marker."""
    write("evil.py", "import pathlib\npathlib.Path('marker').touch()\ndef anything(completions=(), **_):\n    pass\n")

    def make(name="copy", **changes):
        shutil.copytree(trained, here / name)
        spec = json.loads((here / name / "run.json").read_text(encoding="utf-8"))
        (here / name / "run.json").write_text(json.dumps(spec | changes), encoding="utf-8")
        return name

    return make


EVIL = "evil.py:anything"


DEEP = f"mle(reward={{'sum': [{{\"x(y=['{EVIL}'])\": 1.0}}]}})"


@pytest.mark.parametrize(
    "changes",
    [
        {"agent": EVIL}, {"agent": f"mle(reward='{EVIL}')"}, {"agent": f"mle(reward=['length', '{EVIL}'])"},
        {"agent": f"mle(reward={{'{EVIL}(a=1)': 1.0}})"}, {"agent": DEEP},
        {"options": {"reward": EVIL}}, {"options": {"reward": ["length", EVIL]}},
        {"options": {"reward": {"length": 1.0, f"{EVIL}()": 1.0}}}, {"options": {"reward": f" {EVIL} "}},
        {"task": EVIL}, {"task": f"{EVIL}(a=1)"}, {"task": "os:system(command='touch marker')"},
        {"reward": EVIL}, {"reward": ["length", EVIL]}, {"reward": {EVIL: 1.0}}, {"reward": "evil:anything"},
        {"metrics": {"also": [EVIL]}}, {"metrics": {"also": [["length", EVIL]]}},
        {"options": {"trust": True, "reward": EVIL}},
    ],
    ids=str,
)  # fmt: skip
def test_a_run_that_names_code_is_refused_without_trust(capsys, here, hostile, changes):
    hostile(**changes)
    with pytest.raises(
        TextGymError,
        match=r"^the run in copy names the Python code .* add --trust|^copy/run\.json is damaged: ",
    ):
        load_model(Path("copy"))
    spec = RunSpec("copy", **{"agent": "mle", "task": TASK} | changes | {"metrics": MetricSettings()})
    with suppress(TextGymError):  # loading by name is safe without the check, too
        make_model(spec, here / "copy")
    with suppress(TextGymError):
        Metrics(make_task(TASK), MetricSettings(also=(EVIL,)), trust=False)
    assert not (here / "marker").exists()


def test_what_a_run_names_is_not_run_by_any_command(capsys, here, hostile):
    hostile(options={"reward": ["length", EVIL]})
    for words in (["sample"], ["evaluate"], ["train", "reinforce", *TINY, "--out", "new", "--start"]):
        code, out, err = run(capsys, *words, "copy")
        assert (code, out, err.count("\n")) == (2, "", 1), words
        assert f"names the Python code '{EVIL}', which loading it would execute" in err
    assert run(capsys, "report", "copy")[0] == 0
    hostile("task", task="os:system(command='touch marker')")
    code, _, err = run(
        capsys, "train", "reinforce", *MEASURED.split(), "--start", "task"
    )  # the task of --start is used
    assert (code, "names the Python code \"os:system(command='touch marker')\"" in err) == (2, True)
    assert not (here / "marker").exists()


def test_trust_is_not_handed_on_by_what_is_to_be_trusted(capsys, here, hostile, write, monkeypatch):
    """A run has a warm start that names code; the agent of the run is registered, but not an `Agent`."""
    hostile("far", agent=EVIL)
    hostile("near", agent="between", start_folder="far")
    hostile("circle", agent="between", start_folder="circle")
    (here / "link").symlink_to("far")
    hostile("linked", agent="between", start_folder="link")

    def between(env, start=None):
        return start

    monkeypatch.setitem(AGENTS.entries, "between", between)
    for folder, said in [
        ("near", "names the Python code 'evil.py:anything'"),
        ("linked", "names the Python code 'evil.py:any"),
        ("circle", "damaged"),
    ]:
        code, out, err = run(capsys, "sample", folder)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert said in err
    write("config.toml", "trust = true\n")
    words = ["train", "reinforce", *TINY, "--start", "far", "--config", "config.toml"]
    code, _, err = run(capsys, *words)
    assert (code, err.count("\n")) == (2, 1)
    assert "unknown setting 'trust'" in err
    assert not (here / "marker").exists()


def test_a_path_with_a_colon_and_a_tokenizer_are_data():
    harmless = [
        "hf:gpt2", "C:\\texts\\corpus.txt", "a: b", "[:;,]|\\w+", "(?:a|b)", "lines.txt(tokenizer='hf:org/model')",
        "1:2 3",
    ]  # fmt: skip
    assert RunSpec("a", "mle", options=dict(enumerate(harmless)), task=harmless[5]).code() == []
    named = ["m:f", "a.b:c.d(x=1)", "/my dir/f.py:g", "C:\\f.py:g", "lines.txt(x={'y': ['m:f']})"]
    for name in named:
        assert len(RunSpec("a", "mle", options={"x": [{"y": name}]}).code()) == 1, name


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"format": "text_gym run 2"}', "\xff"])
@pytest.mark.parametrize("command", ["sample", "evaluate", "report"])
def test_damaged_and_missing_runs_are_one_line(capsys, here, command, content):
    (here / "run").mkdir()
    for folder in ("run", "absent", "mine.py"):
        code, out, err = run(capsys, command, folder)
        assert (code, out, err.count("\n")) == (2, "", 1), folder
    (here / "run" / "run.json").write_bytes(content.encode("latin-1"))
    code, out, err = run(capsys, command, "run")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "run.json" in err


@pytest.mark.parametrize(
    ("name", "content"),
    [("cell.json", '{"format": "text_gym cell 1", "label": "mle"}'), ("run.json", '{"format": "text_gym run 3"}')],
)
@pytest.mark.parametrize("place", ["run", "run/mle/seed-0"])
def test_a_run_of_another_version_is_one_line_that_says_what_to_do(capsys, here, name, content, place):
    (here / place).mkdir(parents=True)
    (here / place / name).write_text(content, encoding="utf-8")
    (here / place / "results.json").write_text("{}", encoding="utf-8")
    (here / "run" / "comparison.json").write_text('{"cells": ["mle/seed-0"]}', encoding="utf-8")
    if place == "run":
        commands = [["sample", place], ["evaluate", place], ["report", "run"], ["train", "mle", *TINY, "--out", "run"]]
    else:
        commands = [["sample", place], ["evaluate", place], ["report", "run"]]
        commands += [["compare", "mle", *TINY, "--seeds", "1", "--no-controls", "--out", "run"]]
    for command in commands:
        code, out, err = run(capsys, *command)
        assert (code, out, err.count("\n")) == (2, "", 1), command
        assert "another version of text-gym wrote" in err
        assert "run the command again with another output folder" in err


def test_an_unfinished_run_without_a_checkpoint(capsys, here):
    prepare_run(here / "run", RunSpec("mle", "mle", task=TASK, device="cpu"))
    code, _, err = run(capsys, "sample", "run")
    assert (code, err) == (2, "text-gym: there is no checkpoint in 'run'; check the path\n")


def _replace(path, **changes):
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | changes), encoding="utf-8")


DAMAGES = {
    "deep": ("results.json", lambda path: path.write_text("[" * 100_000, encoding="utf-8")),
    "deep but read": ("results.json", lambda path: path.write_text("[" * 900 + "]" * 900, encoding="utf-8")),
    "type": ("run.json", lambda path: _replace(path, seed="one")),
    "metrics": ("run.json", lambda path: _replace(path, metrics={"samples": "many"})),
    "list": ("results.json", lambda path: path.write_text("[]", encoding="utf-8")),
    "lacking": ("results.json", lambda path: path.write_text("{}", encoding="utf-8")),
    "huge": ("results.json", lambda path: _replace(path, figures={"nll_test": 10**400})),
    "large": ("results.json", lambda path: _replace(path, figures={"nll_test": 1e300})),
    "samples": ("samples.json", lambda path: path.write_text('[{"tokens": [1]}]', encoding="utf-8")),
    "surrogate": ("samples.json", lambda path: path.write_text('["\\ud800"]', encoding="utf-8")),
    "encoding": ("progress.json", lambda path: path.write_text('{"eval/a": 1}', encoding="utf-16")),
    "cut": ("samples.json", lambda path: path.write_bytes(path.read_bytes()[:-3])),
    "folder": ("error.txt", lambda path: path.mkdir()),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_file_is_named_by_the_report(capsys, here, hostile, kind):
    hostile()
    name, damage = DAMAGES[kind]
    damage(here / "copy" / name)
    code, out, err = run(capsys, "report", "copy", "--out", "page")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert name in err
    assert len(err) < 500


@pytest.mark.parametrize(
    "changes",
    [{"options": {"hidden": 10**12}}, {"task": "oracle(vocab_size=9999999999)"}, {"seed": -1}, {"options": {"a": [[]]}},
     {"start_folder": "\0"}, {"device": "x" * 9999}, {"task": "mle(" * 300}, {"task": f"oracle(a={'-' * 5000}1)"}],
    ids=lambda changes: str(changes)[:30],
)  # fmt: skip
def test_settings_that_cannot_be_are_one_line(capsys, here, hostile, changes):
    hostile(**{"agent": "uniform"} | changes)
    code, out, err = run(capsys, "sample", "copy")
    assert (code, out, err.count("\n")) == (2, "", 1) or changes.keys() == {"start_folder"}
    assert len(err) < 500
