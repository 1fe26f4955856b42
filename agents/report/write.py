"""Reports as HTML, Markdown and CSV files, and as a table in the terminal."""

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
from agents.report.columns import TOKENS_COUNTED, column_of
from agents.report.run_files import Runs
from agents.report.tables import ABOUT, OUTCOMES, Plain, comparison_title, context, main_table
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
MODEL_WIDTH, METRIC_WIDTH = 20, 18  # characters


def write_report(results: Runs, folder: Path) -> Path:
    """Write report.html, report.md, report.csv and two charts as PNG files.

    Args:
        results: Runs to report.
        folder: Output folder, which is created if it does not exist.

    Returns:
        The path of report.html, which is one file without external links.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = context(results)
    curves, plane = charts.curves(results, *charts.curve_keys(results)[:2]), charts.plane(results)
    _publish_chart(folder / "report-curves.png", curves)
    _publish_chart(folder / "report-plane.png", plane)
    content |= {"curves_png": curves is not None, "plane_png": plane is not None}
    _publish_text(folder / "report.csv", as_csv(content))
    _publish_text(folder / "report.md", as_markdown(content))
    _publish_text(folder / "report.html", as_html(results, content))
    return folder / "report.html"


def _publish_chart(path: Path, figure: Figure | None) -> None:
    if figure is None:
        path.unlink(missing_ok=True)  # of an earlier report
        return
    with replace_file(path) as file:
        charts.png(figure, file)


def _publish_text(path: Path, text: str) -> None:
    with replace_file(path) as file:
        file.write(text.encode())


def as_csv(content: Plain) -> str:
    """Format the main table as CSV: one row per model and metric, with mean, interval and the value of each seed.

    Text that a spreadsheet would read as a formula gets an apostrophe in front.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    seeds = content["table"]["seeds"]
    writer.writerow(["label", "kind", "figure", "n", "mean", "low", "high", *(f"seed {seed}" for seed in seeds)])
    for group in content["table"]["groups"]:
        for row in group["rows"]:
            for column, cell in zip(content["table"]["columns"], row["cells"], strict=True):
                if cell["values"]:
                    values = [cell["values"].get(seed) for seed in seeds]
                    words = map(_no_formula, (row["label"], group["kind"], column["key"]))
                    writer.writerow([*words, *cell["summary"], *values])
    return text.getvalue()


def _no_formula(text: str) -> str:
    text = printable(text)  # a carriage return would start a new row
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\n")) else text


def as_html(results: Runs, content: Plain) -> str:
    """Format the report as an HTML page with its charts."""
    return find_template("report.html").render(content | pictures(results))


def pictures(results: Runs, growing: bool = False) -> Plain:
    """Draw the charts of a page, with their legends.

    Args:
        results: Runs to plot.
        growing: Whether to add a learning curve for each run that has not finished.
    """
    curves = []
    for number, key in enumerate(charts.curve_keys(results)):
        figure = charts.curves(results, key, legend=False, growing=growing)
        if figure is not None:
            column = column_of(key)
            drawing = Markup(charts.svg(figure, f"curve{number}"))
            curves.append({"title": column.title, "help": column.help, "svg": drawing})
    plane = charts.plane(results, legend=False)
    plane_svg = Markup("" if plane is None else charts.svg(plane, "plane"))
    return {
        "curves": curves,
        "curves_legend": _legend(results, "".join(curve["svg"] for curve in curves)),
        "plane": plane_svg,
        "plane_legend": _legend(results, plane_svg),
        "palette": charts.PALETTE,
    }


def _legend(results: Runs, svg: str) -> list[tuple[str, charts.Style]]:
    """List the models that have a line in these charts, with their styles."""
    return [(label, style) for label, style in charts.styles(results).items() if f'-line-{style.number}"' in svg]


def html_summary(results: Runs) -> str:
    """Format the headline metrics of all models and the summary as HTML, for a notebook."""
    content = main_table(results)
    shown = [i for i, column in enumerate(content["columns"]) if column["headline"]]
    titles = [f"{column['title']} {column['arrow']}" for column in content["columns"]]
    head = Markup("").join(Markup("<th>{}</th>").format(titles[i]) for i in shown)
    rows = Markup("").join(
        Markup("<tr><th>{}</th><td>{}</td><td>{}</td>{}</tr>").format(
            row["label"], group["kind"], row["seeds"], Markup("").join(_html_cell(row["cells"][i]) for i in shown)
        )
        for group in content["groups"]
        for row in group["rows"]
    )
    lines = Markup("").join(Markup("<p>{}</p>").format(line) for line in summaries(results))
    return Markup(
        "<table><caption>{}</caption><thead><tr><th>model</th><th>kind</th><th>seeds</th>{}</tr></thead>"
        "<tbody>{}</tbody></table><p>{}</p>{}"
    ).format(comparison_title(results), head, rows, ABOUT["metrics"], lines)


def _html_cell(cell: Plain) -> Markup:
    text = Markup("<b>{}</b>" if cell["best"] else "{}").format(cell["text"])
    return Markup("<td>{} <small>{}</small></td>").format(text, cell["interval"])


