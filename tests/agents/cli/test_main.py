"""The text-gym command, as a person runs it."""

import io
import itertools
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

import agents.cli.train
from agents.cli.commands import COMMANDS
from agents.cli.completion import completion_script
from agents.cli.main import main
from agents.cli.train import measure_run
from agents.experiments.metrics import Metrics
from agents.experiments.registry import AGENTS
from agents.experiments.reward_audit import audit_rewards
from agents.experiments.run import load_model, make_model, prepare_run
from agents.experiments.settings import MetricSettings, RunSpec
from agents.report.columns import ALSO
from agents.report.results import Results
from agents.report.run_files import read_curve, read_log, read_run
from agents.web.server import LocalServer
from tests.helpers.fake_runs import write_fake_runs
from tests.helpers.programs import Program
from text_gym import TextGymError, make_task
from text_gym.errors import OptionError

ROOT = Path(__file__).parents[3]


def run(capsys, *arguments):
    """Exit code, standard output, standard error."""
    code = main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def test_lists(capsys):
    code, out, _ = run(capsys, "tasks")
    assert code == 0
    assert all(name in out for name in ("grammar", "oracle", "answers"))
    code, out, _ = run(capsys, "rewards")
    assert all(name in out for name in ("bleu", "rouge_l", "constant"))


LIGHT = """
import sys
from agents.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as ended:
    assert ended.code == 0, ended.code
heavy = ("torch", "stable_baselines3", "matplotlib", "scipy", "transformers", "rich", "jinja2")
sys.stderr.write(str([name for name in heavy if name in sys.modules]))
"""


