"""Who is told how a run goes: a person, and what keeps a record of it."""

from __future__ import annotations

from typing import Any, Protocol


class Observer(Protocol):
    """A person's console, or a test."""

    def message(self, text: str) -> None:
        """One line for a person."""

    def start(self, total: int) -> None:
        """The rows that are about to be computed."""

    def row(self, row_id: str, status: str, detail: str | None) -> None:
        """One row is finished."""


class Recorder(Protocol):
    """A log or a meter: for programs, of every run."""

    def event(self, name: str, **facts: Any) -> None:
        """Something happened; `pipeline.runlog` lists the names and their facts."""

    def load(self, in_flight: int) -> None:
        """So many batches are with the workers now."""


class Silent:
    """Nobody is told."""

    def message(self, text: str) -> None: ...

    def start(self, total: int) -> None: ...

    def row(self, row_id: str, status: str, detail: str | None) -> None: ...


class Broadcast:
    """An observer and recorders, told together."""

    def __init__(self, observer: Observer) -> None:
        self.observer = observer
        self.recorders: list[Recorder] = []

    def message(self, text: str) -> None:
        self.observer.message(text)
        self.event("message", text=text)

    def start(self, total: int) -> None:
        self.observer.start(total)

    def row(self, row_id: str, status: str, detail: str | None) -> None:
        self.observer.row(row_id, status, detail)

    def event(self, name: str, **facts: Any) -> None:
        for recorder in self.recorders:
            recorder.event(name, **facts)

    def load(self, in_flight: int) -> None:
        for recorder in self.recorders:
            recorder.load(in_flight)
