"""text-gym train, compare and evaluate."""

import itertools
import json
import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import agents.cli.train
from agents.cli.main import main
from agents.cli.train import measure_run
from agents.experiments.run import load_model
from agents.experiments.settings import RunSpec
from agents.report.columns import ALSO
from agents.report.results import Results
from agents.report.run_files import read_curve, read_run
from agents.web.server import LocalServer
from tests.helpers.commands import MEASURED, MINE, MLE, TASK, TINY, run
from tests.helpers.fake_runs import write_fake_runs
from text_gym import TextGymError, make_task


def test_train_says_what_came_of_it_and_what_can_follow(trained, capsys, tmp_path):
    code, out, err = run(capsys, "train", "mle", *TINY, *MLE, "--out", str(tmp_path / "new run"))
    assert (code, err) == (0, "")
    assert out.startswith("mle, seed 0: NLL-oracle ")
    for follow in ("sample", "evaluate", "report"):
        assert f"text-gym {follow} " in out.replace("\n", " ")
    assert {"run.json", "results.json", "samples.json", "progress.json"} <= {
        p.name for p in (tmp_path / "new run").iterdir()
    }
    assert ALSO + "length" in read_run(trained).figures
    # A repeated command does nothing, and another seed is refused.
    before = (trained / "results.json").stat().st_mtime_ns
    assert run(capsys, "train", "mle", *TINY, *MLE, "--out", str(trained), "--also", "length")[0] == 0
    assert (trained / "results.json").stat().st_mtime_ns == before
    code, _, err = run(capsys, "train", "mle", *TINY, *MLE, "--out", str(trained), "--seed", "3")
    assert (code, err.count("\n")) == (2, 1)
    assert "holds a run with other settings: seed was 0 and is 3" in err


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (["--policy", "hf", "--model", "./nosuch"], "there is no such folder"),
        (["--reward", "mine.py:broken"], "broken"),
    ],
)
def test_a_command_that_failed_at_once_does_not_hold_the_folder(capsys, tmp_path, monkeypatch, wrong, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def broken(completions): raise ValueError('broken')", encoding="utf-8")
    command = ["reinforce", *TINY, "--updates", "2", "--rollouts", "0", "--out", "r"]
    code, _, err = run(capsys, "train", *command, *wrong)
    told = [line for line in err.splitlines() if line.startswith("text-gym: ")]
    assert (code, len(told)) == (2, 1)
    assert words in told[0]
    assert (tmp_path / "r" / "run.json").exists()
    assert run(capsys, "train", *command)[0] == 0
    assert read_run(tmp_path / "r").finished


def test_evaluate_a_run(trained, capsys):
    figures = measure_run(trained, None, None, (), 1.0, False)
    done = read_run(trained).figures
    assert figures == {key: value for key, value in done.items() if key not in ("seconds", "sequences")}
    code, out, _ = run(capsys, "evaluate", str(trained))
    assert code == 0
    assert f"NLL-test {figures['nll_test']:14.3f}".split() == next(
        line.split()[:2] for line in out.splitlines() if "NLL-test" in line
    )
    sharp = measure_run(trained, 50, 3, ("constant(value=0.5)",), 0.5, False)
    assert sharp["entropy"] < measure_run(trained, 50, 3, (), 1.0, False)["entropy"]
    assert 0.5 in sharp.values()
    both = ["--also", "constant(value=0.5)", "length", "--also", "constant(value=0.25)", "--samples", "20"]
    code, out, _ = run(
        capsys, "evaluate", str(trained), *both, "--references", "10", "--device", "cpu", "--threads", "1"
    )
    assert code == 0
    for name, value in [("constant(value=0.5)", "0.500"), ("constant(value=0.25)", "0.250"), ("length", "5.000")]:
        assert re.search(rf"reward {re.escape(name)} +{value}", out), name
    model = load_model(trained)
    drawn = model.sample(50, seed=3, temperature=0.5)
    assert sharp["entropy"] == pytest.approx(-model.log_prob(drawn.tokens, temperature=0.5).mean() / 5)
    for wrong in (["--samples", "1"], ["--seed", "-1"], ["--temperature", "0"], ["--also", "lenght"]):
        code, out, err = run(capsys, "evaluate", str(trained), *wrong)
        assert (code, out, err.count("\n")) == (2, "", 1), wrong


def test_a_config_file(capsys, here, write):
    write("run.toml", f"agent = 'mle'\ntask = '{TASK}'\nsamples = 20\nreferences = 20\ntemperatures = []\npoints = 0\n"
          "shown = 0\nhidden = 8\nembedding = 8\nschedule = [[1, 1e-2]]\ndevice = 'cpu'\n")  # fmt: skip
    assert run(capsys, "train", "--config", "run.toml", "--out", "a", "--hidden", "4")[0] == 0
    spec = RunSpec.read(here / "a")
    assert (spec.options["hidden"], spec.options["embedding"], spec.metrics.samples) == (4, 8, 20)
    assert load_model(here / "a").policy.lstm.hidden_size == 4
    assert read_run(here / "a").sweep == []


def test_agents_and_rewards_from_a_file_here(capsys, here):
    assert run(capsys, "train", "mine.py:Repeats(row=3)", *TINY, "--reward", "mine.py:length", "--out", "r")[0] == 0
    done = read_run(here / "r")
    assert (done.label, done.figures["reward"], done.figures["copies"]) == ("Repeats", 5.0, 1.0)
    assert done.figures["duplicates"] == 19 / 20
    for command in (["sample", "r"], ["evaluate", "r"], ["train", "reinforce", *TINY, "--start", "r", "--out", "s"]):
        code, out, err = run(capsys, *command)  # an untrusted folder must not execute code
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "names the Python code 'mine.py:Repeats', which loading it would execute" in err
    lines = run(capsys, "sample", "r", "--n", "2", "--trust")[1].splitlines()
    assert lines == [make_task(TASK).batch("train").texts[3]] * 2
    code, _, err = run(capsys, "train", "mine.py:Breaks", *TINY, "--out", "b")
    assert code == 1
    assert err == f"text-gym: RuntimeError: out of luck. The traceback is in {Path('b', 'error.txt')}\n"
    assert "raise RuntimeError" in (here / "b" / "error.txt").read_text(encoding="utf-8")
    code, _, err = run(capsys, "train", "mine.py:NoLast", *TINY, "--out", "n")
    assert (code, err.count("\n")) == (1, 1)
    code, _, err = run(capsys, "train", "mine.py:Repeats", *TINY, "--reward", "mine.py:wrong", "--out", "w")
    assert (code, err) == (2, "text-gym: reward 'wrong' failed with KeyError: 'no such word'\n")


def test_what_an_agent_learned_is_only_loaded_if_it_was_kept(capsys, here):
    assert run(capsys, "train", MINE + "Keeps", *TINY, "--steps", "7", "--out", "kept")[0] == 0
    assert load_model(here / "kept", trust=True).steps == 7
    assert run(capsys, "train", MINE + "Forgets", *TINY, "--out", "forgot")[0] == 0
    for command in ("sample", "evaluate"):
        code, out, err = run(capsys, command, "forgot", "--trust")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "the weights of Forgets are not saved in" in err
        assert run(capsys, command, "kept", "--trust")[0] == 0
    for command in (["sample", "kept", "--temperature", "0.5"], ["evaluate", "kept", "--temperature", "0.5"]):
        code, out, err = run(capsys, *command, "--trust")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "temperature" in err


def test_going_on_from_another_run(trained, capsys, here):
    short = ["--updates", "1", "--rollouts", "1", "--batch-size", "4"]
    assert run(capsys, "train", "reinforce", *TINY, *short, "--start", str(trained), "--out", "next")[0] == 0
    assert read_curve(here / "next")[0]["nll_valid"] == pytest.approx(load_model(trained).nll("valid"), rel=1e-5)
    assert RunSpec.read(here / "next").begins_with == str(trained)
    alone = ["reinforce", *MEASURED.split(), "--device", "cpu", *short]  # the task of --start is used
    code, _, err = run(capsys, "train", *alone, "--start", str(trained), "--out", "same")
    assert (code, err, RunSpec.read(here / "same").task) == (0, "", TASK)
    assert run(capsys, "evaluate", "same", "--device", "tpu")[2].startswith("text-gym: device='tpu'")
    spec = json.loads((here / "same" / "run.json").read_text(encoding="utf-8"))
    (here / "same" / "run.json").write_text(json.dumps(spec | {"task": "evil.py:task"}), encoding="utf-8")
    (here / "evil.py").write_text("open('ran', 'w').close()", encoding="utf-8")
    code, _, err = run(capsys, "train", *alone, "--start", "same", "--out", "evil")
    assert (code, err.count("\n")) == (2, 1)
    assert "names the Python code 'evil.py:task'" in err
    assert not (here / "ran").exists()
    for wrong, said in [
        (["reinforce", *TINY, "--start", "absent"], "'absent' is no run folder"),
        (["mle", *TINY, "--start", str(trained)], "cannot use a warm start"),
        (["reinforce", *MEASURED.split(), "--task", "grammar(train_size=50, test_size=50)", "--start", str(trained)],
         "whose vocabulary differs from that of"),
    ]:  # fmt: skip
        code, out, err = run(capsys, "train", *wrong, "--out", "wrong")
        assert (code, out, err.count("\n")) == (2, "", 1), wrong
        assert said in err
        assert not (here / "wrong").exists()


def test_random_weights_are_told_before_they_learn(capsys, here):
    command = ["train", "pg-bleu", *TINY, "--updates", "1", "--rollouts", "0", "--out", "scratch"]
    code, _, err = run(capsys, *command)
    assert (code, err.count("\n")) == (0, 1)
    assert err.startswith("pg-bleu starts from random weights; for a warm start, train a policy first (text-gym tr")
    assert err.endswith("--out runs/mle) and add --start runs/mle\n")
    assert run(capsys, *command)[::2] == (0, "")  # there is a checkpoint already
    assert run(capsys, "train", "uniform", *TINY, "--out", "noise")[::2] == (0, "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mlee"], "unknown agent 'mlee'"), (["mle", "--task", "gramar"], "Did you mean 'grammar'"),
        (["mle", *TINY, "--device", "tpu"], "device='tpu'"), (["mle", *TINY, "--preset", "strog"], "no preset 'strog'"),
        (["mle(hiden=3)", *TINY], "no hyperparameter 'hiden'"), (["mle(", *TINY], "cannot read 'mle('"),
        (["reinforce", *TINY, "--reward", "blue"], "Did you mean 'bleu'"),
        (["nofile.py:A", *TINY], "no file 'nofile.py'"),
        (["mle", *TINY, "--also", "lenght"], "Did you mean 'length'"),
        (["mle", *TINY, "--config", "no.toml"], "cannot read"),
        (["mle", *TINY, "--task", "empty.txt"], "empty"), (["mle", *TINY, "--task", "one.txt"], "it needs at least 2"),
        (["mle", *TINY, "--task", "absent.txt"], "no file 'absent.txt'"), (["a b=mle", *TINY], "unknown agent"),
        (["uniform", *TINY, "--out", "one.txt"], "one.txt is not a folder"),
        (["uniform", *TINY, "--out", "one.txt/below"], "one.txt is not a folder"),
        (["uniform", *TINY, "--out", "x" * 300], "name too long"),
        (["pg-bleu", *TINY, "--reward", "validity", "--out", "o"], "needs a task with a known language"),
    ],
)  # fmt: skip
def test_mistakes_in_train_are_one_line_and_leave_no_folder(capsys, here, write, words, said):
    write("empty.txt", "")
    write("one.txt", "a b c\n")
    code, out, err = run(capsys, "train", *words)
    told = [line for line in err.splitlines() if line.startswith("text-gym: ")]
    assert (code, out, len(told)) == (2, "", 1)
    assert said.lower() in told[0].lower()
    assert "Traceback" not in err
    assert not list(here.rglob("run.json"))
    with pytest.raises((TextGymError, OSError)):
        main(["train", *words, "--debug"])


