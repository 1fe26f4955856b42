"""The report of a comparison as a page, as Markdown, as a table of numbers, and for the terminal."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from markupsafe import Markup
from matplotlib.figure import Figure
from rich import box
from rich.table import Table
from rich.text import Text

from agents.report import charts
from agents.report.run_files import Runs
from agents.report.tables import OUTCOMES, Plain, comparison_title, context, main_table
from agents.report.templates import find_template
from agents.report.verdicts import summaries
from text_gym.files import replace_file
from text_gym.terminal import printable

IN_TERMINAL = (
    "reward",
    "nll_oracle",
    "nll_test",
    "js",
    "exact_match",
    "rouge_l",
    "validity",
    "bleu4",
    "self_bleu4",
    "coverage",
)
MODEL_WIDTH, FIGURE_WIDTH = 20, 18  # columns of a terminal


def write_report(results: Runs, folder: Path) -> Path:
    """Write report.html, report.md, report.csv and the charts as pictures into the folder; the path of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    found = context(results)
    curves, plane = charts.curves(results, *charts.curve_keys(results)[:2]), charts.plane(results)
    _publish_chart(folder / "report-curves.png", curves)
    _publish_chart(folder / "report-plane.png", plane)
    found |= {"curves_png": curves is not None, "plane_png": plane is not None}
    _publish_text(folder / "report.csv", as_csv(found))
    _publish_text(folder / "report.md", as_markdown(found))
    _publish_text(folder / "report.html", as_html(results, found))
    return folder / "report.html"


def _publish_chart(path: Path, figure: Figure | None) -> None:
    if figure is None:
        path.unlink(missing_ok=True)  # an earlier report's
        return
    with replace_file(path) as file:
        charts.png(figure, file)


def _publish_text(path: Path, text: str) -> None:
    with replace_file(path) as file:
        file.write(text.encode())


def as_csv(found: Plain) -> str:
    """The main table in full: a line for each model and figure, its mean, its interval, and each seed's value.

    A text that a spreadsheet would take for a formula begins with an apostrophe; numbers are as they are.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    seeds = found["table"]["seeds"]
    writer.writerow(["label", "kind", "figure", "n", "mean", "low", "high", *(f"seed {seed}" for seed in seeds)])
    for group in found["table"]["groups"]:
        for row in group["rows"]:
            for column, cell in zip(found["table"]["columns"], row["cells"], strict=True):
                if cell["values"]:
                    values = [cell["values"].get(seed) for seed in seeds]
                    words = map(_no_formula, (row["label"], group["kind"], column["key"]))
                    writer.writerow([*words, *cell["summary"], *values])
    return text.getvalue()


def _no_formula(text: str) -> str:
    text = printable(text)  # a carriage return would begin a row
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\n")) else text


def as_html(results: Runs, found: Plain) -> str:
    """Render the page, with its charts."""
    return find_template("report.html").render(found | pictures(results))


def pictures(results: Runs, growing: bool = False) -> Plain:
    """Draw the charts of a page, with their legends.

    Args:
        results: The runs.
        growing: Whether runs that are not finished have learning curves of their own.
    """
    curves = []
    for number, key in enumerate(charts.curve_keys(results)):
        figure = charts.curves(results, key, legend=False, growing=growing)
        if figure is not None:
            curves.append({"title": charts.title(key), "svg": Markup(charts.svg(figure, f"curve{number}"))})
    plane = charts.plane(results, legend=False)
    drawn = Markup("" if plane is None else charts.svg(plane, "plane"))
    return {
        "curves": curves,
        "curves_legend": _legend(results, "".join(curve["svg"] for curve in curves)),
        "plane": drawn,
        "plane_legend": _legend(results, drawn),
        "palette": charts.PALETTE,
    }


def _legend(results: Runs, drawn: str) -> list[tuple[str, charts.Style]]:
    """The models that have a line in these charts."""
    return [(label, style) for label, style in charts.styles(results).items() if f'-line-{style.number}"' in drawn]


def html_summary(results: Runs) -> str:
    """The headline figures of all models as an HTML table, for a notebook."""
    found = main_table(results)
    shown = [i for i, column in enumerate(found["columns"]) if column["headline"]]
    titles = [f"{column['title']} {column['arrow']}" for column in found["columns"]]
    head = Markup("").join(Markup("<th>{}</th>").format(titles[i]) for i in shown)
    rows = Markup("").join(
        Markup("<tr><th>{}</th><td>{}</td><td>{}</td>{}</tr>").format(
            row["label"], group["kind"], row["seeds"], Markup("").join(_html_cell(row["cells"][i]) for i in shown)
        )
        for group in found["groups"]
        for row in group["rows"]
    )
    lines = Markup("").join(Markup("<p>{}</p>").format(line) for line in summaries(results))
    return Markup(
        "<table><caption>{}</caption><thead><tr><th>model</th><th>kind</th><th>seeds</th>{}</tr></thead>"
        "<tbody>{}</tbody></table><p>{}</p>{}"
    ).format(comparison_title(results), head, rows, _TABLE_NOTE, lines)


_TABLE_NOTE = "Mean over seeds and its 95 % bootstrap interval. ↓ lower is better, ↑ higher is better."


def _html_cell(cell: Plain) -> Markup:
    text = Markup("<b>{}</b>" if cell["best"] else "{}").format(cell["text"])
    return Markup("<td>{} <small>{}</small></td>").format(text, cell["interval"])


def as_markdown(found: Plain) -> str:
    """The report as Markdown, for a repository or a pull request."""
    parts = [f"# {_plain(found['title'])}", _plain(found["line"]).capitalize() + "."]
    parts += [_list(found["summaries"])]
    if found["verdicts"]:
        parts += [", ".join(f"{sign} {word}" for sign, word in OUTCOMES.values()).capitalize() + "."]
    for group in found["verdicts"]:
        parts += [f"## {_plain(group['label'])}", _list(f"{item['sign']} {item['text']}" for item in group["items"])]
    parts += ["## Figures", _main_table(found["table"])]
    parts += [_ABOUT_FIGURES]
    if found["tests"]:
        parts += [f"## Tests against {_plain(found['baseline'])}", _test_table(found["tests"])]
    if found["curves_png"]:
        parts += ["## Learning curves", "![learning curves](report-curves.png)"]
    if found["plane_png"]:
        parts += ["## Quality and diversity", "![quality against diversity](report-plane.png)"]
    if found["best"]:
        parts += [_best_table(found["best"])]
    parts += _ending(found)
    return "\n\n".join(part for part in parts if part) + "\n"


_ABOUT_FIGURES = (
    "The mean over seeds, and in brackets the 95 % bootstrap interval of that mean. **Bold**: the best of agents and "
    "controls, uniform noise excepted. ↓ lower is better, ↑ higher is better."
)


def _main_table(table: Plain) -> str:
    """The main table, without the figures that nothing is claimed of."""
    shown = [i for i, column in enumerate(table["columns"]) if column["headline"]]
    titles = [f"{column['title']} {column['arrow']}" for column in table["columns"]]
    rows = [
        [row["label"], group["kind"], row["begun"], row["seeds"], *(_marked(row["cells"][i]) for i in shown)]
        for group in table["groups"]
        for row in group["rows"]
    ]
    return _table(["model", "kind", "begins with", "seeds", *(titles[i] for i in shown)], rows)


def _marked(cell: Plain) -> str:
    text = f"**{cell['text']}**" if cell["best"] else cell["text"]
    return " ".join(part for part in (text, cell.get("interval"), cell.get("odd")) if part)


def _test_table(tests: Sequence[Plain]) -> str:
    rows = [
        [test["title"], row["label"], row["seeds"], f"{row['difference']} {row['interval']}", row["p"], row["p_holm"]]
        for test in tests
        for row in test["rows"]
    ]
    return _table(["figure", "model", "seeds", "difference", "Welch p", "Holm p"], rows)


def _best_table(best: Plain) -> str:
    rows = [
        [row["label"], *(f"{_marked(cell)} {cell['seeds'] and '(' + cell['seeds'] + ')'}" for cell in row["cells"])]
        for row in best["rows"]
    ]
    heading = f"Best {best['quality']} over temperatures at {best['diversity']} no higher than"
    return f"{heading}:\n\n" + _table(["model", *best["limits"]], rows)


def _ending(found: Plain) -> list[str]:
    """List what failed, and how to run it again."""
    wrong = [f"{run['label']}, seed {run['seed']}: {run['last']}" for run in found["failures"]]
    wrong += [f"{run['label']}, seed {run['seed']}: not finished" for run in found["unfinished"]]
    parts = ["## Failed and unfinished", _list(wrong)] if wrong else []
    commands = "\n".join(found["commands"])
    if commands:
        parts += ["## How this was made", f"```\n{commands}\n```"]
    return [*parts, _plain("; ".join([*found["versions"], *found["hardware"]]))]


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {_plain(line)}" for line in lines)


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, numbers to the right."""
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *rows]
    return "\n".join(f"| {' | '.join(_plain(text, bold=True) for text in line)} |" for line in lines)


