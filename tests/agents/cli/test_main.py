"""The text-gym command: help, errors and exit codes."""

import io
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agents.cli.main import main
from agents.experiments.run import load_model
from agents.report.run_files import read_log
from tests.helpers.commands import MLE, TINY, run
from tests.helpers.programs import Program

ROOT = Path(__file__).parents[3]


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
        ["sample"], ["sample", "--help"], ["watch", "--help"], ["play", "--help"],
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
        "play",
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
    assert (code, err.count("\n")) == (1, 2)  # the first line describes the initial policy
    assert err.splitlines()[1].startswith("text-gym: FileNotFoundError: lost/run.json is missing")


def test_a_disk_that_is_full_is_an_error_of_the_run(capsys, here):
    """Limit the size of files to 9,000 bytes, so that the first checkpoint cannot be written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, before[1]))
    try:
        code, _, err = run(capsys, "train", "mle", *TINY, *MLE, "--out", "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (code, err.count("\n")) == (1, 1)
    assert "File too large" in err
    assert "File too large" in (here / "full" / "error.txt").read_text(encoding="utf-8")


def _interrupted(arguments, cwd, ready):
    """Interrupt a command when ready() is true; return its exit code and standard error."""
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
        return  # test_comparison.py tests how a comparison is resumed
    again = Program("import sys; from agents.cli.main import main; main(sys.argv[1:])", *arguments, cwd=tmp_path)
    again.until(lambda: steps() > before + 1)
    again.kill()


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
