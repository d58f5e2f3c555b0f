"""What an evaluation has finished, in a folder: rows, strengths and pictures survive a kill."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from doodl.evaluation.rows import Measured, Row
from doodl.evaluation.strengths import Strength

RowKey = tuple[str, str]
"""(case, recipe): what tells a row from every other."""


class Store:
    """The folder `_work` of an evaluation.

    rows.jsonl: one finished row a line, appended and flushed; a line cut short by a kill is left
    out when the file is read again. notes.json: values by name. pictures/: small JPEGs, or what
    else `suffix` says.
    """

    def __init__(self, out: Path, suffix: str = ".jpg") -> None:
        self.folder = out / "_work"
        self._suffix = suffix
        (self.folder / "pictures").mkdir(parents=True, exist_ok=True)
        self._rows = self.folder / "rows.jsonl"
        self._notes = self.folder / "notes.json"

    def rows(self) -> dict[RowKey, Row]:
        """Return the finished rows; of two with one key, the later."""
        rows: dict[RowKey, Row] = {}
        if self._rows.is_file():
            for line in self._rows.read_bytes().splitlines():
                try:
                    row = json.loads(line)
                    rows[row["case"], row["recipe"]] = row
                except (ValueError, KeyError, TypeError):
                    continue
        return rows

    def add(self, finished: Iterable[Measured]) -> None:
        """Keep rows and their pictures; the pictures first, so that a row has its own."""
        lines = []
        for measured in finished:
            row = measured.row
            if measured.picture:
                name = picture_name(row["case"], row["recipe"], self._suffix)
                self.put_picture(name, measured.picture)
            lines.append(json.dumps(row, allow_nan=False) + "\n")
        with self._rows.open("ab") as file:
            # After a line cut short, a newline of our own: only that one is lost.
            if file.tell() and not self._ends_whole():
                lines.insert(0, "\n")
            file.write("".join(lines).encode())
            file.flush()
            os.fsync(file.fileno())

    def _ends_whole(self) -> bool:
        with self._rows.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"

    def put_picture(self, name: str, data: bytes) -> None:
        write_whole(self.folder / "pictures" / name, data)

    def picture(self, name: str) -> Path:
        return self.folder / "pictures" / name

    def strength(self, key: str) -> Strength | None:
        """Return the strength kept under a key, None if there is none."""
        values = self.notes().get("strengths", {}).get(key)
        if values is None:
            return None
        trials = tuple((value, change) for value, change in values.pop("trials"))
        return Strength(**values, trials=trials)

    def put_strength(self, key: str, strength: Strength) -> None:
        notes = self.notes()
        notes.setdefault("strengths", {})[key] = asdict(strength)
        self._put(notes)

    def note(self, name: str) -> Any:
        """Return a value kept by name, None if there is none."""
        return self.notes().get(name)

    def put_note(self, name: str, value: Any) -> None:
        self._put({**self.notes(), name: value})

    def notes(self) -> dict[str, Any]:
        return json.loads(self._notes.read_text()) if self._notes.is_file() else {}

    def _put(self, notes: dict[str, Any]) -> None:
        write_whole(self._notes, (json.dumps(notes, indent=1) + "\n").encode())


def picture_name(case: str, what: str, suffix: str = ".jpg") -> str:
    """Return the file name of a picture: of the case's `clean`, its `source`, or a recipe's edit.

    Both parts are fingerprints or words of ours, never a photo's name.
    """
    return f"{case}-{what}{suffix}"


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    temporary.replace(path)
