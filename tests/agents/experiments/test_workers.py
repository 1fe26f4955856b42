"""Worker processes: where they find modules."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agents.experiments.run import prepare_run
from agents.experiments.settings import MetricSettings, RunSpec

ROOT = Path(__file__).parents[3]
TASK = "oracle(vocab_size=9, max_length=4, train_size=64, valid_size=9, test_size=9)"
SMALL = MetricSettings(samples=9, references=9, temperatures=(), sweep_samples=9, shown=0, points=0, curve_samples=9)
PROGRAM = """
import sys
from pathlib import Path
from agents.experiments.workers import LocalPool

Path("imported").open("a").write(__name__)
sys.path.append(str(Path.cwd()))  # as the command does
pool = LocalPool(1)
pool.begin(Path("out"))
print(pool.wait(60))
pool.close()
"""


@pytest.fixture
def strays(tmp_path):
    """Folder with files named like modules; importing one creates the file marker-<name>."""
    folder = tmp_path / "here"
    folder.mkdir()
    for name in ("gymnasium", "jinja2", "queue", "keyword"):
        (folder / f"{name}.py").write_text(f"open('marker-{name}', 'w')\nraise RuntimeError('the wrong {name}')\n")
    (folder / "mine.py").write_text("from tests.helpers.own_agents import OnlySamples\n")
    return folder


def run(folder, *command):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert not list(folder.glob("marker-*"))
    return done


def test_files_in_the_working_directory_do_not_replace_modules_of_workers(strays, write):
    """Only the module of module:attribute is imported from there.

    The program itself is not imported again.
    """
    prepare_run(strays / "out", RunSpec("own", "mine:OnlySamples", task=TASK, metrics=SMALL))
    done = run(strays, sys.executable, write("program.py", PROGRAM))
    assert done.stdout == "[(PosixPath('out'), None)]\n", done.stderr
    assert (strays / "out" / "results.json").exists()
    assert (strays / "imported").read_text(encoding="utf-8") == "__main__"


def test_nor_modules_of_the_command(strays):
    words = ["sample", "--n", "1"]
    assert run(strays, Path(sys.executable).with_name("text-gym"), *words).returncode == 0
    (strays / "keyword.py").unlink()  # Python imports it before the package
    assert run(strays, sys.executable, "-m", "text_gym", *words).returncode == 0
