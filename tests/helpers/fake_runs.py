"""Run files of a small comparison with invented, deterministic numbers."""

import json
import math
import random
from pathlib import Path

from agents.report.run_files import ERROR, FORMAT, RESULTS, RUN, SAMPLES

# label, kind, initial policy, words, excess probability (KL(model, data)), missing probability (KL(data, model))
MODELS = [
    ("mle", "agent", None, "", 0.55, 0.40),
    ("ss", "agent", "mle", "", 0.52, 0.47),
    ("pg-bleu", "agent", "mle", "", 0.25, 1.30),
    ("seqgan", "agent", "mle", "", 0.31, 0.62),
    ("constant", "control", "mle", "a constant reward", 0.30, 0.60),
    ("random", "control", "mle", "a random reward", 0.34, 0.66),
    ("mle-early", "control", None, "likelihood stopped early", 0.90, 0.80),
    ("uniform", "control", None, "uniform noise", math.inf, 2.40),
    ("real", "reference", None, "real data", 0.0, 0.0),
]
CONTROLS_FOR = {
    "constant": ["pg-bleu", "seqgan"],
    "random": ["pg-bleu", "seqgan"],
    "mle-early": ["ss", "pg-bleu", "seqgan"],
    "uniform": ["ss", "pg-bleu", "seqgan"],
}
TEMPERATURES = (0.5, 0.75, 1.0, 1.25)
WORDS = ["the", "cat", "<script>alert(1)</script>", "“naïve”", "猫", "&amp;", "sat", "|", "*down*"]
FAILED, UNFINISHED = ("ss", 2), ("random", 2)


def write_fake_runs(
    folder, seeds=(0, 1, 2), labels=None, sweep=True, curves=True, samples=True, sourced=True, broken=True
):
    """Write the runs of these labels (default: all) to a folder, and return the folder.

    Args:
        sourced: Whether the task has a known source; without one, there is no NLL-oracle.
        broken: Whether one run has failed and one is unfinished.
    """
    for order, (label, kind, start, words, adds, leaves) in enumerate(MODELS):
        if labels is not None and label not in labels:
            continue
        for seed in seeds:
            draw = random.Random(f"{label} {seed}")
            run = Path(folder) / label / f"seed-{seed}"
            run.mkdir(parents=True)
            _write(run / RUN, _spec(order, label, kind, start, words, seed))
            noise = random.Random(seed).uniform(-0.03, 0.03) + draw.uniform(-0.003, 0.003)  # of the seed, of the run
            if curves and kind != "reference" and label not in ("uniform", "mle-early"):
                _write_curve(run, start, adds + noise, leaves + noise, sourced)
            if broken and (label, seed) == FAILED:
                (run / ERROR).write_text("TrainingError: the loss is <nan> at step 3\n", encoding="utf-8")
            if broken and (label, seed) in (FAILED, UNFINISHED):
                continue
            _write(run / RESULTS, _results(kind, draw, adds + noise, leaves + noise, sweep, sourced))
            if samples:
                _write(run / SAMPLES, [_sample(draw, kind) for _ in range(3)])
    return Path(folder)


def _spec(order, label, kind, start, words, seed):
    return {
        "format": FORMAT,
        "label": label,
        "kind": kind,
        "order": order,
        "seed": seed,
        "agent": label if kind == "agent" else None,
        "task": "oracle",
        "preset": "fast",
        "options": {"ss": {"lr": 0.01}, "constant": {"reward": "constant"}, "random": {"reward": "random"}}.get(
            label, {}
        ),
        "reward": None,
        "start": start,
        "begins_with": "" if label in ("uniform", "real") else start or "random weights",
        "baseline": "mle",
        "controls_for": CONTROLS_FOR.get(label, []),
        "trivial": label == "uniform",
        "words": words,
        "command": "text-gym compare mle ss pg-bleu seqgan --task oracle --seeds 3 --out runs/table1",
        "metrics": {"samples": 9984, "references": 1000, "temperatures": list(TEMPERATURES)},
    }


def _figures(kind, adds, leaves, sourced, temperature=1.0):
    """Figures at a temperature; a lower temperature adds less probability and leaves out more."""
    adds, leaves = adds * temperature, leaves / temperature
    figures = {"bleu4": 0.6 - 0.3 * min(adds, 1.9), "self_bleu4": 0.35 + 0.2 * min(leaves, 2.0), "length": 20.0}
    if sourced:
        figures |= {
            "nll_oracle": 5.7 + adds,
            "js": min(0.69, abs(0.3 * (min(adds, 1) + leaves))),
            "validity": 0.9 / (1 + adds),
        }
    if kind != "reference":
        figures |= {"nll_test": 5.7 + leaves, "entropy": 5.7 - leaves / 2}
    return figures


def _results(kind, draw, adds, leaves, sweep, sourced):
    rows = [{"temperature": t} | _figures(kind, adds, leaves, sourced, t) for t in TEMPERATURES]
    figures = _figures(kind, adds, leaves, sourced) | {"seconds": 100 + draw.randrange(20), "sequences": 64000}
    return {
        "figures": _words(figures if kind == "agent" else figures | {"seconds": 0}),
        "sweep": [_words(row) for row in rows] if sweep and kind != "reference" else [],
        "settings": {"batch_size": 64, "lr": 0.01, "note": "<b>bold</b>"} if kind != "reference" else {},
        "versions": {"text_gym": "0.4.0", "torch": "2.9.0"},
        "hardware": "2 cores, no GPU",
        "unknown": {"train": 0.0, "valid": 0.012, "test": 0.0134},
        "signatures": {"bleu4": "BLEU-4, 1000 references, smoothing: none"},
        "started": "2026-01-05T10:00:00",
        "seconds": 120.5,
    }


def _write_curve(run, start, adds, leaves, sourced):
    """Write a learning curve from untrained figures, or from those of `mle`, to the model's figures."""
    rows = []
    _, _, _, _, *mle = MODELS[0]
    for step in range(0, 11 if start is None else 21, 2 if start is None else 5):
        rest = math.exp(-step / 4)
        before = (adds + 1, leaves + 1) if start is None else mle
        its = [now + rest * (then - now) for now, then in zip((adds, leaves), before, strict=True)]
        figures = _figures("agent", *its, sourced)
        figures = {key: figures[key] for key in ("nll_oracle", "nll_test", "entropy") if key in figures}
        rows.append({"time/step": step, "train/loss": rest} | {f"eval/{key}": figures[key] for key in figures})
    if sourced and start is None:
        rows[0]["eval/nll_oracle"] = math.inf
    text = "".join(json.dumps(_words(row)) + "\n" for row in rows)
    (run / "progress.json").write_text(text, encoding="utf-8")


def _sample(draw, kind):
    tokens = draw.choices(WORDS, k=8)
    values = [round(draw.uniform(0, 1), 3) for _ in range(len(tokens) + 1)]
    return {
        "tokens": tokens,
        "text": " ".join(tokens),
        "prompt": draw.choice(["", "Q: 1 < 2 & 2 > 1?"]),
        "reward": values[-1],
        "values": values if kind == "agent" else None,
        "nearest": {"text": "the cat sat <i>down</i>", "similarity": 0.375},
    }


def _words(row):
    return {key: "inf" if value == math.inf else value for key, value in row.items()}


def _write(path, content):
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
