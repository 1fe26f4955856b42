"""Results of a comparison in Python: tables, charts, verdicts and the report, read from run folders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from agents.report import charts
from agents.report.claims import Verdict
from agents.report.columns import column_of, in_order
from agents.report.run_files import KINDS, Run, Runs, read_runs
from agents.report.tables import comparison_title
from agents.report.verdicts import summaries, verdicts
from agents.report.write import html_summary, write_report
from text_gym.errors import DataError, OptionError
from text_gym.extras import import_extra
from text_gym.terminal import printable

if TYPE_CHECKING:
    from pandas import DataFrame

Part = Literal["figures", "curves", "sweep"]
POSITIONS = {"figures": None, "curves": "step", "sweep": "temperature"}  # column that distinguishes the rows of a run


class Results(Runs):
    """Results of a comparison, as `compare()` and `Results.load()` return them.

    `print(results)` gives the verdicts in words; a notebook shows the table of means.

    Args:
        runs: Runs on one task, measured alike, in any order.
        out: Folder that `write_report()` writes to by default.
    """

    def __init__(self, runs: Iterable[Run], out: str | Path) -> None:
        super().__init__(runs)
        self.out = Path(out)

    @classmethod
    def load(cls, *folders: str | Path) -> Results:
        """Load the results of comparisons or runs from their folders, unfinished and failed runs included.

        Args:
            *folders: Folders of `compare` or `train`. Several are reported together, if they have the same task and
                were measured alike.
        """
        if not folders:
            raise OptionError('name a folder of results, for example: Results.load("runs/compare")')
        return cls([run for folder in folders for run in read_runs(Path(folder))], folders[0])

    @property
    def verdicts(self) -> list[Verdict]:
        """Verdicts on each agent but the baseline, for each headline metric; `verdict.text` is the verdict in words."""
        return verdicts(self)

    def to_dataframe(self, part: Part = "figures") -> DataFrame:
        """Return the numbers as a tidy pandas DataFrame, with one row for each model, seed and metric.

        Columns are `model`, `kind` ("agent", "control" or "reference"), `seed`, `metric`, `value` and `better`
        ("lower", "higher" or "neither"). Runs without results have no rows.

        Args:
            part: "figures" for the final metrics; "curves" for the learning curves, with a column `step`;
                "sweep" for the temperature sweep, with a column `temperature`.
        """
        if part not in POSITIONS:
            raise OptionError(f"part must be one of {', '.join(map(repr, POSITIONS))}, not {part!r}")
        pandas = import_extra("pandas", "to_dataframe()", "dataframe")
        position = POSITIONS[part]
        names = ["model", "kind", "seed", *([position] if position else []), "metric", "value", "better"]
        frame: DataFrame = pandas.DataFrame.from_records(list(self._records(part)), columns=names)
        return frame

    def _records(self, part: Part) -> Iterator[tuple[object, ...]]:
        """Yield the rows of a data frame, metrics in the order of the report's table."""
        position = POSITIONS[part]
        for label in self.labels:
            for run in self.of(label):
                rows = {"figures": [run.figures], "curves": run.curve, "sweep": run.sweep}[part]
                for row in rows:
                    place = [] if position is None else [int(row[position]) if part == "curves" else row[position]]
                    for key in (column.key for column in in_order(row.keys() - {position})):
                        yield label, run.kind, run.seed, *place, key, row[key], column_of(key).better

    def plot_curves(self, *metrics: str) -> charts.Chart:
        """Plot learning curves: mean over seeds, with a band from the lowest to the highest seed.

        Args:
            *metrics: Metrics, one panel each, for example "nll_valid"; by default the two most informative ones.
        """
        known = charts.curve_keys(self)
        if unknown := [metric for metric in metrics if metric not in known]:
            there = f"these runs have {', '.join(known)}" if known else "these runs have no learning curves"
            raise OptionError(f"there is no learning curve of {unknown[0]!r}; {there}")
        figure = charts.curves(self, *(metrics or known[:2]))
        if figure is None:
            raise DataError("these runs have no learning curves; compare agents with points above 0 in metrics")
        return figure

    def plot_frontier(self) -> charts.Chart:
        """Plot quality against diversity, one line per model through the temperatures of its sweep."""
        figure = charts.plane(self)
        if figure is None:
            raise DataError("these runs have no temperature sweep; compare agents with temperatures in metrics")
        return figure

    def write_report(self, folder: str | Path | None = None) -> Path:
        """Write report.html, report.md, report.csv and the charts, and return the path of report.html.

        Args:
            folder: Folder to write to; `out` if not given.
        """
        return write_report(self, self.out if folder is None else Path(folder))

    def __repr__(self) -> str:
        kinds = [self.kind(label) for label in self.labels]
        counts = [_count(n, kind) for kind in KINDS if (n := kinds.count(kind))]
        counts.append(_count(len(self.seeds), "seed"))
        if missing := len(self.failures) + len(self.unfinished):
            counts.append(f"{missing} of {len(self.runs)} runs without results")
        return printable(f"{type(self).__name__}({', '.join(counts)}, out={str(self.out)!r})")

    def __str__(self) -> str:
        sentences = [verdict.text for verdict in self.verdicts]
        return printable("\n".join([comparison_title(self), *summaries(self), *(f"  {text}" for text in sentences)]))

    def _repr_html_(self) -> str:
        return html_summary(self)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' * (n != 1)}"
