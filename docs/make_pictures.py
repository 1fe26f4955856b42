"""Make the pictures of the documentation, docs/images/*, from one small comparison: `make pictures`.

The comparison is seeded and is not repeated if its folder is finished. A headless Chromium, where there is one, takes
the picture of the report.
"""

from __future__ import annotations

import argparse
import io
import math
import re
import shutil
import subprocess
import tempfile
from itertools import pairwise
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from PIL import Image

from agents import Results, compare
from agents.report import charts
from agents.report.columns import column_of
from agents.report.run_files import Sample
from agents.report.statistics import summarize

AGENTS = ("mle", "pg-bleu", "seqgan")
METRICS = {"samples": 2000, "sweep_samples": 500, "references": 500, "curve_samples": 300, "points": 8}
CURVES = ("nll_valid", "js", "nll_test", "entropy")
SHOWN = {  # rows of the overview, and how far each is indented
    "mle": ("maximum likelihood", 0),
    "pg-bleu": ("PG-BLEU: rewarded by BLEU", 0),
    "constant-pg-bleu": ("the same updates, a constant reward", 1),
    "random-pg-bleu": ("the same updates, a random reward", 1),
    "seqgan": ("SeqGAN: rewarded by a discriminator", 0),
    "constant-seqgan": ("the same updates, a constant reward", 1),
    "random-seqgan": ("the same updates, a random reward", 1),
    "real": ("real text", 0),
}
BLUE, ORANGE, GREEN = (charts.PALETTE[i][0] for i in range(3))
GREY = "#5f6b76"
RESULTS = Path(__file__).parent / "results.md"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> None:
    """Run the comparison, and write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/pictures"), help="folder of the comparison")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images", help="folder of the pictures")
    asked = parser.parse_args()
    results = compare(AGENTS, task="grammar", preset="demo", seeds=3, out=asked.runs, metrics=METRICS)
    for path in draw(results, asked.out):
        print(path)  # noqa: T201 - a program of its own


def draw(results: Results, folder: Path) -> list[Path]:
    """Write all pictures into a folder; without a Chromium, all but that of the report."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = [key for key in CURVES if key in charts.curve_keys(results)][:2]
    figures = {
        "overview": overview(results),
        "curves": results.plot_curves(*keys),
        "frontier": results.plot_frontier(),
        "samples": samples(results),
        "summary": summary(read_table(RESULTS)),
    }
    paths = [write_svg(figure, folder / f"{name}.svg") for name, figure in figures.items()]
    if browser := next(filter(None, map(shutil.which, BROWSERS)), None):
        paths.append(photograph_report(results, browser, folder / "report.png"))
    return paths


