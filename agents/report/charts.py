"""Charts of a report: learning curves and the quality/diversity plane."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import BinaryIO, Literal, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from agents.report.columns import column_of
from agents.report.run_files import Run, Runs
from agents.report.sweeps import far_end, plane_axes

# Safe for colour-blind readers. Contrast of at least 3: the first colour on white, the second on the dark background.
PALETTE = [
    ("#0072b2", "#56b4e9"),
    ("#d55e00", "#ff9a52"),
    ("#008765", "#3ccba0"),
    ("#b0478a", "#e79bca"),
    ("#8a6d00", "#e6c229"),
    ("#5b5fc7", "#a5a8ff"),
    ("#8c3b3b", "#e58b8b"),
    ("#5f6b76", "#b4bfc9"),
]
MARKERS = "osD^vPX*"
DASHES = {"agent": "none", "control": "5 2.5", "reference": "1 2.5"}
CURVES = ("nll_oracle", "nll_valid", "nll_test", "js", "validity", "reward", "entropy", "bleu4")


class Chart(Figure):
    """A matplotlib figure without pyplot; a notebook shows it once, as the value of a cell."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        png(self, file, dpi=100)
        return file.getvalue()


class Style(NamedTuple):
    """Colour, dash and marker of a model, the same in all charts."""

    number: int
    colour: str
    dash: str
    """Value of SVG's stroke-dasharray."""
    marker: str

    @property
    def css(self) -> str:
        """Colour as a CSS variable, which depends on the page's colour scheme."""
        return _in_page(self.colour)

    @property
    def line(self) -> Literal["-"] | tuple[float, tuple[float, ...]]:
        """Line style of matplotlib."""
        return "-" if self.dash == "none" else (0, tuple(map(float, self.dash.split())))


class Series(NamedTuple):
    """Learning curve of a model: mean, lowest and highest value over seeds."""

    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]
    infinite: int
    """Number of points that are excluded because a seed's value is infinite."""


class Point(NamedTuple):
    """Mean over seeds of a model at one temperature."""

    temperature: float
    x: float
    y: float


def styles(results: Runs) -> dict[str, Style]:
    """Choose the colour, dash and marker of each model."""
    found = {}
    for i, label in enumerate(results.labels):
        kind = results.kind(label)
        colour = "#000000" if kind == "reference" else PALETTE[i % len(PALETTE)][0]
        found[label] = Style(i, colour, DASHES[kind], MARKERS[i % len(MARKERS)])
    return found


def curve_keys(results: Runs) -> list[str]:
    """List the metrics that were evaluated during training, the most informative first."""
    seen = {key for run in results.runs.values() for row in run.curve for key in row}
    return [key for key in CURVES if key in seen]


def curves(results: Runs, *keys: str, legend: bool = True, growing: bool = False) -> Chart | None:
    """Plot learning curves, one panel for each metric; None if no run evaluated these metrics during training.

    Args:
        results: Runs to plot.
        *keys: Metrics.
        legend: Whether to add a legend below the panels.
        growing: Whether to add a thin line for each run that has not finished.
    """
    lines = {key: {label: _series(results, label, key) for label in results.labels} for key in keys}
    shown = [key for key in keys if any(line.x for line in lines[key].values())]
    if not shown:
        return None
    figure = Chart(figsize=(4.5 * len(shown), 3.7 if legend else 3.1), layout="constrained")
    for key, axes in zip(shown, figure.subplots(1, len(shown), squeeze=False)[0], strict=True):
        _draw_curves(axes, results, key, lines[key])
        if growing:
            _draw_unfinished(axes, results, key)
    if legend:
        used = [
            label
            for label in results.labels
            if any(lines[key][label].x for key in shown) or _is_reference(label, results)
        ]
        _legend(figure, results, used, markers=False)
    return figure


