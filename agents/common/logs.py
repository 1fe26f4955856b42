"""Metrics files of a run folder: CSV, JSON lines and TensorBoard. A resumed run appends to them."""

from __future__ import annotations

import csv
import io
import json
import struct
import sys
import time
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from stable_baselines3.common.logger import (
    FormatUnsupportedError,
    HumanOutputFormat,
    KVWriter,
    Logger,
    filter_excluded_keys,
)

from text_gym.errors import DataError, DependencyError, OptionError
from text_gym.files import replace_file, worded
from text_gym.validation import suggest

LOGS = ("csv", "json", "stdout", "log", "tensorboard")
EVENTS = "events.out.tfevents.0"  # TensorBoard recognises its files by this prefix


def checked_logs(kinds: str | Sequence[str], folder: Path | None) -> tuple[str, ...]:
    """Return the kinds of logs as a tuple; raise an error for an unknown kind, or for one that is not available."""
    kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    for kind in kinds:
        if kind not in LOGS:
            raise OptionError(f"there is no log {kind!r}." + suggest(str(kind), LOGS))
    if "tensorboard" in kinds:
        try:
            import tensorboard  # type: ignore[import-untyped] # noqa: F401
        except ImportError as problem:
            raise DependencyError(
                "log='tensorboard' needs TensorBoard; install it: pip install tensorboard"
            ) from problem
    if folder is None and {"tensorboard", "log"} & set(kinds):
        raise OptionError(f"log={kinds!r} needs a folder; give folder= too")
    return kinds


def open_logger(folder: Path | None, kinds: Sequence[str], rows: Mapping[str, int]) -> Logger:
    """Create a logger that appends to the metrics files of a run.

    Args:
        folder: Run folder; without one, only "stdout" is logged.
        kinds: Kinds of logs, see LOGS.
        rows: Number of rows in each file, by the name of the file.
    """
    if folder is None:
        return Logger(None, [HumanOutputFormat(sys.stdout) for kind in kinds if kind == "stdout"])
    writers: list[KVWriter] = []
    try:
        for kind in kinds:
            if kind in WRITERS:
                writers.append(WRITERS[kind](folder, rows))
            else:
                writers.append(_TextLog(folder / "log.txt") if kind == "log" else HumanOutputFormat(sys.stdout))
    except BaseException:
        for writer in writers:
            writer.close()
        raise
    return Logger(str(folder), writers)