def write_svg(figure: Figure, path: Path) -> Path:
    """Write a figure on white, with its letters as shapes; the same figure gives the same file."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": path.stem, "path.simplify_threshold": 0.2}):
        figure.savefig(text, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
    short = re.sub(r"\d+\.\d{4,}", lambda number: f"{float(number[0]):.3f}", text.getvalue())
    path.write_text("".join(f"{line.strip()}\n" for line in short.splitlines()), encoding="utf-8")
    return path


def overview(results: Results) -> Figure:
    """An episode on the left; agents and their controls on the right."""
    figure = Figure(figsize=(11, 4.2))
    left = figure.add_axes((0.015, 0.03, 0.39, 0.95))
    draw_episode(left, sentence_of(results))
    keys = [key for key in ("bleu4", "js") if key in {column.key for column in results.columns}]
    for i, key in enumerate(keys):
        axes = figure.add_axes((0.71 + 0.15 * i, 0.14, 0.13, 0.58))
        draw_means(axes, results, key, labels=i == 0)
    figure.text(0.45, 0.91, "Agents beside their controls", fontsize=14, weight="bold")
    figure.text(0.45, 0.835, "hollow: a reward without information", fontsize=9, color=ORANGE)
    figure.text(0.45, 0.04, f"mean over {len(results.seeds)} seeds, 95 % interval", fontsize=8.5, color=GREY)
    return figure


def sentence_of(results: Results) -> Sample:
    """A short sequence that the baseline sampled."""
    found = [sample for run in results.of(str(results.baseline)) for sample in run.samples]
    return min(
        found, key=lambda sample: (len(sample["tokens"]) - len(set(sample["tokens"])), abs(len(sample["tokens"]) - 7))
    )


def draw_episode(axes: Axes, sample: Sample) -> None:
    """Draw the growing prefix of a sequence, with the reward at its end."""
    tokens = sample["tokens"][:7]
    axes.set(xlim=(0, 10), ylim=(0, 10))
    axes.axis("off")
    axes.text(0, 9.5, "A sentence is an episode", fontsize=14, weight="bold", va="center")
    axes.text(0, 8.7, "state: the tokens so far", fontsize=9, color=GREY, va="center")
    axes.text(10, 8.7, "reward", fontsize=9, color=GREY, va="center", ha="right")
    height = 7.6 / len(tokens)
    for step in range(1, len(tokens) + 1):
        y = 8.1 - height * step + height / 2
        x = 0.0
        for place, token in enumerate(tokens[:step]):
            newest = place == step - 1
            x = draw_token(axes, x, y, token, BLUE if newest else GREY, 0.22 if newest else 0.0)
        if step == 1:
            axes.annotate(
                "action: the next token", (x, y), (x + 0.6, y), fontsize=9, color=BLUE, va="center",
                arrowprops={"arrowstyle": "->", "color": BLUE},
            )  # fmt: skip
        last = step == len(tokens)
        reward = sample["reward"]
        said = "0" if not last else "at the end" if reward is None else f"{reward:.2f}"
        axes.text(
            9.95, y, said, fontsize=12 if last else 9, weight="bold" if last else "normal",
            color=GREEN if last else GREY, ha="right", va="center",
        )  # fmt: skip


def draw_token(axes: Axes, x: float, y: float, token: str, colour: str, alpha: float, size: float = 9.0) -> float:
    """Draw a token in a box, and return where the next one begins."""
    text = axes.text(x + 0.1, y, token.replace("$", r"\$"), fontsize=size, va="center", zorder=3)
    box = text.get_window_extent().transformed(axes.transData.inverted())
    face = (*matplotlib.colors.to_rgb(colour), alpha)
    axes.add_patch(
        FancyBboxPatch(
            (x + 0.04, box.y0 - 0.08), box.width + 0.12, box.height + 0.16,
            boxstyle="round,pad=0.03,rounding_size=0.08", facecolor=face, edgecolor=(*face[:3], 0.55), linewidth=0.8,
        )
    )  # fmt: skip
    return box.x1 + 0.2


def draw_means(axes: Axes, results: Results, key: str, labels: bool) -> None:
    """Draw the mean of a metric for each model, with its interval; agents filled, controls hollow."""
    rows = [label for label in SHOWN if label in results.labels]
    column = column_of(key)
    for y, label in enumerate(rows):
        name, indent = SHOWN[label]
        values = summarize(list(results.values(label, key).values()))
        colour = {"agent": BLUE, "control": ORANGE, "reference": "black"}[results.kind(label)]
        if math.isfinite(values.mean):
            if values.low is not None and values.high is not None:
                axes.plot([values.low, values.high], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
            axes.plot([values.mean], [y], "o", color=colour, markersize=7, mfc="white" if indent else colour, mew=1.8)
        if labels:
            axes.text(
                -2.0 + 0.1 * indent, y, name, transform=axes.get_yaxis_transform(), fontsize=9.5, va="center",
                color=GREY if indent else "black",
            )  # fmt: skip
    start = summarize(list(results.values(str(results.baseline), key).values())).mean
    axes.axvline(start, color=GREY, linewidth=0.9, linestyle=(0, (3, 3)), zorder=0)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks([])
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", color="black", alpha=0.12, linewidth=0.6)
    meaning = {"bleu4": "BLEU-4", "js": "distance from\nthe true language"}.get(key, column.title)
    axes.set_title(f"{meaning}\n{column.better} is better", fontsize=9.5)


def samples(results: Results) -> Figure:
    """Sequences of each agent, each token in the colour of its credit."""
    agents = [label for label in results.labels if results.kind(label) == "agent" and results.of(label)[0].samples]
    lines = [(label, sample) for label in agents for sample in results.of(label)[0].samples[:2]]
    figure = Figure(figsize=(9, 0.62 + 0.42 * len(lines)))
    axes = figure.add_axes((0.01, 0.02, 0.98, 0.96))
    axes.set(xlim=(0, 20), ylim=(-len(lines) - 0.1, 1.1))
    axes.axis("off")
    x = draw_token(axes, 2.2, 0.45, "adds to the expected reward", BLUE, 0.5)
    draw_token(axes, x + 0.3, 0.45, "takes away from it", ORANGE, 0.5)
    axes.text(19.9, 0.45, "reward", fontsize=9, color=GREY, va="center", ha="right")
    for number, (label, sample) in enumerate(lines):
        y = -number - 0.5
        if number == 0 or lines[number - 1][0] != label:
            axes.text(0.1, y, label, fontsize=10, weight="bold", va="center")
        draw_credits(axes, y, sample)
    return figure


def draw_credits(axes: Axes, y: float, sample: Sample) -> None:
    """Draw a sequence and its reward."""
    credits = [after - before for before, after in pairwise(sample["values"] or [])]
    largest = max(map(abs, credits), default=1.0) or 1.0
    x = 2.2
    for token, credit in zip(sample["tokens"], credits or [0.0] * len(sample["tokens"]), strict=False):
        x = draw_token(axes, x, y, token, BLUE if credit >= 0 else ORANGE, 0.6 * abs(credit) / largest)
    if sample["reward"] is not None:
        axes.text(19.9, y, f"{sample['reward']:.2f}", fontsize=9.5, va="center", ha="right")


def read_table(page: Path) -> dict[str, tuple[float, float]]:
    """NLL-oracle and the sum of both divergences of each model in the first table of the results."""
    blocks = page.read_text(encoding="utf-8").split("\n\n")
    table = next(block for block in blocks if block.startswith("| model |"))
    rows = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {row[0]: (float(row[2]), float(row[4])) for row in rows}


def summary(table: dict[str, tuple[float, float]]) -> Figure:
    """NLL-oracle, by which SeqGAN was published as better, beside the distance from the data in both directions."""
    figure = Figure(figsize=(10, 3.1))
    titles = ("NLL-oracle\nlower is better", "KL(model, data) + KL(data, model)\nlower is better")
    for panel, title in enumerate(titles):
        axes = figure.add_axes((0.27 + 0.37 * panel, 0.16, 0.34, 0.64))
        for y, (label, values) in enumerate(table.items()):
            control, colour = "reward" in label, "black" if label == "real data" else BLUE
            colour = ORANGE if control else colour
            axes.plot(
                [values[panel]], [y], "o", color=colour, mfc="white" if control else colour, markersize=7, mew=1.8
            )
            if panel == 0:
                axes.text(-0.76, y, label, transform=axes.get_yaxis_transform(), fontsize=10, va="center")
        axes.axvline(table["SeqGAN"][panel], color=GREY, linewidth=0.9, linestyle=(0, (3, 3)), zorder=0)
        axes.set_ylim(len(table) - 0.4, -0.6)
        axes.set_yticks([])
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.grid(axis="x", color="black", alpha=0.12, linewidth=0.6)
        axes.set_title(title, fontsize=10)
    figure.text(
        0.012,
        0.03,
        "nats per token; the dashed line is SeqGAN; hollow: a reward without information",
        color=GREY,
        fontsize=9,
    )
    return figure


def photograph_report(results: Results, browser: str, path: Path, size: tuple[int, int] = (1000, 940)) -> Path:
    """Take a picture of the top of the report, where the verdicts are."""
    with tempfile.TemporaryDirectory() as folder:
        page, raw = results.write_report(folder), Path(folder) / "raw.png"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor=1.3"]
        flags += [f"--user-data-dir={folder}/profile", f"--window-size={size[0]},{size[1]}", f"--screenshot={raw}"]
        subprocess.run([browser, *flags, page.as_uri()], check=True, capture_output=True, timeout=60)
        few = Image.open(raw).convert("RGB").quantize(48, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        few.save(path, optimize=True)
    return path


if __name__ == "__main__":
    main()
