"""`text-gym bench`: the speed of environments and BLEU on this machine, compared with other implementations."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from rich.console import Console
from rich.table import Table

import text_gym
from text_gym.bleu import Bleu, self_bleu
from text_gym.tasks.grammar import Grammar

REPEATS = 5
NUM_ENVS = 1024
BATCH = 1024


class Row(NamedTuple):
    """A row of the first table."""

    name: str
    ours: str
    theirs: str
    ratio: str
    target: str


def run(console: Console) -> None:
    """Measure everything, and print three tables."""
    table = Table(
        "measurement", "text_gym", "compared with", "ratio", "target",
        title=f"text_gym {text_gym.__version__}, best of {REPEATS}", title_justify="left",
    )  # fmt: skip
    table.columns[0].no_wrap = True
    for measure in (import_time, scalar_steps, vector_steps, bleu_of_batches, self_bleu_of_2000, million_lines):
        with console.status(measure.__name__.replace("_", " ")):
            rows = measure()
        for row in rows:
            table.add_row(*row)
    console.print(table)
    with console.status("PPO"):
        console.print(ppo())
    with console.status("learning"):
        console.print(learning())


def best(work: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Return the shortest time of several runs, in seconds."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def import_time() -> list[Row]:
    """Measure a new process that makes an environment, compared with one that only imports gymnasium."""
    ours = best(lambda: _python("import gymnasium as gym, text_gym; gym.make('TextGen-v0')"))
    theirs = best(lambda: _python("import gymnasium"))
    name = "import and make / import gymnasium"
    return [Row(name, f"{ours * 1e3:.0f} ms", f"{theirs * 1e3:.0f} ms", f"{ours / theirs:.2f}", "at most 1.5")]


def scalar_steps() -> list[Row]:
    """Measure the time per step of the unwrapped scalar environment over whole episodes, including resets."""
    ours = gym.make("TextGen-v0", reward="constant").unwrapped
    theirs = gym.make("CartPole-v1").unwrapped
    ours_us, theirs_us = 1e6 * _scalar_step(ours), 1e6 * _scalar_step(theirs)
    name = "one step, scalar / CartPole-v1"
    return [Row(name, f"{ours_us:.2f} us", f"{theirs_us:.2f} us", f"{ours_us / theirs_us:.2f}", "at most 1")]


def _scalar_step(env: gym.Env[Any, Any], steps: int = 20_000) -> float:
    assert isinstance(env.action_space, gym.spaces.Discrete)
    actions = np.random.default_rng(0).integers(0, env.action_space.n, steps).tolist()

    def play() -> None:
        env.reset(seed=0)
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()

    return best(play) / steps


def vector_steps() -> list[Row]:
    """Measure steps per second of 1,024 parallel environments, with sequences of equal and of different lengths."""
    theirs = _vector_steps(gym.make_vec("CartPole-v1", num_envs=NUM_ENVS))
    rows = []
    for task, mode in (("oracle", "NextStep"), ("oracle", "SameStep"), ("grammar", "SameStep")):
        envs = gym.make_vec("TextGen-v0", num_envs=NUM_ENVS, task=task, reward="constant", autoreset_mode=mode)
        ours = _vector_steps(envs)
        name = f"{NUM_ENVS:,} environments, {task}, {mode} / CartPole"
        rows.append(Row(name, f"{ours / 1e6:.1f} M/s", f"{theirs / 1e6:.1f} M/s", f"{ours / theirs:.2f}", "at least 1"))
    return rows


def _vector_steps(envs: gym.vector.VectorEnv[Any, Any, Any], steps: int = 1050) -> float:
    assert isinstance(envs.single_action_space, gym.spaces.Discrete)
    random = np.random.default_rng(0)
    actions = [random.integers(0, envs.single_action_space.n, envs.num_envs) for _ in range(50)]
    envs.reset(seed=0)

    def play() -> None:
        for step in range(steps):
            envs.step(actions[step % 50])

    return steps * envs.num_envs / best(play)


def _sentences() -> tuple[list[list[int]], list[list[int]]]:
    """Sample references and hypotheses of about ten words."""
    source = Grammar(min_words=7)
    return source.sample(10_000, seed=1).sentences, source.sample(10 * BATCH, seed=2).sentences


def bleu_of_batches() -> list[Row]:
    """Measure BLEU-4 against 10,000 references, in batches of 1,024."""
    references, hypotheses = _sentences()
    bleu = Bleu(references)
    batches = [hypotheses[i : i + BATCH] for i in range(0, len(hypotheses), BATCH)]
    ours = len(hypotheses) / best(lambda: [bleu.score(batch) for batch in batches])
    words = float(np.mean([len(s) for s in hypotheses]))
    name, target = f"BLEU-4, {words:.0f} words, 10,000 references / fast-bleu", "at least 3, 100,000 /s"
    fast_bleu = _fast_bleu()
    if fast_bleu is None:
        return [Row(name, f"{ours:,.0f} /s", "not installed", "-", target)]
    other = fast_bleu.BLEU(_as_text(references), {"bleu": (0.25,) * 4})
    texts = [_as_text(batch) for batch in batches]
    theirs = len(hypotheses) / best(lambda: [other.get_score(batch) for batch in texts], repeats=3)
    return [Row(name, f"{ours:,.0f} /s", f"{theirs:,.0f} /s", f"{ours / theirs:.1f}", target)]


def self_bleu_of_2000() -> list[Row]:
    """Measure self-BLEU-4 of 2,000 sentences."""
    _, hypotheses = _sentences()
    sentences = hypotheses[:2000]
    ours = best(lambda: self_bleu(sentences))
    name, fast_bleu = "self-BLEU-4 of 2,000 / fast-bleu", _fast_bleu()
    if fast_bleu is None:
        return [Row(name, f"{ours * 1e3:.0f} ms", "not installed", "-", "above 1")]
    texts = _as_text(sentences)
    theirs = best(lambda: fast_bleu.SelfBLEU(texts, {"bleu": (0.25,) * 4}).get_score(), repeats=3)
    return [Row(name, f"{ours * 1e3:.0f} ms", f"{theirs * 1e3:.0f} ms", f"{theirs / ours:.0f}", "above 1")]


def ppo() -> Table:
    """Measure Stable-Baselines3's PPO on the vector environment, compared with scalar environments."""
    from agents.bench.ppo import measure

    table = Table(
        "measurement", "text_gym", "scalar environments", "ratio", "target",
        title="PPO, transitions per second", title_justify="left",
    )  # fmt: skip
    for row in measure():
        table.add_row(row.name, f"{row.ours:,.0f}", f"{row.theirs:,.0f}", f"{row.ours / row.theirs:.1f}", row.target)
    return table


