"""Comparisons: planned models, resumption, failures, and results that do not depend on the number of processes."""

import inspect
import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import gymnasium as gym
import pytest
import torch

import agents
import text_gym  # noqa: F401
from agents import MLE, Reinforce, SeqGAN
from agents.experiments import comparison
from agents.experiments.comparison import plan, run_comparison
from agents.experiments.run import execute, load_model, prepare_run
from agents.experiments.scheduler import Progress
from agents.experiments.settings import Comparison, MetricSettings, RunSpec
from agents.report.results import Results
from agents.report.run_files import read_curve, read_log, read_run
from tests.helpers.comparisons import MINE, OPTIONS, SMALL, TASK, figures, small
from tests.helpers.programs import Program
from text_gym.errors import DataError, OptionError, TextGymError


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    out = tmp_path_factory.mktemp("compared")
    return out, run_comparison(small(out), command="text-gym compare ...")


# Planned models.


def entries(**changes):
    return {entry.spec.label: entry for entry in plan(small("x", **changes))}


def test_the_controls_have_the_update_rule_of_what_they_control():
    found = entries()
    assert list(found) == [
        "mle", "pg-bleu", "seqgan", "constant-pg-bleu", "random-pg-bleu", "constant-seqgan", "random-seqgan",
        "mle-early", "uniform", "real",
    ]  # fmt: skip
    pg_bleu, random = (found[label].recipe.settings(None) for label in ("pg-bleu", "random-pg-bleu"))
    architecture = {"embedding", "hidden"}
    assert all(getattr(pg_bleu, f) == getattr(random, f) for f in vars(random) if f not in architecture)
    assert found["random-pg-bleu"].recipe.factory is found["pg-bleu"].recipe.factory is Reinforce
    seqgan, constant = (found[label].recipe.settings(None) for label in ("seqgan", "constant-seqgan"))
    assert constant.updates == seqgan.rounds * seqgan.g_steps == 3
    assert {f for f in vars(constant) if f != "updates" and getattr(constant, f) != getattr(seqgan, f)} == {"rollouts"}
    assert constant.rollouts == 0  # a constant reward needs no rollouts
    assert [found[label].recipe.reward for label in ("constant-seqgan", "random-seqgan")] == [
        "constant(value=0.5)", "random",
    ]  # fmt: skip
    assert {label: entry.spec.start for label, entry in found.items() if entry.spec.start} == dict.fromkeys(
        ["pg-bleu", "seqgan", "constant-pg-bleu", "random-pg-bleu", "constant-seqgan", "random-seqgan"], "mle"
    )
    assert found["constant-seqgan"].spec.controls_for == ("seqgan",)
    assert found["mle-early"].spec.controls_for == ("pg-bleu", "seqgan")
    assert found["mle-early"].recipe.settings(None).early_stopping
    assert all(entry.spec.baseline == "mle" for entry in found.values())


def test_the_controls_of_reinforce_have_its_settings():
    options = {
        "temperature": 0.7, "top_k": 3, "kl": {"weight": 0.1, "target": 0.02}, "baseline": "grpo",
        "rollouts": 0, "group_size": 4, "critic_learning_rate": 0.1,
    }  # fmt: skip
    found = entries(agents=("mle", "reinforce"), options={"reinforce": options})
    for label in ("constant", "random"):
        assert found[label].recipe.options.items() >= options.items()


def test_one_control_serves_agents_with_the_same_update_rule():
    asked = replace(small("x"), preset="fast", options={})
    found = {entry.spec.label: entry for entry in plan(asked)}
    assert list(found) == ["mle", "pg-bleu", "seqgan", "constant", "random", "mle-early", "uniform", "real"]
    assert found["constant"].spec.controls_for == ("pg-bleu", "seqgan")
    assert found["pg-bleu"].recipe.reward == "bleu(n=3, references=0.4, smoothing=None)"
    assert found["seqgan"].recipe.settings("fast") == SeqGAN.choose_settings("fast")


