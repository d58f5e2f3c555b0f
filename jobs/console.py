"""What a person sees: progress, summary, errors. The only module that prints."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)

_PLAIN_EVERY_SECONDS = 10.0


def say(message: str) -> None:
    """Print one line for a person, on stderr: stdout is for results."""
    err.print(escape(message))


def error(message: str, hint: str | None = None) -> None:
    """Print one line that says what went wrong, and one that says what to do."""
    err.print(f"[bold red]error:[/] {escape(message)}")
    if hint:
        err.print(f"[dim]hint:[/] {escape(hint)}")


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout, for programs."""
    sys.stdout.write(json.dumps(value, indent=2, default=str, ensure_ascii=False) + "\n")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table; numbers to the right."""
    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    for i, column in enumerate(columns):
        numeric = all(isinstance(row[i], (int, float)) for row in rows) and bool(rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(_cell(value)) for value in row))
    out.print(table)


def print_facts(title: str, facts: Mapping[str, Any]) -> None:
    """Print names and values, one a line."""
    out.print(f"[bold]{escape(title)}[/]")
    width = max((len(name) for name in facts), default=0)
    for name, value in facts.items():
        out.print(f"  {escape(name):<{width}}  {escape(_cell(value))}")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


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
        self._total, self._started = total, time.monotonic()
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
        """Count one finished row; a failed one is named at once."""
        self._done += 1
        if status == "failed":
            self._failed += 1
            self.message(f"failed: {row_id}: {detail}")
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
