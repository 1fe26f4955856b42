"""The SeqGAN that students read first is the SeqGAN of `agents`: the same weights after a whole run."""

import ast
import re
import sys
import types
from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

import text_gym
from agents import MLE, Reinforce, SeqGAN
from tests.helpers.models import assert_counts_fit
from tests.helpers.programs import run
from text_gym.language_model import draw_tokens

PROGRAM = Path(__file__).parents[1] / "examples" / "seqgan_from_scratch.py"
SOURCE = PROGRAM.read_text(encoding="utf-8")
TASK = "oracle(vocab_size=20, max_length=6, train_size=100, valid_size=10, test_size=50)"
SIZE = 20
ADAM = partial(torch.optim.Adam, eps=1e-3)  # with the usual 1e-8, a gradient that is only rounding makes a whole step
SMALL = (
    f"--task {TASK.replace(' ', '')} --pretrain-epochs 2 --pretrain-d-steps 1 --rounds 2 --rollouts 3 --d-epochs 2 "
    "--d-samples 40 --report-every 1 --samples 50"
).split()


def load(source=SOURCE):
    """Import the program."""
    module = types.ModuleType("seqgan_from_scratch")
    exec(compile(source, str(PROGRAM), "exec"), module.__dict__)
    return module


@pytest.fixture(scope="module")
def example():
    return load()


class GlobalRandom:
    """A numpy generator whose random numbers come from torch's global generator."""

    def permutation(self, n):
        return torch.randperm(n).numpy()

    def integers(self, _):
        return 0


def with_global_random_numbers(agent):
    """Let an agent take all its random numbers from torch's global generator, as the program does."""
    agent.numpy_random = lambda *_: GlobalRandom()
    agent.torch_random = lambda _: torch.default_generator
    agent.randomness = lambda *_: nullcontext()
    return agent


def as_in_the_program(network):
    """Weights of the CNN of `agents` by their names in the program."""
    theirs = network.state_dict()
    weights = {name: theirs[name] for name in ("output.weight", "output.bias")}
    weights["embed.weight"] = theirs["embed.weight"][:SIZE]  # without padding and separator
    for number, width in enumerate(network.widths):
        windows = theirs[f"convolutions.{number}.weight"]  # [filters, width * E]
        weights[f"convolutions.{number}.weight"] = windows.unflatten(1, (width, -1)).transpose(1, 2)
        weights[f"convolutions.{number}.bias"] = theirs[f"convolutions.{number}.bias"]
    for part, name in enumerate(("transform", "gate")):
        weights[f"{name}.weight"] = theirs["highway.weight"].chunk(2)[part]
        weights[f"{name}.bias"] = theirs["highway.bias"].chunk(2)[part]
    return weights


def difference(ours, theirs):
    """Largest difference between the weights of two networks."""
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def run_agents(reward, baseline, filters):
    """Run MLE and SeqGAN of `agents`, or REINFORCE on a constant reward. Returns the initial weights, and the run's."""
    spec = "constant(value=0.5)" if reward == "constant" else "bleu"
    env = gym.make("TextGen-v0", task=TASK, reward=spec)
    sizes = {"embedding": 32, "hidden": 32, "seed": 1, "progress": False}
    mle = MLE(env, dropout=0.0, schedule=((2, 1e-2),), early_stopping=False, **sizes)
    discriminator = {"filters": filters, "learning_rate": 1e-3, "bfloat16": False}
    options = {"baseline": baseline, "loss": "sum", "learning_rate": 1e-2, "rollouts": 3, "start": mle, **sizes}
    seqgan = SeqGAN(env, discriminator=discriminator, pretrain_d_steps=1, d_epochs=2, d_samples=40, **options)
    network = seqgan.discriminator.network
    initial = [{k: v.clone() for k, v in w.items()} for w in (mle.policy.state_dict(), as_in_the_program(network))]
    learner = seqgan if reward == "discriminator" else Reinforce(env, **options)
    for agent in (mle, seqgan, learner):
        with_global_random_numbers(agent)
    torch.manual_seed(0)
    mle.learn()
    seqgan.load_policy(mle.policy)
    learner.load_policy(mle.policy)
    pretrained = {name: weight.clone() for name, weight in mle.policy.state_dict().items()}
    seqgan.learn(0)
    torch.manual_seed(0)
    learner.learn(2)
    return initial, (pretrained, learner.policy.state_dict(), as_in_the_program(network))


