"""Progress of a comparison on the terminal."""

import io
import json
import time

import pytest
from rich.console import Console

from agents.cli.progress import Display
from agents.experiments.run import prepare_run, write_json
from agents.experiments.scheduler import Progress
from agents.experiments.settings import RunSpec
from agents.report.run_files import NOW, RESULTS


@pytest.fixture
def folders(tmp_path):
    found = []
    for seed in (0, 1):
        for label in ("mle", "seqgan"):
            found.append(tmp_path / label / f"seed-{seed}")
            prepare_run(found[-1], RunSpec(label, label, seed=seed))
    return found


def said(display, *steps):
    display.console.file = io.StringIO()
    for progress in steps:
        display(progress)
    return display.console.file.getvalue().splitlines()


def test_without_a_terminal_there_is_a_plan_a_line_for_each_end_and_one_in_every_minute(folders):
    display = Display(Console(file=io.StringIO(), width=60), silence=0.0)
    progress = Progress(folders)
    progress.jobs = 2
    assert said(display, progress) == [
        "4 runs (2 models, 2 seeds), 2 in parallel; the time left is estimated after the first steps of each model"
    ]
    progress.begin(folders[0])
    write_json(folders[0] / NOW, {"doing": "learning", "step": 3, "of": 60})
    progress.look()
    assert said(display, progress) == ["0:00  0/4  mle, seed 0: step 3 of 60"]
    progress.end(folders[0], None)
    assert said(display, progress, progress) == [
        "0:00  1/4  mle, seed 0: finished; about 0:00 left (1 model not timed yet)"
    ]
    progress.begin(folders[1])
    progress.end(folders[1], "out of luck")
    (line,) = said(display, progress)
    assert line.startswith("0:00  2/4  seqgan, seed 0: FAILED: out of luck; about ")
    display.silence = 60.0
    progress.begin(folders[2])
    assert said(display, progress) == []


def test_the_first_steps_of_a_model_tell_at_once_how_long_it_takes(folders, monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    display = Display(Console(file=io.StringIO(), width=60))
    progress = Progress(folders)
    said(display, progress)
    progress.begin(folders[0])
    found = []
    for step in range(1, 6):
        write_json(folders[0] / NOW, {"doing": "learning", "step": step, "of": 61})
        progress.look()
        found += said(display, progress)
        now += 1
    # At one step per second, 58 seconds are left of this run, and 60 for the other one of mle and each of seqgan.
    assert found == ["0:02  0/4  mle, seed 0: step 3 of 61; about 3:58 left (1 model not timed yet)"]


def test_what_finished_before_tells_how_long_the_rest_takes(folders):
    times = {"started": "2026-01-05T10:00:00+00:00", "finished": "2026-01-05T10:10:00+00:00"}
    for folder in folders[:2]:
        (folder / RESULTS).write_text(json.dumps(times), encoding="utf-8")
    progress = Progress(folders)
    assert said(Display(Console(file=io.StringIO())), progress) == [
        "4 runs (2 models, 2 seeds), 1 in parallel, 2 finished before; about 20:00 left"
    ]
    for folder in folders[2:]:
        (folder / RESULTS).write_text(json.dumps(times), encoding="utf-8")
    assert said(Display(Console(file=io.StringIO())), Progress(folders)) == [
        "4 runs (2 models, 2 seeds), 1 in parallel, 4 finished before"
    ]