@pytest.mark.parametrize(
    "words",
    [
        [], ["--help"], ["--version"], ["tasks"], ["rewards"], ["agents"], ["train", "--help"], ["compare", "--help"],
        ["sample"], ["sample", "--help"], ["watch", "--help"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_help_and_lists_import_nothing_that_takes_long(words):
    done = subprocess.run([sys.executable, "-c", LIGHT, *words], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stderr == "[]"
    assert done.stdout


def test_help_lists_the_commands_each_with_what_it_does(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert run(capsys) == (0, out, "")
    for command in (
        "train",
        "compare",
        "watch",
        "report",
        "sample",
        "evaluate",
        "agents",
        "tasks",
        "score",
        "audit",
        "bench",
    ):
        assert re.search(rf"^  {command} +[A-Z].*\.$", out, re.MULTILINE), command
    code, out, err = run(capsys, "sampel")
    assert (code, out) == (2, "")
    assert err.startswith("text-gym: unknown command 'sampel'. Did you mean 'sample'?")


def test_sample(capsys, grammar, answers):
    code, out, _ = run(capsys, "sample", "--n", "3", "--seed", "4")
    lines = out.splitlines()
    assert (code, len(lines)) == (0, 3)
    assert grammar.is_valid(grammar.encode(lines[0]))[0]
    assert out == run(capsys, "sample", "--n", "3", "--seed", "4")[1]
    first = run(capsys, "sample", "--task", "answers", "--n", "1")[1]
    assert first == "{} -> {}\n".format(
        *(column[0] for column in (answers.batch("test").prompts, answers.batch("test").texts))
    )
    assert run(capsys, "--version")[1].startswith("text_gym 0.")


def test_score(capsys, write):
    path = write("lines.txt", "the dogs run\nmary sings and the big\n")
    code, out, err = run(
        capsys, "score", str(write("good.txt", "the dogs run\nthe dogs runs\n")), "--reward", "validity"
    )
    assert (code, out.splitlines()) == (0, ["1\tthe dogs run", "0\tthe dogs runs", "0.5\tmean of 2 by validity"])
    code, out, err = run(capsys, "score", str(path), "--reward", "validity")
    assert (code, out.splitlines()) == (1, ["1\tthe dogs run", "1\tmean of 1 by validity"])
    assert err.startswith(f"text-gym: {path}, line 2: 'big' is not in this vocabulary")
    for name, content, exit_code in [
        ("latin.txt", b"caf\xe9\n", 2), ("none.txt", b"", 2),
        ("eos.txt", b"the <eos> dogs\n", 1), ("long.txt", b"the " * 22, 1),
    ]:  # fmt: skip
        code, out, err = run(capsys, "score", str(write(name, content)))
        assert (code, out, err.count("\n")) == (exit_code, "", 1), name
    marked = write("marked.txt", b"\xef\xbb\xbfthe dogs run\r\n")
    assert run(capsys, "score", str(marked), "--reward", "validity")[1].startswith("1\tthe dogs run\n")
    code, out, _ = run(capsys, "score", str(write("answers.txt", "1 2\n")), "--task", "answers")
    assert out.endswith("mean of 1 by bleu\n")


def test_score_goes_on_after_a_bad_line(capsys, write, answers):
    texts = answers.batch("test").texts[:3]
    path = write("answers.txt", f"{texts[0]}\nno such words\n{texts[2]}\n")
    code, out, err = run(capsys, "score", str(path), "--task", "answers", "--reward", "exact_match")
    assert code == 1
    assert out.splitlines() == [f"1\t{texts[0]}", f"1\t{texts[2]}", "1\tmean of 2 by exact_match"]
    assert err.count("\n") == 1
    assert err.startswith(f"text-gym: {path}, line 2: 'no' is not in this vocabulary")
    long = write("long.txt", "1\n" * (len(answers.test) + 1))
    assert run(capsys, "score", str(long), "--task", "answers")[0] == 2


def test_audit(capsys):
    code, out, _ = run(capsys, "audit", "--n", "200", "--reward", "validity", "--reward", "constant(value=0.5)")
    rows = {line.split()[1]: line.split()[3::2] for line in out.splitlines() if line.startswith("│")}
    assert code == 0
    assert rows["constant(value=0.5)"] == ["0.500"] * 3
    assert rows["validity"][0] == "1.000"
    assert float(rows["validity"][1]) < 0.1
    assert rows["validity"][2] == "0.000"


def test_the_audit_keeps_words_or_replaces_them(grammar, answers):
    means = audit_rewards(grammar, ["bleu(n=1)", "length"], n=300)
    assert means["length"][0] == means["length"][1] == means["length"][2]
    assert means["bleu(n=1)"][0] == pytest.approx(means["bleu(n=1)"][1], abs=1e-9)
    assert audit_rewards(grammar, ["tests.helpers.own_rewards:words_only"], n=1000) == {
        "tests.helpers.own_rewards:words_only": (1.0, 1.0, 1.0)
    }
    assert audit_rewards(answers, n=50)["exact_match"][0] == 1.0


@pytest.mark.parametrize(
    "arguments",
    [
        ("sample", "--task", "gramar"), ("sample", "--split", "tset"), ("score", "absent.txt"),
        ("audit", "--reward", "blue"), ("audit", "--reward", "exact_match"), ("audit", "--n", "0"),
        ("sample", "--n", "-3"), ("sample", "--seed", "-1"), ("sample", "--task", "grammar(seed=-1)"),
        ("audit", "--reward", "bleu(n=True)"), ("audit", "--reward", "constant(value='x')"), ("sample", "--task", ":"),
        ("audit", "--reward", "tests.helpers.own_rewards:fails"), ("sample", "--task", "grammar(test_size=0)"),
        ("audit", "--task", "grammar(test_size=0)"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(capsys, arguments):
    code, out, err = run(capsys, *arguments)
    assert (code, out, err.count("\n"), err.startswith("text-gym: ")) == (2, "", 1, True)
    with pytest.raises(Exception, match=r"."):
        main([*arguments, "--debug"])


def test_the_installed_command():
    command = Path(sys.executable).with_name("text-gym")
    done = subprocess.run([command, "sample", "--n", "1"], capture_output=True, text=True, check=True)
    assert len(done.stdout.split()) >= 3
    failed = subprocess.run([command, "sampel"], capture_output=True, text=True, check=False)
    assert failed.returncode == 2


TASK = "oracle(vocab_size=12, max_length=5, train_size=96, valid_size=40, test_size=40)"
MEASURED = "--samples 20 --references 20 --temperatures 1 --sweep-samples 20 --shown 1 --points 1 --curve-samples 20"
TINY = ["--task", TASK, *MEASURED.split(), "--device", "cpu"]
MLE = ["--schedule", "2", "0.01", "--hidden", "8", "--embedding", "8", "--no-early-stopping"]
MINE = "tests.helpers.own_agents:"
OWN = """
import numpy as np

class Repeats:
    \"\"\"Repeats a training sequence.\"\"\"

    def __init__(self, env, seed=0, row=0):
        self.task, self.row = env.unwrapped.task, row

    def sample(self, n, seed=None):
        return self.task.batch("train", np.full(n, self.row))

class Breaks(Repeats):
    def learn(self):
        raise RuntimeError("out of luck")

class NoLast(Repeats):
    def sample(self):
        pass

def length(completions):
    return [float(len(text.split())) for text in completions]

def wrong(completions):
    raise KeyError("no such word")
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a small run."""
    out = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", "mle", *TINY, *MLE, "--out", str(out), "--also", "length"]) == 0
    return out


@pytest.fixture
def here(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    write("mine.py", OWN)
    return tmp_path


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
    # The same command again has nothing to do, and another one is refused.
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


def test_sample_a_run(trained, capsys):
    code, out, _ = run(capsys, "sample", str(trained), "--n", "3", "--seed", "1")
    assert code == 0
    assert out.splitlines() == load_model(trained).sample(3, seed=1).texts
    sharp = run(capsys, "sample", str(trained), "--n", "30", "--seed", "1", "--temperature", "0.01")[1]
    assert len(set(sharp.splitlines())) < 5
    assert (
        run(capsys, "sample", str(trained), "--n", "30", "--top-k", "1")[1].splitlines()[1:]
        == (run(capsys, "sample", str(trained), "--n", "30", "--top-p", "0.01")[1].splitlines()[1:])
    )
    for wrong in (["--n", "0"], ["--seed", "-1"], ["--temperature", "0"], ["--top-k", "-1"], ["--prompt", "1 2"]):
        code, out, err = run(capsys, "sample", str(trained), *wrong)
        assert (code, out, err.count("\n")) == (2, "", 1), wrong


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


def test_report_of_runs(trained, capsys, here):
    assert run(capsys, "train", "uniform", *TINY, "--out", "other")[0] == 0
    code, out, err = run(capsys, "report", str(trained), "other", "--out", "page")
    assert (code, err.count("\n")) == (2, 1)
    assert "these runs differ in metrics" in err
    assert run(capsys, "train", "uniform", *TINY, "--also", "length", "--out", "uniform")[0] == 0
    code, out, _ = run(capsys, "report", str(trained), "uniform", "--out", "page")
    assert (code, out) == (0, "page/report.html\n")
    page = (here / "page" / "report.html").read_text(encoding="utf-8")
    assert "uniform" in page
    assert "mle" in page
    for wrong in ([], ["absent"], ["mine.py"], ["uniform", "--out", "mine.py"]):
        code, out, err = run(capsys, "report", *wrong)
        assert (code, out, err.count("\n")) == (2, "", 1), wrong


def test_agents_are_listed_with_their_hyper_parameters(capsys, here):
    code, out, _ = run(capsys, "agents")
    assert code == 0
    assert all(name in out for name in ("mle", "pg-bleu", "seqgan", "uniform", "real"))
    code, out, _ = run(capsys, "agents", "seqgan")
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()[1:] if line.strip()}
    assert {"rounds", "rollouts", "hidden", "kl.weight"} <= set(rows)
    assert rows["discriminator.reward"] == ["probability", "log_ratio"]  # the default, and the preset demo
    assert out.splitlines()[0].split() == ["hyper-parameter", "default", "paper", "fast", "demo", "finetune"]
    for wrong in ("segan", "uniform", "mine.py:Repeats", "mine.py:Nobody"):
        code, out, err = run(capsys, "agents", wrong)
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
        code, out, err = run(capsys, *command)  # someone else's folder must not run someone else's code
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


@pytest.fixture
def hostile(trained, here, write):
    """Write a copy of the run with another specification; importing evil.py leaves the file marker."""
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
    with suppress(TextGymError):  # nor does what loads by name, without the check before it
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
    code, _, err = run(capsys, "train", "reinforce", *MEASURED.split(), "--start", "task")  # whose task is taken over
    assert (code, "names the Python code \"os:system(command='touch marker')\"" in err) == (2, True)
    assert not (here / "marker").exists()


def test_trust_is_not_handed_on_by_what_is_to_be_trusted(capsys, here, hostile, write, monkeypatch):
    """A run starts from another one that names code; the agent between them is registered, and no class of ours."""
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
    alone = ["reinforce", *MEASURED.split(), "--device", "cpu", *short]  # the task comes with the run
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
    assert run(capsys, *command)[::2] == (0, "")  # it has begun already
    assert run(capsys, "train", "uniform", *TINY, "--out", "noise")[::2] == (0, "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mlee"], "unknown agent 'mlee'"), (["mle", "--task", "gramar"], "Did you mean 'grammar'"),
        (["mle", *TINY, "--device", "tpu"], "device='tpu'"), (["mle", *TINY, "--preset", "strog"], "no preset 'strog'"),
        (["mle(hiden=3)", *TINY], "no hyper-parameter 'hiden'"), (["mle(", *TINY], "cannot read 'mle('"),
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
    assert (code, err) == (2, "text-gym: no checkpoint in 'run'; is the path right?\n")


LOSES = """
import shutil

calls = []

def loses(completions):
    calls.append(1)
    if len(calls) == 2:
        shutil.rmtree("lost")
    return [1.0] * len(completions)
"""


def test_a_folder_that_is_lost_is_an_error_of_the_run(capsys, here, write):
    write("loses.py", LOSES)
    words = ["--updates", "3", "--rollouts", "0", "--batch-size", "4", "--reward", "loses.py:loses", "--out", "lost"]
    code, _, err = run(capsys, "train", "reinforce", *TINY, *words)
    assert (code, err.count("\n")) == (1, 2)  # one of them says what it begins with
    assert err.splitlines()[1].startswith("text-gym: FileNotFoundError: lost/run.json is missing")


def test_a_disk_that_is_full_is_an_error_of_the_run(capsys, here):
    """No file may be larger than 9,000 bytes, so that the first checkpoint cannot be written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, before[1]))
    try:
        code, _, err = run(capsys, "train", "mle", *TINY, *MLE, "--out", "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (code, err.count("\n")) == (1, 1)
    assert "File too large" in err
    assert "File too large" in (here / "full" / "error.txt").read_text(encoding="utf-8")


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


def test_real_sequences_are_not_written_by_an_agent(capsys):
    for words in (["--temperature", "0.5"], ["--top-k", "3"], ["--prompt", "a"]):
        code, out, err = run(capsys, "sample", *words)
        assert (code, out) == (2, "")
        assert "name the folder of a run" in err


SMALL_COMPARISON = ["--controls", "--seeds", "1", "--jobs", "2", "--out", "c"]


def test_compare_reports_failures_by_its_exit_code(capsys, here, write):
    """All of it once: agents of the package and of a file, a corpus without a validation split, a failure.

    The user's own folder agents/ does not take the place of this package, in the worker processes neither.
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
    assert not (here / "c" / "real").exists()  # there are no real sequences that are not compared with
    assert (here / "c" / "uniform" / "seed-0" / "results.json").exists()
    code, out, _ = run(capsys, *[words[0], words[1], "mine.py:Breaks", *words[3:], "--no-controls"])
    assert code == 1
    assert "FAILED: Breaks, seed 0: RuntimeError: out of luck (c/Breaks/seed-0/error.txt)" in out.replace(
        "\n", " "
    ).replace("  ", " ")
    # What is refused at the last model leaves nothing of the others.
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


def _interrupted(arguments, cwd, ready):
    """The exit code and standard error of a command that Ctrl-C ends once something is ready."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "agents.cli.main", *arguments], cwd=cwd, env=environment, text=True,
        start_new_session=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    end = time.monotonic() + 60
    while not ready():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, err = process.communicate(timeout=60)
    return process.returncode, err


@pytest.mark.parametrize("command", ["train", "compare"])
def test_ctrl_c_ends_with_130_and_the_same_command_goes_on(tmp_path, command):
    folder = tmp_path / "run" if command == "train" else tmp_path / "run" / "mle" / "seed-0"
    long = ["100000", "0.001"]
    if command == "train":
        arguments = ["train", "mle", *TINY, "--schedule", *long, "--no-early-stopping", "--hidden", "4", "--out", "run"]
    else:
        arguments = ["compare", "mle", *TINY, "--mle.schedule", *long, "--mle.no-early-stopping", "--mle.hidden", "4",
                     "--out", "run", "--seeds", "1", "--no-controls", "--jobs", "1"]  # fmt: skip
    steps = lambda: max((row.get("time/step", 0) for row in read_log(folder)), default=0)  # noqa: E731
    code, err = _interrupted(arguments, tmp_path, lambda: steps() >= 3)
    assert code == 130, err
    assert "text-gym: stopped" in err
    assert "Traceback" not in err
    assert "same command" in err
    assert not (folder / "results.json").exists()
    before = steps()
    assert load_model(folder).steps_done >= before - 1
    if command == "compare":
        return  # test_comparison.py goes on
    again = Program("import sys; from agents.cli.main import main; main(sys.argv[1:])", *arguments, cwd=tmp_path)
    again.until(lambda: steps() > before + 1)
    again.kill()


def test_watch_serves_its_page_until_ctrl_c(tmp_path):
    words = ["watch", "later", "--no-open", "--port", "0"]
    program = Program(
        "import sys; from agents.cli.main import main; sys.exit(main(sys.argv[1:]))", *words, cwd=tmp_path
    )
    program.until(lambda: "\n" in program.printed())
    address = re.match(r"later is shown at (http://127\.0\.0\.1:\d+/) \(Ctrl-C", program.printed())[1]
    assert "There is no such folder yet" in urllib.request.urlopen(address, timeout=30).read().decode()
    program.interrupt()
    assert (program.wait(30), program.errors) == (0, "")
    assert list(tmp_path.iterdir()) == []


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


def test_a_corpus_with_halves_of_characters_can_be_trained_on_and_shown_on_any_terminal(here, write, monkeypatch):
    words = [r"caf\u00e9 \ud83d", r"na\u00efve \u732b", r"\ud83d\ude00 \udc00"]
    write("odd.jsonl", "\n".join(f'{{"text": "{word} {i % 7}"}}' for i in range(30) for word in words))
    shown = io.BytesIO()
    for command in (
        ["train", "mle", *TINY, *MLE, "--task", "odd.jsonl", "--out", "run"],
        ["sample", "run", "--n", "50"],
        ["sample", "--task", "odd.jsonl"],
        ["evaluate", "run", "--samples", "20"],
        ["report", "run"],
    ):
        terminal = io.TextIOWrapper(shown, encoding="ascii", write_through=True)
        monkeypatch.setattr(sys, "stdout", terminal)
        assert main(command) == 0
        terminal.detach()
    assert rb"caf\xe9" in shown.getvalue()
    assert rb"\ufffd" in shown.getvalue()
    assert "odd.jsonl" in (here / "run" / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def script():
    return completion_script("bash", COMMANDS)


ASK = """
COMP_LINE={line}
read -r -a COMP_WORDS <<< "$COMP_LINE"
[[ $COMP_LINE == *" " ]] && COMP_WORDS+=("")
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_text_gym
echo "${{COMPREPLY[@]}}"
"""


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash here")
@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("text-gym co", "compare completion"),
        ("text-gym train s", "ss seqgan"),
        ("text-gym train mle --hi", "--hidden"),
        ("text-gym train mle --no-e", "--no-early-stopping"),
        ("text-gym train mle --task g", "grammar"),
        ("text-gym train ss --see", "--seed"),
        ("text-gym train seqgan(rounds=3) --discriminator.dr", "--discriminator.dropout"),
        ("text-gym train 'seqgan(rounds=3)' --discriminator.dr", "--discriminator.dropout"),
        ("text-gym compare mle se", "seqgan"),
        ("text-gym compare mle seqgan --seqgan.ro", "--seqgan.rollout-batch-size --seqgan.rollout-ema-rate "
                                                    "--seqgan.rollouts --seqgan.rounds"),
        ("text-gym compare mle a=ppo --a.clip", "--a.clip-range"),
        ("text-gym compare mle --ppo.clip", ""),
        ("text-gym compare mle --no", "--no-controls"),
        ("text-gym agents nl", "nlpo"),
        ("text-gym evaluate runs/mle --te", "--temperature"),
        ("text-gym sample --split t", "test train"),
        ("text-gym evaluate runs/mle --also ble", "bleu"),
        ("text-gym report ", ""),
    ],
)  # fmt: skip
def test_completion(script, line, completed):
    code = script + ASK.format(line=shlex.quote(line))
    done = subprocess.run(["bash", "--norc", "-c", code], capture_output=True, text=True, check=True)
    assert (sorted(done.stdout.split()), done.stderr) == (sorted(completed.split()), "")


def test_completion_is_for_shells_that_there_are(capsys):
    code, out, _ = run(capsys, "completion", "zsh")
    assert code == 0
    assert out.startswith("autoload -U +X bashcompinit")
    code, out, err = run(capsys, "completion", "fish")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "no completion for 'fish'" in err