def test_controls_make_as_many_updates_as_the_agent():
    found = entries(agents=("mle(steps=2)", "seqgan(steps=2, g_steps=3)", "pg-bleu(steps=5)"), preset="demo",
                    options={"mle": OPTIONS["mle"]})  # fmt: skip
    updates = {label: entry.recipe.settings(None).updates for label, entry in found.items() if "random" in label}
    assert updates == {"random-seqgan": 6, "random-pg-bleu": 5}
    assert found["mle-early"].spec.steps == 2
    found = entries(
        agents=(f"a={MINE}Plain(steps=2)", f"b={MINE}Plain(steps=3)", f"c={MINE}Plain(steps=2)"), options={}
    )
    assert {label: entry.spec.controls_for for label, entry in found.items() if "random" in label} == {
        "random-a": ("a", "c"), "random-b": ("b",),
    }  # fmt: skip
    assert [found[label].spec.steps for label in ("random-a", "random-b")] == [2, 3]


def test_an_agent_whose_reward_is_its_own_is_controlled_by_its_updates_or_not_at_all():
    found = entries(agents=("mle", MINE + "OwnGAN(rounds=3)", MINE + "OwnReward"), options={})
    assert found["random"].spec.controls_for == ("OwnGAN",)
    assert found["random"].recipe.factory is Reinforce
    assert found["random"].recipe.settings(None).updates == 3
    assert found["uniform"].spec.trivial


def test_what_is_compared_is_what_was_named():
    assert list(entries(controls=False)) == ["mle", "pg-bleu", "seqgan"]
    assert list(entries(controls=False, agents=("seqgan",), options={})) == ["mle", "seqgan"]  # the warm start is added
    assert list(entries(controls=False, agents=("ss",), options={})) == ["ss"]
    found = entries(
        agents=("mle", "a=seqgan(rounds=1)", "b=seqgan(rounds=2)", "strong=mle"), options={}, controls=False
    )
    assert [found[label].recipe.settings(None).rounds for label in "ab"] == [1, 2]
    assert found["a"].spec.start == "mle"
    assert entries(agents=("ss", "mle"), options={}, baseline="ss")["mle"].spec.baseline == "ss"
    # A warm start that stops early needs no early-stopped control. The user's own agents are their own update rule.
    found = entries(agents=("mle", MINE + "Plain"), options={})
    assert list(found) == ["mle", "Plain", "constant", "random", "uniform", "real"]
    assert found["random"].spec.agent == MINE + "Plain"
    found = entries(agents=(MINE + "Plain(steps=2)",), options={})
    assert [entry.spec.steps for entry in found.values()] == [None, 2, 2, 2, None, None]
    assert found["random"].spec.options == {"reward": "random"}
    assert list(entries(agents=("real", "uniform", "mle"), options={})) == ["real", "uniform", "mle"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"agents": ("mle", "seqgam")}, "Did you mean 'seqgan'"),
        ({"agents": ("seqgan", "seqgan")}, "two models are called 'seqgan'"),
        ({"agents": ("mle(epochs=3)",)}, "no hyperparameter 'epochs'"),
        ({"agents": ("mle",), "options": {"seqgan": {}}}, "'seqgan', which is not compared"),
        ({"preset": "fats"}, "no preset 'fats'"),
        ({"baseline": "nothing"}, "the baseline 'nothing' is not among the models"),
        ({"agents": ("mle=ss", "seqgan"), "options": {}}, "two models are called 'mle' (the shared warm start"),
        ({"agents": ("mle", "pg-bleu", "constant=ss"), "options": {}}, "'constant' is the label of a control"),
        (
            {"agents": ("mle", "seqgan(hidden=16)")},
            "seqgan has hidden=16, but its warm start mle has 8; set hidden for mle only",
        ),
        ({"agents": ("a/b=mle",)}, "'a/b=mle' is not a valid folder name"),
        ({"agents": ()}, "name the agents"),
        ({"seeds": 0}, "seeds"),
        ({"jobs": 0}, "jobs"),
        ({"task": "orcale"}, "Did you mean 'oracle'"),
        (
            {"task": ["a b", "b a"]},
            "must be a string, a name or a path, not a list; write texts from Python to a .jsonl file",
        ),
        ({"reward": "bleux"}, "Did you mean 'bleu'"),
        ({"reward": len}, "the reward of a comparison must be a string, not "),
        (
            {"agents": ("own=__main__:Mine(hidden=8)",)},
            "own=__main__:Mine(hidden=8) is in the program itself, which the processes of runs do not import; move it",
        ),
        ({"reward": "__main__:mine"}, "__main__:mine is in the program itself"),
        ({"options": {"mle": {"reward": "__main__:mine"}}}, "__main__:mine is in the program itself"),
        ({"agents": ("pg-bleu(reward='validity')",), "options": {}}, "needs a task with a known language"),
        ({"metrics": replace(SMALL, also=("lenght",))}, "Did you mean 'length'"),
        ({"agents": (MINE + "Nobody",), "options": {}}, "has no 'Nobody'"),
        ({"agents": (MINE + "OnlySamples(tims=2)",), "options": {}}, "no option 'tims'"),
        (
            {"agents": ("mle(hidden=16)", MINE + "Plain"), "options": {}},
            "build() of Plain creates a policy of another architecture than the warm start; create it with ",
        ),
    ],
)
def test_mistakes_are_told_before_anything_is_run(tmp_path, changes, words):
    out = tmp_path / "out"
    with pytest.raises(TextGymError, match=re.escape(words)):
        run_comparison(small(out, **changes))
    assert not list(out.rglob("run.json"))