def as_markdown(content: Plain) -> str:
    """Format the report as Markdown, for a repository or a pull request."""
    about = content["about"]
    parts = [f"# {_plain(content['title'])}", _plain(content["line"]) + "."]
    if content["summaries"]:
        parts += ["## Summary", _plain(content["intro"]), _list(content["summaries"])]
    if content["verdicts"]:
        parts += [f"## Verdicts against {_plain(content['baseline'])}", about["verdicts"]]
        parts += ["; ".join(f"{sign} {word}" for sign, word in OUTCOMES.values()) + "."]
    for group in content["verdicts"]:
        parts += [f"### {_plain(group['label'])}", _list(f"{item['sign']} {item['text']}" for item in group["items"])]
    if content["table"]["columns"]:
        parts += ["## Metrics", about["metrics"], _main_table(content["table"]), _descriptions(content["table"])]
    if content["tests"]:
        parts += [f"## Significance tests against {_plain(content['baseline'])}", about["tests"]]
        parts += [_test_table(content["tests"])]
    if content["curves_png"]:
        parts += ["## Learning curves", about["curves"], "![learning curves](report-curves.png)"]
    if content["plane_png"]:
        parts += ["## Quality and diversity", about["plane"], "![quality against diversity](report-plane.png)"]
    if content["best"]:
        parts += [about["frontier"], _frontier_table(content["best"])]
    parts += _ending(content)
    return "\n\n".join(part for part in parts if part) + "\n"


def _main_table(table: Plain) -> str:
    """Format the headline metrics of the main table."""
    shown = [i for i, column in enumerate(table["columns"]) if column["headline"]]
    titles = [f"{column['title']} {column['arrow']}" for column in table["columns"]]
    rows = [
        [row["label"], group["kind"], row["initial"], row["seeds"], *(_marked(row["cells"][i]) for i in shown)]
        for group in table["groups"]
        for row in group["rows"]
    ]
    return _table(["model", "kind", "initial policy", "seeds", *(titles[i] for i in shown)], rows)


def _descriptions(table: Plain) -> str:
    """List the descriptions of the headline metrics."""
    columns = [column for column in table["columns"] if column["headline"]]
    lines = [f"- {_plain(column['title'])}: {_plain(column['help'])}" for column in columns]
    return "\n".join([*lines, f"- {_plain(TOKENS_COUNTED)}"])


def _marked(cell: Plain) -> str:
    text = f"**{cell['text']}**" if cell["best"] else cell["text"]
    return " ".join(part for part in (text, cell.get("interval"), cell.get("infinite")) if part)


def _test_table(tests: Sequence[Plain]) -> str:
    rows = [
        [
            f"{test['title']}, {test['unit']}",
            row["label"],
            row["seeds"],
            f"{row['difference']} {row['interval']}",
            row["p"],
            f"**{row['p_holm']}**" if row["significant"] else row["p_holm"],
        ]
        for test in tests
        for row in test["rows"]
    ]
    return _table(["metric", "model", "seeds", "difference", "Welch p", "Holm p"], rows)


def _frontier_table(best: Plain) -> str:
    rows = [
        [row["label"], *(f"{_marked(cell)} {cell['seeds'] and '(' + cell['seeds'] + ')'}" for cell in row["cells"])]
        for row in best["rows"]
    ]
    return _table(["model", *best["limits"]], rows)


def _ending(content: Plain) -> list[str]:
    """List failed and unfinished runs, the commands, versions and hardware."""
    problems = [f"{run['label']}, seed {run['seed']}: failed: {run['last']}" for run in content["failures"]]
    problems += [f"{run['label']}, seed {run['seed']}: not finished" for run in content["unfinished"]]
    parts = ["## Failed and unfinished runs", _list(problems)] if problems else []
    commands = "\n".join(content["commands"])
    if commands:
        parts += ["## Command and versions", f"```\n{commands}\n```"]
    return [*parts, _plain("; ".join([*content["versions"], *content["hardware"]]))]


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {_plain(line)}" for line in lines)


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a table with right-aligned numbers."""
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *rows]
    return "\n".join(f"| {' | '.join(_plain(text, bold=True) for text in line)} |" for line in lines)


def _plain(text: str, bold: bool = False) -> str:
    """Escape text for Markdown."""
    special = r"[\\`_<>|]" if bold else r"[\\`_<>|*]"
    return re.sub(special, lambda found: "\\" + found[0], " ".join(text.split()))


def terminal_table(results: Runs, width: int = 100) -> Table:
    """Build a table of the most important metrics, as many as fit into the width of the terminal."""
    content = main_table(results)
    shown = _choose_columns(content, max(1, (width - MODEL_WIDTH) // METRIC_WIDTH))
    title = Text(f"{printable(results.task)}: mean ± half of the 95 % bootstrap interval; * is the best")
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    table.add_column("model", min_width=MODEL_WIDTH - 4, no_wrap=True)
    for i in shown:
        table.add_column(
            Text(printable(f"{content['columns'][i]['title']} {content['columns'][i]['arrow']}")),
            justify="right",
            no_wrap=True,
        )
    for group in content["groups"]:
        for row in group["rows"]:
            table.add_row(Text(printable(row["label"])), *(_terminal_cell(row["cells"][i]) for i in shown))
        table.add_section()
    return table


def _choose_columns(table: Plain, room: int) -> list[int]:
    """Choose columns for the terminal: first IN_TERMINAL, then other headline metrics; keep the order of tables."""
    columns, agents = table["columns"], table["groups"][0]["rows"]
    places = {
        column["key"]: i
        for i, column in enumerate(columns)
        if any(math.isfinite(row["cells"][i]["summary"].mean) for row in agents)
    }
    wanted = [places[key] for key in IN_TERMINAL if key in places]
    others = [i for i in places.values() if columns[i]["headline"] and i not in wanted]
    return sorted([*wanted, *others][:room])


def _terminal_cell(cell: Plain) -> Text:
    text = Text(cell["text"] + ("*" if cell["best"] else ""), style="bold" if cell["best"] else "")
    return text.append(f" ± {cell['half']}", style="dim") if cell["half"] else text
