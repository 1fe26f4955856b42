"""Run the text-gym command in this process; arguments and agents for small runs."""

from agents.cli.main import main

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


def run(capsys, *arguments):
    """Run a command; return its exit code, standard output and standard error."""
    code = main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err
