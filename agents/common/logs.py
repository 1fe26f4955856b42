"""The files of metrics in a run's folder: one of each kind, which goes on when the run goes on."""

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
EVENTS = "events.out.tfevents.0"  # TensorBoard knows its files by the first words


def checked_logs(kinds: str | Sequence[str], folder: Path | None) -> tuple[str, ...]:
    """Return the kinds of logs, or raise an error that says which there are, or what they need."""
    kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    for kind in kinds:
        if kind not in LOGS:
            raise OptionError(f"there is no log {kind!r}." + suggest(str(kind), LOGS))
    if "tensorboard" in kinds:
        try:
            import tensorboard  # type: ignore[import-untyped] # noqa: F401
        except ImportError as problem:
            raise DependencyError("log='tensorboard' needs TensorBoard: pip install tensorboard") from problem
    if folder is None and {"tensorboard", "log"} & set(kinds):
        raise OptionError(f"log={kinds!r} needs a place: give folder= too")
    return kinds


def open_logger(folder: Path | None, kinds: Sequence[str], rows: Mapping[str, int]) -> Logger:
    """Open the files of a run's metrics, to write behind their last rows; without a folder only the console.

    Args:
        folder: Folder of the run.
        kinds: Kinds of logs.
        rows: Number of rows that each file has.
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
    """Appends rows of metrics to a file.

    Args:
        folder: Folder of the file.
        rows: Number of rows that each file in the folder has.
    """

    kind: ClassVar[str]
    """Name that metrics are excluded by, as in Stable-Baselines3."""
    name: ClassVar[str]
    """Name of the file."""

    def __init__(self, folder: Path, rows: Mapping[str, int]) -> None:
        """Open the file behind its last row."""
        self.path = folder / self.name
        self.file: BinaryIO = self.path.open("ab")
        self.rows = rows.get(self.name, 0)
        """Rows of the file, with its first one, which names its columns or its version."""

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Append a row, and flush it."""
        kept = filter_excluded_keys(key_values, key_excluded, self.kind)
        self.append({name: self._plain(value) for name, value in kept.items()}, step)
        self.file.flush()
        self.rows += 1

    def _plain(self, value: Any) -> object:
        """Return a number or a text as Python's own."""
        if hasattr(value, "dtype"):
            value = value.item() if value.size == 1 else value.tolist()
        if not isinstance(value, str | int | float | list | None):
            raise FormatUnsupportedError([self.kind], type(value).__name__)
        return value

    @staticmethod
    def split(content: bytes) -> list[bytes]:
        """Split the content of a file into its whole rows."""
        return [row for row in content.splitlines(keepends=True) if row.endswith(b"\n")]

    @abstractmethod
    def append(self, row: Mapping[str, object], step: int) -> None:
        """Append a row."""

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class JSONLines(RowWriter):
    """A JSON object a line; numbers that JSON lacks are "nan", "inf" and "-inf"."""

    kind = "json"
    name = "progress.json"

    def append(self, row: Mapping[str, object], step: int) -> None:
        """Append a line."""
        self.file.write((json.dumps(worded(row), allow_nan=False) + "\n").encode())


class CSV(RowWriter):
    """A table, which is written anew when there is a metric that it has no column for."""

    kind = "csv"
    name = "progress.csv"

    def __init__(self, folder: Path, rows: Mapping[str, int]) -> None:
        """Read the names of the columns."""
        path = folder / self.name
        self.columns = next(iter(_table(path, 1)), []) if path.exists() else []
        super().__init__(folder, rows)

    def append(self, row: Mapping[str, object], step: int) -> None:
        """Append a line."""
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
    """Read the lines of a table, or the first of them."""
    try:
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            return list(islice(csv.reader(file), most))
    except csv.Error as problem:
        raise DataError(f"{path} is damaged: {problem}; move it away, and the run goes on with a new one") from problem


def _line(values: Iterable[object]) -> bytes:
    text = io.StringIO()
    one_line = [value.replace("\n", " ") if isinstance(value, str) else value for value in values]
    csv.writer(text, lineterminator="\n").writerow(one_line)
    return text.getvalue().encode()


class TensorBoard(RowWriter):
    """TensorBoard's file of events, with the metrics that are numbers.

    Written at once and by the thread that learns, so that an error is one of learn().
    """

    kind = "tensorboard"
    name = EVENTS

    def __init__(self, folder: Path, rows: Mapping[str, int]) -> None:
        """Open the file; its first event is its version."""
        from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
        from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

        super().__init__(folder, rows)
        self._event, self._summary = Event, Summary
        self._records = RecordWriter(self.file)

    @staticmethod
    def split(content: bytes) -> list[bytes]:
        """Split the content of a file into its whole events."""
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
    """Tables for people, in a file that goes on."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.open("a", encoding="utf-8"))
        self.own_file = True


WRITERS: dict[str, type[RowWriter]] = {writer.kind: writer for writer in (CSV, JSONLines, TensorBoard)}


def rows_of(logger: Logger) -> dict[str, int]:
    """Return the number of rows of each file that a logger writes."""
    return {writer.name: writer.rows for writer in logger.output_formats if isinstance(writer, RowWriter)}


def keep_rows(folder: Path, wanted: Mapping[str, int]) -> dict[str, int]:
    """Cut the files of metrics after so many rows, and return how many each of them has.

    A run that was killed may have left half a row, and rows of steps that it will repeat.

    Args:
        folder: Folder of the run.
        wanted: Rows of each file; one that is not named keeps all.
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