def _draw_curves(axes: Axes, results: Runs, key: str, lines: dict[str, Series]) -> None:
    for label, style in styles(results).items():
        line = lines[label]
        gid = f"line-{style.number}"
        if line.x:
            marker = "o" if len(line.x) == 1 else ""
            axes.plot(
                line.x, line.mean, linewidth=1.8, marker=marker, color=style.colour, linestyle=style.line, gid=gid
            )
            if line.low != line.high:
                axes.fill_between(
                    line.x, line.low, line.high, color=style.colour, alpha=0.18, linewidth=0, gid=f"band-{style.number}"
                )
        elif _is_reference(label, results) and (values := _finite(results.values(label, key).values())):
            axes.axhline(fmean(values), linewidth=1.6, color=style.colour, linestyle=style.line, gid=gid)
    _mark_pretraining(axes, results)
    notes = ["training steps (epochs, updates or rounds)"]
    if infinite := sum(line.infinite for line in lines.values()):
        notes.append(f"{infinite} infinite {'point is' if infinite == 1 else 'points are'} not shown")
    _name_axes(axes, "\n".join(notes), _axis_title(key))


def _draw_unfinished(axes: Axes, results: Runs, key: str) -> None:
    """Plot a thin line for each run that has not finished."""
    all_styles = styles(results)
    for run in results.unfinished:
        points = [
            (_before(results, run) + row["step"], row[key])
            for row in run.curve
            if math.isfinite(row.get(key, math.inf))
        ]
        if points:
            style = all_styles[run.label]
            axes.plot(
                *zip(*points, strict=True), linewidth=0.8, alpha=0.7, marker=".", markersize=3, color=style.colour,
                linestyle=style.line, gid=f"seed-{run.seed}-line-{style.number}",
            )  # fmt: skip


def _series(results: Runs, label: str, key: str) -> Series:
    """Average a model's learning curve over seeds, at the steps that all seeds have and where all values are finite."""
    runs = [run for run in results.of(label) if run.finished] or results.of(label)
    rows = [{_before(results, run) + row["step"]: row[key] for row in run.curve if key in row} for run in runs]
    rows = [row for row in rows if row]
    shared = sorted(set.intersection(*map(set, rows))) if rows else []
    values = {x: [row[x] for row in rows] for x in shared}
    x = [x for x in shared if all(map(math.isfinite, values[x]))]
    mean, low, high = ([reduce(values[at]) for at in x] for reduce in (fmean, min, max))
    return Series(x, mean, low, high, len(shared) - len(x))


def _before(results: Runs, run: Run) -> float:
    """Count the training steps of a run's warm start, and of the warm start's own warm start."""
    passed, seen = 0.0, {run.label}
    start = results.runs.get((str(run.spec.get("start")), run.seed))
    while start is not None and start.label not in seen:
        passed += max((row["step"] for row in start.curve), default=0.0)
        seen.add(start.label)
        start = results.runs.get((str(start.spec.get("start")), start.seed))
    return passed


def _mark_pretraining(axes: Axes, results: Runs) -> None:
    ends = {_before(results, run) for run in results.runs.values() if run.curve} - {0.0}
    for end in sorted(ends):
        axes.axvline(end, color="black", linewidth=0.9, linestyle=(0, (3, 3)))
    if ends:
        place = axes.get_xaxis_transform()
        axes.text(min(ends), 1.02, "end of pretraining", transform=place, ha="center", va="bottom", fontsize=8.5)


def plane(results: Runs, legend: bool = True) -> Chart | None:
    """Plot quality against diversity, one line per model through its temperatures; None without a temperature sweep."""
    keys = plane_axes(results)
    if keys is None:
        return None
    lines = {label: _points(results, label, keys) for label in results.labels}
    figure = Chart(figsize=(5.2, 4.6) if legend else (4.7, 3.8), layout="constrained")
    axes = figure.subplots()
    for label, style in styles(results).items():
        points, missing = lines[label]
        if points:
            _draw_line(axes, points, style)
        elif not missing and (values := _finite(results.values(label, keys[0]).values())):
            axes.axhline(fmean(values), color=style.colour, linestyle=style.line, gid=f"line-{style.number}")
    visible = [point for points, _ in lines.values() for point in points]
    notes = _limit_axes(axes, visible)
    if infinite := sum(missing for _, missing in lines.values()):
        notes.append(f"{infinite} infinite {'point is' if infinite == 1 else 'points are'} not shown")
    _name_axes(axes, "\n".join([_axis_title(keys[1]), *notes]), _axis_title(keys[0]))
    if legend:
        used = [label for label in results.labels if lines[label][0] or _is_reference(label, results)]
        _legend(figure, results, used, markers=True)
    return figure


