"""Who is told how a run goes."""

from __future__ import annotations

from typing import Protocol


class Observer(Protocol):
    """A person's console, or a test."""

    def message(self, text: str) -> None:
        """One line for a person."""

    def start(self, total: int) -> None:
        """The rows that are about to be computed."""

    def row(self, row_id: str, status: str, detail: str | None) -> None:
        """One row is finished."""


class Silent:
    """Nobody is told."""

    def message(self, text: str) -> None: ...

    def start(self, total: int) -> None: ...

    def row(self, row_id: str, status: str, detail: str | None) -> None: ...