class RowWriter(KVWriter):
    """Base class of writers that append rows of metrics to a file.

    Args:
        folder: Folder of the file.
        rows: Number of rows in each file of the folder, by the name of the file.
    """

    kind: ClassVar[str]
    """Kind of log, as in the `exclude` argument of Stable-Baselines3's logger."""
    name: ClassVar[str]
    """Name of the file."""

    def __init__(self, folder: Path, rows: Mapping[str, int]) -> None:
        self.path = folder / self.name
        self.file: BinaryIO = self.path.open("ab")
        self.rows = rows.get(self.name, 0)
        """Number of rows in the file, including a header row."""

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Append a row, and flush the file."""
        kept = filter_excluded_keys(key_values, key_excluded, self.kind)
        self.append({name: self._plain(value) for name, value in kept.items()}, step)
        self.file.flush()
        self.rows += 1

    def _plain(self, value: Any) -> object:
        """Convert a scalar or an array to builtin types."""
        if hasattr(value, "dtype"):
            value = value.item() if value.size == 1 else value.tolist()
        if not isinstance(value, str | int | float | list | None):
            raise FormatUnsupportedError([self.kind], type(value).__name__)
        return value

    @staticmethod
    def split(content: bytes) -> list[bytes]:
        """Split the content of a file into complete rows."""
        return [row for row in content.splitlines(keepends=True) if row.endswith(b"\n")]

    @abstractmethod
    def append(self, row: Mapping[str, object], step: int) -> None:
        """Append a row."""

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class JSONLines(RowWriter):
    """JSON lines: one object per row. NaN and infinities are the strings "nan", "inf" and "-inf"."""

    kind = "json"
    name = "progress.json"

    def append(self, row: Mapping[str, object], step: int) -> None:
        """Append a row."""
        self.file.write((json.dumps(worded(row), allow_nan=False) + "\n").encode())


class CSV(RowWriter):
    """CSV table with a header row. A new metric adds a column, for which the file is replaced."""

    kind = "csv"
    name = "progress.csv"

    def __init__(self, folder: Path, rows: Mapping[str, int]) -> None:
        path = folder / self.name
        self.columns = next(iter(_table(path, 1)), []) if path.exists() else []
        super().__init__(folder, rows)

    def append(self, row: Mapping[str, object], step: int) -> None:
        """Append a row."""
        if new := [name for name in row if name not in self.columns]:
            self._add(new)
        self.file.write(_line(row.get(name) for name in self.columns))

    def _add(self, names: list[str]) -> None:
        lines = _table(self.path)[1:]
        self.rows = 1 + len(lines)
        self.columns += names
        self.file.close()
        with replace_file(self.path) as table:
            table.write(_line(self.columns))
            table.writelines(_line([*line, *[None] * len(names)]) for line in lines)
        self.file = self.path.open("ab")


def _table(path: Path, most: int | None = None) -> list[list[str]]:
    """Read the rows of a table, at most `most` if given."""
    try:
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            return list(islice(csv.reader(file), most))
    except csv.Error as problem:
        raise DataError(
            f"{path} is damaged: {problem}; move it away, and the run continues with a new file"
        ) from problem


def _line(values: Iterable[object]) -> bytes:
    text = io.StringIO()
    one_line = [value.replace("\n", " ") if isinstance(value, str) else value for value in values]
    csv.writer(text, lineterminator="\n").writerow(one_line)
    return text.getvalue().encode()


class TensorBoard(RowWriter):
    """TensorBoard event file with the metrics that are numbers.

    Events are written at once and in the thread of learn(), so that learn() raises errors.
    """

    kind = "tensorboard"
    name = EVENTS

    def __init__(self, folder: Path, rows: Mapping[str, int]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
        from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

        super().__init__(folder, rows)
        self._event, self._summary = Event, Summary
        self._records = RecordWriter(self.file)

    @staticmethod
    def split(content: bytes) -> list[bytes]:
        """Split the content of a file into complete events. The first one is the version of the format."""
        events, begin = [], 0
        while begin + 8 <= len(content):
            end = begin + 8 + 4 + struct.unpack_from("<Q", content, begin)[0] + 4  # length, checksum, data, checksum
            if end > len(content):
                break
            events.append(content[begin:end])
            begin = end
        return events

    def append(self, row: Mapping[str, object], step: int) -> None:
        """Append an event."""
        if not self.rows:
            self._records.write(self._event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
            self.rows = 1
        numbers = [(name, float(value)) for name, value in row.items() if isinstance(value, int | float)]
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in numbers]
        event = self._event(wall_time=time.time(), step=step, summary=self._summary(value=values))
        self._records.write(event.SerializeToString())


class _TextLog(HumanOutputFormat):
    """Human-readable tables, appended to a file."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.open("a", encoding="utf-8"))
        self.own_file = True


WRITERS: dict[str, type[RowWriter]] = {writer.kind: writer for writer in (CSV, JSONLines, TensorBoard)}


def rows_of(logger: Logger) -> dict[str, int]:
    """Return the number of rows in each file of a logger, by the name of the file."""
    return {writer.name: writer.rows for writer in logger.output_formats if isinstance(writer, RowWriter)}


def keep_rows(folder: Path, wanted: Mapping[str, int]) -> dict[str, int]:
    """Truncate the metrics files to the rows of the last checkpoint.

    A killed run may leave an incomplete row, and rows of steps after the checkpoint, which it repeats when resumed.

    Args:
        folder: Run folder.
        wanted: Number of rows to keep in each file, by the name of the file. Other files keep all complete rows.

    Returns:
        Number of rows in each file.
    """
    counts = {}
    for writer in WRITERS.values():
        path = folder / writer.name
        if path.exists():
            kept = writer.split(path.read_bytes())[: wanted.get(writer.name)]
            if sum(map(len, kept)) < path.stat().st_size:
                with replace_file(path) as file:
                    file.writelines(kept)
            counts[writer.name] = len(kept)
    return counts