def _plain(text: str, bold: bool = False) -> str:
    """Text that Markdown leaves alone."""
    special = r"[\\`_<>|]" if bold else r"[\\`_<>|*]"
    return re.sub(special, lambda found: "\\" + found[0], " ".join(text.split()))


def terminal_table(results: Runs, width: int = 100) -> Table:
    """The most telling figures, as many as a terminal of this width has room for."""
    found = main_table(results)
    shown = _in_terminal(found, max(1, (width - MODEL_WIDTH) // FIGURE_WIDTH))
    title = Text(f"{printable(results.task)}: mean ± half of the 95 % bootstrap interval; * is the best")
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    table.add_column("model", min_width=MODEL_WIDTH - 4, no_wrap=True)
    for i in shown:
        table.add_column(
            Text(printable(f"{found['columns'][i]['title']} {found['columns'][i]['arrow']}")),
            justify="right",
            no_wrap=True,
        )
    for group in found["groups"]:
        for row in group["rows"]:
            table.add_row(Text(printable(row["label"])), *(_in_cell(row["cells"][i]) for i in shown))
        table.add_section()
    return table


def _in_terminal(table: Plain, room: int) -> list[int]:
    """Choose the columns that there is room for: the named ones, then other headline ones, in the order of tables."""
    columns, agents = table["columns"], table["groups"][0]["rows"]
    places = {
        column["key"]: i
        for i, column in enumerate(columns)
        if any(math.isfinite(row["cells"][i]["summary"].mean) for row in agents)
    }
    wanted = [places[key] for key in IN_TERMINAL if key in places]
    others = [i for i in places.values() if columns[i]["headline"] and i not in wanted]
    return sorted([*wanted, *others][:room])


def _in_cell(cell: Plain) -> Text:
    text = Text(cell["text"] + ("*" if cell["best"] else ""), style="bold" if cell["best"] else "")
    return text.append(f" ± {cell['half']}", style="dim") if cell["half"] else text