def run_program(example, reward, baseline, initial, monkeypatch):
    """Run the program from initial weights, and get the weights of its generator and discriminator."""
    generator, discriminator = example.Generator(SIZE), example.Discriminator(SIZE, example.FILTERS["small"])
    for network, weights in zip((generator, discriminator), initial, strict=True):
        network.load_state_dict(weights)
    seen = {}

    def watch(phase, step, network, *_):
        seen[phase, step] = {name: weight.clone() for name, weight in network.state_dict().items()}

    train = example.train_discriminator

    def watch_discriminator(network, *arguments):
        train(network, *arguments)
        seen["discriminator"] = network.state_dict()

    monkeypatch.setattr("torch.optim.Adam", ADAM)
    monkeypatch.setattr(example, "Generator", lambda *_: generator)
    monkeypatch.setattr(example, "Discriminator", lambda *_: discriminator)
    monkeypatch.setattr(example, "report", watch)
    monkeypatch.setattr(example, "train_discriminator", watch_discriminator)
    monkeypatch.setattr(example, "sample_token", lambda logits: draw_tokens(logits)[0][:, None])
    example.main(example.parse_arguments([*SMALL, "--reward", reward, "--baseline", baseline]))
    return seen["pretraining", 2], seen[reward, 2], seen["discriminator"]


def largest_difference(ours, theirs):
    return max(difference(*pair) for pair in zip(ours, theirs, strict=True))


@pytest.fixture(scope="module")
def agents_run(example):
    """What run_agents() returns for a reward and a baseline."""
    filters = tuple(example.FILTERS["small"].items())

    @cache
    def agents_run(reward, baseline):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("torch.optim.Adam", ADAM)
            patched.setattr("agents.seqgan.HELD_OUT", 0)  # no samples to measure the discriminator's accuracy with
            return run_agents(reward, baseline, filters)

    return agents_run


@pytest.mark.parametrize("baseline", ["none", "leave_one_out"])
@pytest.mark.parametrize("reward", ["discriminator", "constant"])
def test_a_run_gives_the_weights_that_agents_gives(agents_run, monkeypatch, reward, baseline):
    """Pretraining, rollouts, updates of the generator and of the discriminator, from the same random numbers."""
    initial, theirs = agents_run(reward, baseline)
    ours = run_program(load(), reward, baseline, initial, monkeypatch)
    assert largest_difference(ours, theirs) < 1e-5
    learned = difference(ours[1], ours[0])  # after its pretraining
    assert learned == 0 if (reward, baseline) == ("constant", "leave_one_out") else learned > 1e-3


