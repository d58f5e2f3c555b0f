"""What a person sees: progress, summary, errors. The only module that prints."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from manifests.secrets import scrub

# No emoji: a file may be called `:100:.jpg`.
out = Console(soft_wrap=True, highlight=False, emoji=False)
err = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)

_PLAIN_EVERY_SECONDS = 10.0
_MAX_NAMED_FAILURES = 20

# What a terminal obeys or a reader is fooled by: control characters (C0, DEL, C1), line and
# paragraph separators, marks that turn the direction of writing, and lone surrogates.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def plain(text: str) -> str:
    """Return the text as one line that a terminal only shows: what it would obey becomes \\xNN."""
    return _UNPRINTABLE.sub(_code, text)


def _code(match: re.Match[str]) -> str:
    number = ord(match.group())
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


def say(message: str) -> None:
    """Print one line for a person, on stderr: stdout is for results."""
    err.print(Text(plain(scrub(message))))


def result(line: str) -> None:
    """Print one line of what was asked for, on stdout."""
    out.print(Text(plain(line)))


def verbatim(text: str) -> None:
    """Print a file's text on stdout as it is, to the byte."""
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))
    sys.stdout.flush()


def error(message: str, hint: str | None = None) -> None:
    """Print one line that says what went wrong, and one that says what to do."""
    err.print(Text.assemble(("error:", "bold red"), " ", plain(scrub(message))))
    if hint:
        err.print(Text.assemble(("hint:", "dim"), " ", plain(scrub(hint))))


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout, for programs."""
    text = json.dumps(value, indent=2, default=str, ensure_ascii=False) + "\n"
    # A path that is not UTF-8 holds lone surrogates; as \udcNN they are JSON too.
    sys.stdout.write(text.encode("utf-8", "backslashreplace").decode())


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table; numbers to the right."""
    heading = Text(plain(title)) if title else None
    table = Table(title=heading, title_justify="left", show_edge=False, pad_edge=False)
    for i, column in enumerate(columns):
        numeric = all(isinstance(row[i], (int, float)) for row in rows) and bool(rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    out.print(table)


def print_facts(title: str, facts: Mapping[str, Any]) -> None:
    """Print names and values, one a line."""
    out.print(Text(plain(title), "bold"))
    width = max((len(name) for name in facts), default=0)
    for name, value in facts.items():
        result(f"  {name:<{width}}  {_cell(value)}")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return plain(str(value))


class RunProgress:
    """Progress of a run: a bar with rate and ETA on a terminal, plain lines elsewhere."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bar: Progress | None = None
        self._task: Any = None
        self._total = self._done = self._failed = 0
        self._started = self._printed = time.monotonic()

    def __enter__(self) -> RunProgress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, total: int) -> None:
        """Begin to count `total` rows; the clock of the rate starts here."""
        if self._bar is not None:  # a run may come to compute more: at most one bar is shown
            self._bar.stop()
        self._total, self._done, self._started = total, 0, time.monotonic()
        if self._quiet or total == 0:
            return
        if err.is_terminal:
            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                console=err,
            )
            self._task = self._bar.add_task("photos", total=total, rate="")
            self._bar.start()

    def message(self, text: str) -> None:
        if not self._quiet:
            say(text)

    def row(self, row_id: str, status: str, detail: str | None) -> None:
        """Count one finished row; a failed one is named at once, unless there are very many."""
        self._done += 1
        if status == "failed":
            self._failed += 1
            if self._failed <= _MAX_NAMED_FAILURES:
                self.message(f"failed: {row_id}: {detail}")
            if self._failed == _MAX_NAMED_FAILURES:
                self.message("further failures are counted, not named; the results have them all")
        if self._quiet:
            return
        elapsed = max(time.monotonic() - self._started, 1e-9)
        rate = self._done / elapsed
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, rate=f"{60 * rate:.1f}/min")
        elif time.monotonic() - self._printed >= _PLAIN_EVERY_SECONDS or self._done == self._total:
            self._printed = time.monotonic()
            left = (self._total - self._done) / rate
            say(
                f"{self._done}/{self._total} photos, {60 * rate:.1f}/min, "
                f"{self._failed} failed, about {left:.0f} s left"
            )