def _points(results: Runs, label: str, keys: tuple[str, str]) -> tuple[list[Point], int]:
    """List a model's finite points by temperature, and count the infinite ones; its main row is temperature 1."""
    rows: dict[float, list[dict[str, float]]] = {}
    for run in results.of(label):
        swept = {row["temperature"]: row for row in run.sweep if "temperature" in row}
        for temperature, row in ({1.0: run.figures} | swept).items():
            if set(keys) <= set(row):
                rows.setdefault(temperature, []).append(row)
    means = [Point(t, *(fmean(row[key] for row in rows[t]) for key in keys[::-1])) for t in sorted(rows)]
    finite = [point for point in means if math.isfinite(point.x + point.y)]
    return finite, len(means) - len(finite)


def _draw_line(axes: Axes, points: list[Point], style: Style) -> None:
    """Plot a line with small dots, and the model's marker at temperature 1."""
    axes.plot(
        [point.x for point in points],
        [point.y for point in points],
        color=style.colour,
        linestyle=style.line,
        linewidth=1.5,
        marker=".",
        markersize=5,
        gid=f"line-{style.number}",
    )
    at_one = [point for point in points if point.temperature == 1]
    axes.plot(
        [point.x for point in at_one],
        [point.y for point in at_one],
        color=style.colour,
        linestyle="",
        marker=style.marker,
        markersize=8,
        zorder=3,
        gid=f"band-{style.number}",
    )


def _limit_axes(axes: Axes, points: Sequence[Point]) -> list[str]:
    """Limit the axes to the range of most points; return a note on the points outside."""
    x, y = [point.x for point in points], [point.y for point in points]
    right, top = far_end(x), far_end(y)
    outside = sum(point.x > right or point.y > top for point in points)
    if not outside:
        return []
    for limit, lowest, highest in ((axes.set_xlim, min(x), right), (axes.set_ylim, min(y), top)):
        margin = 0.05 * (highest - lowest) or 0.1
        limit(lowest - margin, highest + margin)
    return [f"{outside} {'point lies' if outside == 1 else 'points lie'} outside the chart"]


def _name_axes(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="black", alpha=0.12, linewidth=0.6)


def _axis_title(key: str) -> str:
    column = column_of(key)
    title = f"{column.title}, {column.unit}"
    return title if column.better == "neither" else f"{title}\n({column.better} is better)"


def _is_reference(label: str, results: Runs) -> bool:
    return results.kind(label) == "reference"


def _finite(values: Iterable[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _legend(figure: Figure, results: Runs, labels: Sequence[str], markers: bool) -> None:
    handles = []
    for label in labels:
        style = styles(results)[label]
        marker = style.marker if markers else ""
        handles.append(Line2D([], [], color=style.colour, linestyle=style.line, marker=marker, label=_escaped(label)))
    width = 0.55 + 0.0735 * max((len(label) for label in labels), default=0)  # of a column, in inches
    columns = max(1, min(5, len(handles), int((figure.get_figwidth() + 0.28) / width)))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)


def _escaped(label: str) -> str:
    """Escape a label: matplotlib reads $ as a formula, and hides labels that begin with an underscore."""
    return (" " if label.startswith("_") else "") + label.replace("$", r"\$")


def png(figure: Figure, file: BinaryIO, dpi: int = 180) -> None:
    """Write the chart as a PNG image on a white background."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the font does not have all scripts
        figure.savefig(file, format="png", dpi=dpi, facecolor="white")


def svg(figure: Figure, name: str) -> str:
    """Return the chart as an SVG element in the page's colours and font; `name` makes its ids unique in the page."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    element = text.getvalue()[text.getvalue().index("<svg") :]
    # without its style element, which would apply to the whole page
    element = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", element, flags=re.DOTALL)
    element = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", element)
    element = re.sub(r"font-family: [^;\"]*;? ?|font: ([\d.]+px) [^;\"]*", _size_only, element)
    opening = r'<svg viewBox="\1" fill="currentColor" role="img">'
    return re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', opening, _in_page(element), count=1)


def _in_page(text: str) -> str:
    """Replace colours by the page's CSS variables."""
    for number, (colour, _) in enumerate(PALETTE):
        text = text.replace(colour, f"var(--mark-{number})")
    return text.replace("#000000", "currentColor")


def _size_only(font: re.Match[str]) -> str:
    return f"font-size: {font[1]}" if font[1] else ""
