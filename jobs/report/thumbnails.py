"""A page's folder of small pictures: made once, kept for the next report, pruned after it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.report.pages import write_whole
from pipeline.collection import OutputView
from pipeline.pictures import before_thumbnails, delivered_thumbnails

_OURS = re.compile(r"^[0-9a-f]{24}-[a-z]+\.jpg$")


class Thumbnails:
    """The pictures beside a page; a kind is a word: before, after."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shown: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)

    def make_before(self, view: OutputView, rows: Sequence[Mapping[str, Any]]) -> None:
        """Make the pictures of what these rows' results are compared with."""
        lacking, names = self._lacking(rows, "before")
        self._keep(before_thumbnails(view, lacking), names)

    def make_delivered(
        self, view: OutputView, rows: Sequence[Mapping[str, Any]], kind: str = "after"
    ) -> None:
        """Make the pictures of what these rows delivered; those not `ok` delivered nothing."""
        delivered = [row for row in rows if row["status"] == "ok"]
        lacking, names = self._lacking(delivered, kind)
        self._keep(delivered_thumbnails(view, lacking), names)

    def shown(self, row: Mapping[str, Any], kind: str) -> str | None:
        """Return a picture's address as the page writes it, None if there is none."""
        name = _name(row, kind)
        if not (self.folder / name).is_file():
            return None
        self._shown.add(name)
        return f"{self.folder.name}/{name}"

    def prune(self) -> None:
        """Remove pictures of earlier reports that this one does not show."""
        for path in self.folder.iterdir():
            if _OURS.match(path.name) and path.name not in self._shown:
                path.unlink(missing_ok=True)

    def _lacking(
        self, rows: Sequence[Mapping[str, Any]], kind: str
    ) -> tuple[list[Mapping[str, Any]], dict[str, str]]:
        lacking = [row for row in rows if not (self.folder / _name(row, kind)).is_file()]
        return lacking, {row["row_id"]: _name(row, kind) for row in lacking}

    def _keep(self, made: Iterable[tuple[str, bytes]], names: Mapping[str, str]) -> None:
        for row_id, data in made:
            write_whole(self.folder / names[row_id], data)


def _name(row: Mapping[str, Any], kind: str) -> str:
    # Named by a hash: a photo's own name may hold anything, and never reaches a path or a URL.
    said = f"{row['row_id']}\0{row['work_key']}"
    digest = hashlib.blake2b(said.encode("utf-8", "surrogatepass"))
    return f"{digest.hexdigest()[:24]}-{kind}.jpg"