MISTAKES = {
    "a rollout begins one token early": ("tokens[:, :t].repeat", "tokens[:, : t - 1].repeat"),
    "a value belongs to the next token": ("values[:, t - 1] =", "values[:, t] ="),
    "the last token has the value of a rollout": ("values[:, length - 1] = reward(tokens)", ""),
    "rollouts are mixed up": ("repeat_interleave(rollouts, dim=0)", "repeat(rollouts, 1)"),
    "the baseline is missing": ("values = values - (values.sum(", "values = 0 * values + values - 0 * (values.sum("),
    "the baseline includes the sequence itself": (" - values) / (len(values) - 1)", ") / len(values)"),
    "the loss is a mean": ("log_prob(tokens)).sum()", "log_prob(tokens)).mean()"),
    "the gradient is not clipped": ("nn.utils.clip_grad_norm_", "_ = "),
    "the rollout policy is never updated": ("rollout_policy.load_state_dict", "_ = "),
    "the classes are swapped": ("[REAL] * len(positive) + [GENERATED]", "[GENERATED] * len(positive) + [REAL]"),
    "the reward is the wrong class": ("[:, REAL]", "[:, GENERATED]"),
    "rewards are computed with dropout": ("        self.eval()\n", ""),
    "the penalty is twice as large": ("square().sum()) / 2", "square().sum())"),
    "the gate of the highway layer is swapped": ("relu() + (1 - gate) *", "relu() * 0 + gate *"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_comparison_finds_a_mistake(agents_run, monkeypatch, mistake):
    right, wrong = MISTAKES[mistake]
    assert SOURCE.count(right) == 1
    initial, theirs = agents_run("discriminator", "leave_one_out")
    broken = load(SOURCE.replace(right, wrong))
    ours = run_program(broken, "discriminator", "leave_one_out", initial, monkeypatch)
    assert largest_difference(ours, theirs) > 1e-4


def test_it_samples_with_the_probabilities_that_it_computes(example):
    torch.manual_seed(0)
    generator = example.Generator(3, 4, 4)
    for parameter in generator.parameters():
        torch.nn.init.normal_(parameter)
    everything = torch.cartesian_prod(*[torch.arange(3)] * 3)
    counts = torch.bincount(generator.sample(9_000, 3) @ torch.tensor([9, 3, 1]), minlength=27)
    expected = 9_000 * generator.log_prob(everything).sum(dim=1).exp().detach()
    assert_counts_fit(counts, expected)
    prefixes = torch.tensor([[2, 1], [0, 2]])
    assert (generator.complete(prefixes, 3)[:, :2] == prefixes).all()


def test_a_small_run_prints_a_table_and_repeats_it(example, tmp_path, capsys):
    arguments = [*SMALL, "--reward", "discriminator", "constant", "random"]
    table = run(PROGRAM, *arguments, cwd=tmp_path)
    rows = [line.split() for line in table.splitlines()]
    assert rows[0] == ["phase", "step", "NLL-oracle", "NLL-test"]
    phases = ("pretraining", "discriminator", "constant", "random")
    assert [row[:2] for row in rows[1:]] == [[phase, step] for phase in phases for step in "12"]
    assert np.isfinite([[float(number) for number in row[2:]] for row in rows[1:]]).all()
    assert len({tuple(row[2:]) for row in rows[1:]}) == 8
    example.main(example.parse_arguments(arguments))
    assert capsys.readouterr().out == table


def test_its_figures_are_those_of_the_task(example, capsys):
    task = text_gym.make_task(TASK)
    generator = example.Generator(SIZE)
    torch.manual_seed(0)
    example.report("phase", 7, generator, task, 30)
    phase, step, nll_oracle, nll_test = capsys.readouterr().out.split()
    torch.manual_seed(0)
    samples = generator.sample(30, 6)
    assert (phase, step) == ("phase", "7")
    assert float(nll_oracle) == pytest.approx(-task.log_prob(samples).mean() / 6, abs=5e-4)
    test = torch.from_numpy(task.batch("test").tokens)
    assert float(nll_test) == pytest.approx(-generator.log_prob(test).mean().item(), abs=5e-4)


def test_a_task_without_a_known_likelihood_is_refused(example):
    for task in ("grammar(train_size=50)", "answers(size=50)"):
        with pytest.raises(SystemExit, match="no variant of the oracle"):
            example.main(example.parse_arguments(["--task", task]))


def test_it_is_short_and_imports_nothing_of_agents():
    assert 250 <= len(SOURCE.splitlines()) <= 300
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(SOURCE))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert imported <= {"torch", "numpy", "text_gym", *sys.stdlib_module_names}


def test_every_line_of_algorithm_1_is_named():
    """The lines that say "for" and "end for" are those of a loop that is named."""
    named = set()
    for first, last in re.findall(r"\blines? (\d+)(?:(?: to | and )(\d+))?", SOURCE[SOURCE.index("def main") :]):
        named |= set(range(int(first), int(last or first) + 1))
    assert named >= set(range(1, 20)) - {13, 17}