def test_from_python_the_arguments_and_their_defaults_are_those_of_a_comparison():
    ours = {name: p.default for name, p in inspect.signature(agents.compare).parameters.items()}
    theirs = {field.name: getattr(Comparison, field.name, None) for field in fields(Comparison)}
    assert ours == theirs | {"agents": inspect.Parameter.empty, "progress": True}


def test_from_python_a_comparison_is_given_as_plain_values(monkeypatch):
    asked = []
    monkeypatch.setattr(comparison, "run_comparison", lambda asked_for, watch: asked.append(asked_for))
    options = {"seqgan": {"rounds": 2}}
    agents.compare(
        ["mle", "seqgan"], "oracle", out="here", options=options, metrics={"samples": 50, "also": ["length"]}
    )
    agents.compare("mle")
    metrics = MetricSettings(samples=50, also=("length",))
    assert asked == [
        Comparison(("mle", "seqgan"), "oracle", out=Path("here"), options=options, metrics=metrics),
        Comparison(("mle",)),
    ]
    with pytest.raises(OptionError, match=r"metrics has no option 'sample'\. Did you mean 'samples'"):
        agents.compare(["mle"], metrics={"sample": 3})
    with pytest.raises(
        OptionError, match=r"the agent of a comparison must be a string, not .*; give a registered name"
    ):
        agents.compare([MLE])


# Results.


def test_every_run_has_its_figures_curve_and_samples(ran):
    out, results = ran
    assert results.labels[:3] == ["mle", "pg-bleu", "seqgan"]
    assert not results.failures
    assert not results.unfinished
    for (label, _), run in results.runs.items():
        assert {"nll_oracle", "nll_test", "entropy", "kl_sum", "bleu5", "self_bleu2", "distinct3"} <= set(run.figures)
        assert len(run.samples) == 2
        learns = label not in ("uniform", "real")
        assert ("seconds" in run.figures) == learns
        assert [row["temperature"] for row in run.sweep] == ([0.7, 1.0] if learns else [])
        assert run.about["versions"]["torch"] == torch.__version__
        assert run.spec["command"] == "text-gym compare ..."
    seqgan = results.of("seqgan")[0]
    assert [row["step"] for row in seqgan.curve] == [0, 2]
    assert seqgan.about["settings"]["rounds"] == 3
    assert all(len(s["values"]) == len(s["tokens"]) + 1 for s in seqgan.samples)
    assert [path.name for path in seqgan.folder.glob("events*")]  # TensorBoard event file
    again = Results.load(out)
    assert figures(again) == figures(results)
    assert again.controls_of("seqgan") == ["constant-seqgan", "random-seqgan", "mle-early", "uniform"]