def learning() -> Table:
    """Measure the parts of learning, compared with textbook implementations."""
    from agents.bench.learning import DEVICE, measure

    table = Table(
        "measurement", "agents", "textbook", "ratio", "target", "tokens per second", "memory, agents and textbook",
        title=f"learning on {DEVICE.type}, at SeqGAN's sizes, best of 3", title_justify="left",
    )  # fmt: skip
    for row in measure(lambda run: best(run, repeats=3)):
        ratio, speed = row.textbook / row.ours, row.tokens / row.ours
        memory = " and ".join(f"{mib:,.0f} MiB" for mib in row.memory)
        table.add_row(
            row.name,
            f"{row.ours:.2f} s",
            f"{row.textbook:.1f} s",
            f"{ratio:.1f}",
            row.target,
            f"{speed:,.0f}",
            memory,
        )
    return table


def million_lines() -> list[Row]:
    """Measure loading a million lines of ten words, with an empty cache and with a cache."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "million.txt"
        _write_lines(path, 1_000_000)
        code = (
            "import os, time, text_gym\n"
            f"os.environ['TEXT_GYM_CACHE'] = {folder!r}\n"
            f"t = time.perf_counter(); text_gym.make_task({str(path)!r}); t = time.perf_counter() - t\n"
            "from agents.bench.memory import resident_bytes\n"
            "print(t, resident_bytes('VmHWM'))"
        )
        rows = []
        for when in ("first", "cached"):
            seconds, peak = map(float, _python(code).split())
            name = f"load 1,000,000 lines of 10 words, {when}"
            rows.append(Row(name, f"{seconds:.1f} s, {peak / 2**20:.0f} MiB", "-", "-", "under 20 s, 1 GB"))
    return rows


def _write_lines(path: Path, count: int) -> None:
    """Write lines of ten words with a Zipf distribution, as in natural text."""
    random = np.random.default_rng(0)
    words = np.array([f"word{i}" for i in range(50_000)])
    with path.open("w", encoding="utf-8") as file:
        for start in range(0, count, 100_000):
            ranks = np.minimum(random.zipf(1.2, (min(100_000, count - start), 10)), len(words)) - 1
            file.writelines(" ".join(row) + "\n" for row in words[ranks].tolist())


def _python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def _fast_bleu() -> Any:
    try:
        import fast_bleu  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError:
        return None
    return fast_bleu


def _as_text(sentences: list[list[int]]) -> list[list[str]]:
    return [[str(token) for token in sentence] for sentence in sentences]
