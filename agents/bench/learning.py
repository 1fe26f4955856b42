"""Speed and memory of the parts of learning, compared with textbook implementations.

The sizes are SeqGAN's: batch 64, length 20, vocabulary 5000, embedding and LSTM of 32, 16 rollouts, the published
discriminator. Of slow work, only a part is measured, and the time is scaled up.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from agents.bench import textbook
from agents.bench.memory import resident_bytes
from agents.common.losses import weighted_nll
from agents.common.rollouts import rollout_values, score_sequences
from agents.networks.discriminators import CNN, Discriminator, DiscriminatorSettings
from text_gym.language_model import LSTM, generate, tune_memory
from text_gym.tasks import Task, make_task

VOCAB_SIZE = 5000
LENGTH = 20
BATCH = 64
ROLLOUTS = 16
SAMPLES = 10_000
TEXTBOOK_SAMPLES = 500  # the part of the samples that is measured for the textbook
MLE_EPOCH = 9_984  # sequences of an MLE epoch
DISCRIMINATOR_EPOCH = 19_968  # sequences of a discriminator epoch
BATCHES = 10  # the part of an epoch that is measured
Work = Callable[[], object]


class Part(NamedTuple):
    """A part of learning, with two functions that return the work to measure and the factor to scale its time by."""

    name: str
    tokens: int
    target: str
    ours: Callable[[], tuple[Work, float]]
    textbook: Callable[[], tuple[Work, float]]


class Result(NamedTuple):
    """Seconds of both implementations, and the increase of their peak memory in MiB."""

    name: str
    tokens: int
    target: str
    ours: float
    textbook: float
    memory: tuple[float, float]


def measure(seconds_of: Callable[[Work], float]) -> list[Result]:
    """Measure all parts; `seconds_of` runs a function several times and returns the shortest time."""
    tune_memory()
    results = []
    for key, part in PARTS.items():
        times = []
        for make in (part.ours, part.textbook):
            work, factor = make()
            times.append(seconds_of(work) * factor)
        memory = _memory_of(key, "ours"), _memory_of(key, "textbook")
        results.append(Result(part.name, part.tokens, part.target, times[0], times[1], memory))
    return results


def peak_memory(key: str, side: str) -> float:
    """Return the increase of the peak memory by a part of learning, in MiB; call it in a new process."""
    part = PARTS[key]
    tune_memory()
    _load_libraries()
    work, _ = part.ours() if side == "ours" else part.textbook()
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        allocated = torch.cuda.memory_allocated()
        work()
        return float(torch.cuda.max_memory_allocated() - allocated) / 2**20
    before = resident_bytes("VmRSS")
    work()
    return max(0.0, (resident_bytes("VmHWM") - before) / 2**20)


def _load_libraries() -> None:
    """Run one operation of each kind, so that the memory of libraries that torch loads on first use is not counted."""
    linear, kernel = nn.Linear(64, 64, device=DEVICE), nn.Conv2d(1, 4, (3, 8), device=DEVICE)
    for kind in (torch.float32, torch.bfloat16):
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=kind == torch.bfloat16):
            values = linear(torch.ones(64, 64, device=DEVICE)).softmax(dim=1)
            (values.sum() + kernel(values[None, None]).float().sum()).backward()
    torch.optim.Adam([*linear.parameters(), *kernel.parameters()], fused=True).step()


def _memory_of(key: str, side: str) -> float:
    code = f"from agents.bench.learning import peak_memory; print(peak_memory({key!r}, {side!r}))"
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _model() -> LSTM:
    model = LSTM(VOCAB_SIZE)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    return model.to(DEVICE)


def _generator() -> torch.Generator:
    return torch.Generator(DEVICE).manual_seed(0)


def _task() -> Task:
    return make_task("oracle", vocab_size=VOCAB_SIZE, train_size=1, valid_size=1, test_size=1)


def _synchronised(work: Work) -> Work:
    """Return the work followed by a synchronisation of the GPU."""

    def whole() -> None:
        work()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    return whole


def _sample() -> tuple[Work, float]:
    model, generator = _model(), _generator()
    return _synchronised(lambda: generate(model, SAMPLES, LENGTH, None, generator)), 1


def _textbook_sample() -> tuple[Work, float]:
    model, empty = _model(), torch.zeros(TEXTBOOK_SAMPLES, 0, dtype=torch.long, device=DEVICE)
    return _synchronised(lambda: textbook.complete(model, empty, LENGTH)), SAMPLES / TEXTBOOK_SAMPLES


def _mle() -> tuple[Work, float]:
    weights = torch.full((BATCH, LENGTH), 1 / (BATCH * LENGTH), device=DEVICE)
    return _epoch(lambda model, tokens: weighted_nll(model, tokens, weights)[0], fused=True)


def _textbook_mle() -> tuple[Work, float]:
    return _epoch(textbook.likelihood_loss, fused=None)


def _epoch(loss: Callable[[LSTM, Tensor], Tensor], fused: bool | None) -> tuple[Work, float]:
    model = _model()
    tokens = generate(model, BATCH, LENGTH, None, _generator()).tokens
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=fused)

    def part() -> None:
        for _ in range(BATCHES):
            optimizer.zero_grad()
            loss(model, tokens).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()

    return _synchronised(part), MLE_EPOCH / BATCH / BATCHES


def _rollouts() -> tuple[Work, float]:
    model, generator, discriminator = _model(), _generator(), Discriminator(_task(), LENGTH, device=DEVICE)
    tokens = generate(model, BATCH, LENGTH, None, generator).tokens
    lengths = torch.full((BATCH,), LENGTH, device=DEVICE)

    score = score_sequences(discriminator.score, discriminator.task.vocab, None)
    return _synchronised(lambda: rollout_values(model, tokens, lengths, score, ROLLOUTS, None, generator, chunk=512)), 1


def _textbook_cnn() -> textbook.TextbookCNN:
    return textbook.TextbookCNN(CNN(VOCAB_SIZE + 2, VOCAB_SIZE, LENGTH, DiscriminatorSettings()))


def _textbook_rollouts() -> tuple[Work, float]:
    model, network = (
        _model(),
        _textbook_cnn().to(DEVICE).eval(),
    )
    tokens = generate(model, BATCH, LENGTH, None, _generator()).tokens

    def score(completed: Tensor) -> Tensor:
        with torch.no_grad():
            return network(completed).softmax(dim=1)[:, 1]  # type: ignore[no-any-return]

    return _synchronised(lambda: textbook.rollout_rewards(model, tokens, score, 1)), ROLLOUTS


def _rows() -> tuple[Tensor, Tensor]:
    rows = torch.randint(VOCAB_SIZE, (BATCHES * BATCH, LENGTH), generator=_generator(), device=DEVICE)
    return rows, torch.arange(len(rows), device=DEVICE) % 2


def _discriminator() -> tuple[Work, float]:
    discriminator, (rows, classes) = Discriminator(_task(), LENGTH, device=DEVICE), _rows()
    real, generated = rows[classes == 1], rows[classes == 0]
    work = _synchronised(lambda: discriminator.train_epoch(real, generated, _generator()))
    return work, DISCRIMINATOR_EPOCH / len(rows)


def _textbook_discriminator() -> tuple[Work, float]:
    network, (rows, classes) = (
        _textbook_cnn().to(DEVICE),
        _rows(),
    )
    optimizer = torch.optim.Adam(network.parameters(), 1e-4)

    def part() -> None:
        for chosen in torch.randperm(len(rows), device=DEVICE).view(-1, BATCH):
            float(textbook.discriminator_step(network, optimizer, rows[chosen], classes[chosen]))

    return _synchronised(part), DISCRIMINATOR_EPOCH / len(rows)


PARTS = {
    "sample": Part(f"sample {SAMPLES:,} sequences", SAMPLES * LENGTH, "at least 20", _sample, _textbook_sample),
    "mle": Part(f"one MLE epoch of {MLE_EPOCH:,}", MLE_EPOCH * LENGTH, "at least 1.8", _mle, _textbook_mle),
    "rollouts": Part(
        f"rollout rewards, {ROLLOUTS} for each of {BATCH} x {LENGTH}",
        BATCH * ROLLOUTS * LENGTH * (LENGTH - 1) // 2,
        "at least 10",
        _rollouts,
        _textbook_rollouts,
    ),
    "discriminator": Part(
        f"one discriminator epoch of {DISCRIMINATOR_EPOCH:,}",
        DISCRIMINATOR_EPOCH * LENGTH,
        "at least 2",
        _discriminator,
        _textbook_discriminator,
    ),
}