def test_all_begin_with_the_start_of_their_seed(ran):
    out, _ = ran
    start = load_model(out / "mle" / "seed-0")
    for label in ("pg-bleu", "seqgan", "constant-pg-bleu"):
        agent = load_model(out / label / "seed-0")
        assert agent.steps_done == (3 if label == "seqgan" else 4)
        first = read_curve(out / label / "seed-0")[0]
        assert first["step"] == 0
        assert first["nll_valid"] == pytest.approx(start.nll("valid"), rel=1e-5)
    # With the leave-one-out baseline, a constant reward has advantage 0: the policy stays as it was.
    constant = load_model(out / "constant-pg-bleu" / "seed-0")
    assert all(torch.equal(a, b) for a, b in zip(constant.policy.parameters(), start.policy.parameters(), strict=True))


def test_an_agent_of_ones_own_begins_with_the_start_unless_it_says_otherwise(tmp_path):
    agents = ("mle", MINE + "Plain", MINE + "FromScratch")
    found = entries(agents=agents, options={"mle": OPTIONS["mle"]}, controls=False)
    assert {label: entry.spec.begins_with for label, entry in found.items()} == {
        "mle": "random weights", "Plain": "mle", "FromScratch": "random weights",
    }  # fmt: skip
    for label in ("mle", "Plain"):
        prepare_run(tmp_path / label / "seed-0", found[label].spec)
        execute(tmp_path / label / "seed-0", trust=True)
    start = load_model(tmp_path / "mle" / "seed-0")
    assert read_curve(tmp_path / "Plain" / "seed-0")[0]["nll_valid"] == pytest.approx(start.nll("valid"), rel=1e-5)
    assert entries(agents=(MINE + "FromScratch",), options={}, controls=False).keys() == {"FromScratch"}


def test_the_figures_are_those_of_the_agent_that_learns_alone(ran):
    """Train the same MLE in Python, and compare its NLL-test."""
    _, results = ran
    env = gym.make("TextGen-v0", task=TASK)
    threads = torch.get_num_threads()
    agent = MLE(env, seed=0, progress=False, threads=1, device="cpu", **OPTIONS["mle"]).learn()
    torch.set_num_threads(threads)
    assert results.values("mle", "nll_test")[0] == agent.nll("test")


def test_sequences_drawn_are_counted(ran):
    _, results = ran
    # 4 updates of 8 sequences, with two completions of each of 4 prefixes.
    assert results.values("pg-bleu", "sequences")[0] == 4 * 8 * (1 + 2 * 4)
    assert results.values("constant-pg-bleu", "sequences")[0] == 4 * 8
    # The discriminator needs 32 in pretraining and in each round, and 40 more to measure its accuracy.
    assert results.values("seqgan", "sequences")[0] == 3 * 8 * (1 + 2 * 4) + 4 * (32 + 40)


def test_what_is_finished_is_not_run_again_and_more_can_be_added(ran):
    out, _ = ran
    before = {path: path.stat().st_mtime_ns for path in out.rglob("results.json")}
    seen = []
    more = run_comparison(small(out, seeds=2, controls=False), lambda progress: seen.append(progress.finished_before))
    assert seen[0] == 3
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert sorted(more.runs) == sorted((label, seed) for label in ("mle", "pg-bleu", "seqgan") for seed in (0, 1))
    assert more.values("mle", "nll_test")[0] != more.values("mle", "nll_test")[1]
    order = json.loads((out / "comparison.json").read_text(encoding="utf-8"))[
        "runs"
    ]  # ordered by seed, warm start first
    assert order == [f"{label}/seed-{seed}" for seed in (0, 1) for label in ("mle", "pg-bleu", "seqgan")]


def test_a_report_leaves_out_what_an_earlier_comparison_left(ran, tmp_path):
    shutil.copytree(ran[0], tmp_path / "copy")
    fewer = run_comparison(small(tmp_path / "copy", agents=("mle", "pg-bleu")))
    assert fewer.labels == ["mle", "pg-bleu", "constant", "random", "mle-early", "uniform", "real"]
    again = Results.load(tmp_path / "copy")
    assert (again.labels, figures(again)) == (fewer.labels, figures(fewer))
    assert (tmp_path / "copy" / "constant-pg-bleu").exists()