SMALL_COMPARISON = ["--controls", "--seeds", "1", "--jobs", "2", "--out", "c"]


def test_compare_reports_failures_by_its_exit_code(capsys, here, write):
    """Compare agents of the package and of a file, on a corpus without a validation split, with a failing run.

    A folder agents/ in the working directory does not replace this package, in the worker processes either.
    """
    (here / "agents").mkdir()
    write("agents/__init__.py", "")
    write("lines.txt", "\n".join(f"{a} {b} {c}" for a in "xyz" for b in "xyz" for c in "xyz"))
    words = ["compare", "mle", "mine.py:Repeats", *TINY, *SMALL_COMPARISON, "--task", "lines.txt(test=0.4, valid=0)"]
    words += ["--mle.schedule", "1", "0.01", "--mle.hidden", "4", "--mle.embedding", "4"]
    code, out, err = run(capsys, *words)
    assert (code, err) == (0, "")
    assert "Report: c/report.html" in out
    assert (here / "c" / "report.md").exists()
    assert not (here / "c" / "real").exists()  # all real sequences are references
    assert (here / "c" / "uniform" / "seed-0" / "results.json").exists()
    code, out, _ = run(capsys, *[words[0], words[1], "mine.py:Breaks", *words[3:], "--no-controls"])
    assert code == 1
    assert "FAILED: Breaks, seed 0: RuntimeError: out of luck (c/Breaks/seed-0/error.txt)" in out.replace(
        "\n", " "
    ).replace("  ", " ")
    # If the last model is refused, no folder is created for the others.
    code, _, err = run(capsys, *words[:2], "uniform", *words[3:], "--no-controls", "--mle.hidden", "5")
    assert (code, err.count("\n")) == (2, 1)
    again = run(capsys, "compare", "new=mle", "mle", *words[3:], "--no-controls", "--threads", "2")
    assert again[0] == 2
    assert not (here / "c" / "new").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mle", "mle"], "two models are called 'mle'"), (["a b=mle"], "is not a valid folder name"),
        (["..=mle"], "is not a valid folder name"), ([".=mle"], "is not a valid folder name"),
        ([".lock=mle"], "is not a valid folder name"), (["=mle"], "is not a valid folder name"),
        (["mle", "--preset", "strog"], "no preset 'strog'"),
        (["mle", "--baseline", "m"], "baseline 'm' is not among"),
        (["mle", "--device", "tpu"], "device='tpu'"), (["mle", "--out", "mine.py"], "mine.py is not a folder"),
        (["real", "--task", "lines.txt(valid=0, test=0.5)"], "'valid' split"), (["mle", "--task", "gramar"], "grammar"),
        (["x" * 300 + "=mle"], "name too long"), (["mine.py:Nobody"], "has no 'Nobody'"),
    ],
)  # fmt: skip
def test_mistakes_in_compare_are_one_line_and_leave_no_folder(capsys, here, write, words, said):
    write("lines.txt", "\n".join(f"{a} {b} {c}" for a in "xyz" for b in "xyz" for c in "xyz"))
    agents = list(itertools.takewhile(lambda word: not word.startswith("--"), words))
    code, out, err = run(capsys, "compare", *agents, *TINY, *words[len(agents) :])
    told = [line for line in err.splitlines() if line.startswith("text-gym: ")]
    assert (code, out, len(told)) == (2, "", 1)
    assert said.lower() in told[0].lower()
    assert not list(here.rglob("run.json"))


def test_compare_shows_its_page_while_it_runs(here, capsys, monkeypatch):
    pages, opened = [], []

    def run_comparison(asked, display, command):
        pages.append(re.search("http://[^ ]*/", capsys.readouterr().out)[0])
        text = urllib.request.urlopen(pages[0], timeout=30).read().decode()
        assert "There is no such folder yet" in text
        return Results.load(write_fake_runs(asked.out, (0, 1), ["mle"], curves=False, sweep=False))

    monkeypatch.setattr(agents.cli.train, "run_comparison", run_comparison)
    monkeypatch.setattr(LocalServer, "open_browser", lambda server: opened.append(server.address))
    assert run(capsys, "compare", "mle", "--out", "run", "--watch")[0] == 0
    assert opened == pages
    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(pages[0], timeout=30)