def test_runs_that_cannot_be_compared_are_not_reported_together(ran, tmp_path):
    out, _ = ran
    shutil.copytree(out / "mle" / "seed-0", tmp_path / "again" / "mle" / "seed-0")
    with pytest.raises(DataError, match="are both runs of mle with seed 0"):
        Results.load(out, tmp_path / "again")
    for name, value in (("metrics", {"samples": 3}), ("reward", "length"), ("task", "grammar")):
        run = tmp_path / "again" / "mle" / "seed-0" / "run.json"
        spec = json.loads(run.read_text(encoding="utf-8"))
        run.write_text(json.dumps(spec | {"label": "other", name: value}), encoding="utf-8")
        with pytest.raises(DataError, match=f"these runs differ in {name}"):
            Results.load(out, tmp_path / "again")
        run.write_text(json.dumps(spec), encoding="utf-8")


def test_a_folder_of_another_comparison_is_refused(ran):
    out, _ = ran
    other = OPTIONS | {"pg-bleu": {"updates": 5, "rollouts": 2, "batch_size": 8}}
    with pytest.raises(
        OptionError, match=r"holds a run with other settings: options\.updates was 4 and is 5; choose another folder"
    ):
        run_comparison(small(out, options=other))
    with pytest.raises(OptionError, match="task was"):
        run_comparison(small(out, task="grammar", options={}))


def test_other_jobs_give_the_same_numbers(ran, tmp_path):
    agents = ("mle", "pg-bleu", MINE + "Global", f"other={MINE}Global")
    one = run_comparison(small(tmp_path / "one", agents=agents, controls=False, jobs=1))
    assert figures(one).items() >= {name: f for name, f in figures(ran[1]).items() if name in one.runs}.items()
    four = run_comparison(small(tmp_path / "four", agents=agents, controls=False, jobs=4))
    assert figures(one) == figures(four)  # also for agents that use the global generators


@pytest.mark.slow
def test_a_ray_cluster_gives_the_same_numbers(ran, tmp_path):
    pytest.importorskip("ray")
    code = (
        "from agents.experiments.comparison import run_comparison\n"
        "from tests.helpers.comparisons import small\n"
        f"run_comparison(small({str(tmp_path)!r}, agents=('mle', 'pg-bleu'), controls=False, jobs=None, ray='local'))\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=Path(__file__).parents[3])
    there = Results.load(tmp_path)
    assert figures(there) == {name: f for name, f in figures(ran[1]).items() if name in there.runs}
    assert len(there.runs) == 2


# Failures.

PROGRAM = """
import sys
from agents.experiments.comparison import run_comparison
from tests.helpers.comparisons import OPTIONS, small
if __name__ == "__main__":
    run_comparison(small(sys.argv[1], agents=("mle", "seqgan"), controls=False,
                  options={"mle": OPTIONS["mle"], "seqgan": OPTIONS["seqgan"] | {"rounds": 40}}))
"""


def test_a_killed_comparison_goes_on_and_comes_to_the_same(tmp_path, write):
    program = write("program.py", PROGRAM)
    out, other = tmp_path / "killed", tmp_path / "whole"
    process = Program(program, out)
    run = out / "seqgan" / "seed-0"
    process.until(lambda: any(row.get("time/step", 0) >= 5 for row in read_log(run)))
    process.kill()
    rows = -1
    while rows != (rows := len(read_log(run))):  # wait until its workers have ended
        time.sleep(1.0)
    assert not (run / "results.json").exists()
    asked = small(out, agents=("mle", "seqgan"), controls=False)
    asked = replace(asked, options={"mle": OPTIONS["mle"], "seqgan": OPTIONS["seqgan"] | {"rounds": 40}})
    again = run_comparison(asked)
    steps = [row["time/step"] for row in read_log(run) if "time/step" in row]
    assert steps == sorted(set(steps))
    whole = run_comparison(replace(asked, out=other))
    assert figures(again) == figures(whole)
    assert again.of("seqgan")[0].curve == whole.of("seqgan")[0].curve


def test_two_comparisons_into_one_folder_at_once_are_refused(tmp_path, write):
    process = Program(write("program.py", PROGRAM), tmp_path / "out")
    try:
        process.until(lambda: (tmp_path / "out" / "mle" / "seed-0" / "run.json").exists())
        with pytest.raises(OptionError, match="another run is using"):
            run_comparison(small(tmp_path / "out"))
    finally:
        process.kill()


def test_a_run_that_fails_is_reported_and_the_others_go_on(tmp_path, monkeypatch):
    monkeypatch.setenv("MENDED", str(tmp_path / "mended"))
    names = ("Fails", "Dies", "FailsUntilMended", "OnlySamples", "no_agent", "BreaksAtOnce")
    agents = ("mle", *(MINE + name for name in names))
    results = run_comparison(small(tmp_path / "out", agents, controls=False))
    said = {run.label: run.error for run in results.failures}
    assert set(said) == {"Fails", "Dies", "FailsUntilMended", "no_agent", "BreaksAtOnce"}
    assert said["Fails"].endswith("RuntimeError: out of luck\n")
    assert "exit code 7" in said["Dies"]
    assert "has no method sample()" in said["no_agent"]
    assert results.values("OnlySamples", "duplicates")[0] == 29 / 30
    assert results.values("OnlySamples", "copies")[0] == 1
    assert "nll_test" not in results.of("OnlySamples")[0].figures
    (tmp_path / "mended").touch()
    again = run_comparison(small(tmp_path / "out", agents, controls=False))
    assert "FailsUntilMended" not in {run.label for run in again.failures}


def test_agents_whose_start_failed_are_given_up(tmp_path):
    broken = {"mle": OPTIONS["mle"] | {"schedule": ((3, 1e30),)}, "pg-bleu": OPTIONS["pg-bleu"]}
    last = []
    results = run_comparison(small(tmp_path, ("mle", "pg-bleu"), options=broken), last.append)
    assert isinstance(last[-1], Progress)
    said = {run.label: run.error for run in results.failures}
    assert "are not finite" in said["mle"]
    assert "its warm start" in said["pg-bleu"]
    assert read_run(tmp_path / "uniform" / "seed-0").finished


def test_a_file_that_changed_is_noticed(tmp_path, write):
    corpus, mine = (
        write("lines.txt", "a b\nb a\n" * 20),
        write("mine.py", "def score(completions): return [0.0] * len(completions)"),
    )
    spec = RunSpec("mine", "mle", task=f"{corpus}(valid=0.2)", metrics=replace(SMALL, also=(f"{mine}:score",)))
    assert sorted(spec.inputs()) == sorted(map(str, (corpus, mine)))
    prepare_run(tmp_path / "mine", spec)
    prepare_run(tmp_path / "mine", spec)
    (tmp_path / "mine" / "progress.json").write_text('{"time/step": 1}', encoding="utf-8")
    mine.write_text("def score(completions): return [1.0] * len(completions)", encoding="utf-8")
    with pytest.raises(OptionError, match=rf"^{re.escape(str(mine))} changed since .*; choose another folder"):
        prepare_run(tmp_path / "mine", spec)


def test_one_run_alone(tmp_path):
    spec = RunSpec("mine", MINE + "Plain", seed=4, task=TASK, reward="length", steps=2, metrics=SMALL, device="cpu")
    prepare_run(tmp_path / "mine", spec)
    execute(tmp_path / "mine", trust=True)
    assert RunSpec.read(tmp_path / "mine") == spec
    agent = load_model(tmp_path / "mine", trust=True)
    assert (agent.steps_done, agent.seed) == (2, 4)
    started = replace(spec, label="next", agent="reinforce", start=None, options={"updates": 1, "rollouts": 1})
    prepare_run(tmp_path / "next", replace(started, start_folder=str(tmp_path / "mine"), steps=None))
    execute(tmp_path / "next", trust=True)
    assert read_curve(tmp_path / "next")[0]["nll_valid"] > 0
    damaged = json.loads((tmp_path / "next" / "run.json").read_text(encoding="utf-8"))
    (tmp_path / "next" / "run.json").write_text(json.dumps(damaged | {"metrics": {"samplse": 3}}), encoding="utf-8")
    with pytest.raises(TextGymError, match="damaged"):
        execute(tmp_path / "next", trust=True)
