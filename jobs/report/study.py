"""Pages on which people judge, blind: pairs of pictures, or pictures of a subject on four levels.

A study is a folder: `page/`, which may be given to anybody, and `_key.json`, which says what is
what and must not be. What people choose is saved by the page as JSON; `evaluate human` puts both
together.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.report.pages import render_page, write_whole
from jobs.report.rows import MADE_OF_WORDS, text
from manifests.claims import claim_folder
from manifests.originals import unlinked
from pipeline.collection import OutputView
from pipeline.human import KEY_FILE, StudyError
from pipeline.pictures import before_thumbnails, delivered_thumbnails, source_thumbnails
from pipeline.subjects import subject_uris

PAGE = "page"
SIDE_PX = 1024
LEVELS = (
    "not the subject at all",
    "some likeness to the subject",
    "much like the subject",
    "the very subject",
)
"""Four levels, the lowest first, as DOODL's personalisation study has them; the words are ours."""

_COLUMNS = (
    "row_id", "work_key", "status", "task", "prompt", "image_uri", "edited_uri", "unguided_uri",
)  # fmt: skip
_SCRIPTS = ("common.js", "study.js")
_STYLES = ("base.css", "study.css")
_MAX_SUBJECTS = 4
_OURS = re.compile(r"[0-9a-f]{16}\.jpg")


@dataclass(frozen=True)
class Wanted:
    """What a study is to be.

    Attributes:
        out: an output folder. against: another over the same rows, in place of what was before.
        number: at most so many rows. question: what people are asked.
        levels: of a rating, the lowest first.
    """

    out: str
    against: str | None = None
    number: int = 100
    seed: int = 0
    question: str = ""
    levels: Sequence[str] = LEVELS


def build_pairwise(wanted: Wanted, folder: Path) -> Path:
    """Write a page of pairs, each picture left as often as right, and return its path.

    A row is one pair: what was delivered, and what was before (the photo, or the picture of the
    same noise that nothing guided) or what the other run delivered. Rows without both are left out.
    Raises: ManifestError if a folder holds no job; StudyError if there is no pair.
    """
    pictures = _Pictures(folder, wanted.seed)
    methods, rows, made = _made(wanted)
    pairs = [row for row in rows if all(row["row_id"] in each for each in made)]
    if not pairs:
        raise StudyError(f"{wanted.out} has no row with two pictures to compare.")
    sides = [bool(i % 2) for i in range(len(pairs))]
    pictures.random.shuffle(sides)
    items, key = [], {}
    for row, swapped in zip(pairs, sides, strict=True):
        item = pictures.new_name()
        shown = [pictures.keep(each[row["row_id"]]) for each in made]
        order = (1, 0) if swapped else (0, 1)
        items.append({"id": item, "left": shown[order[0]], "right": shown[order[1]], **_asked(row)})
        key[item] = {
            "row_id": row["row_id"], "left": methods[order[0]], "right": methods[order[1]],
        }  # fmt: skip
    question = wanted.question or "Which picture looks better?"
    return _write(folder, "pairwise", wanted, pictures, items, key, methods, question)


def build_rating(wanted: Wanted, folder: Path) -> Path:
    """Write a page of pictures to rate beside photos of their subject, and return its path.

    Each row gives two pictures, the delivered one and the one it is compared with (as
    `build_pairwise`), one at a time and in one shuffled order.
    Raises: ManifestError if a folder holds no job; StudyError if it was not made of subjects.
    """
    pictures = _Pictures(folder, wanted.seed)
    view = OutputView(wanted.out)
    subjects = subject_uris(view)
    methods, rows, made = _made(wanted)
    named = sorted({uri for row in rows for uri in subjects.get(row["row_id"], ())[:_MAX_SUBJECTS]})
    shown = {uri: pictures.keep(data) for uri, data in source_thumbnails(named)}
    items, key = [], {}
    for row in rows:
        exemplars = [
            shown[u] for u in subjects.get(row["row_id"], ())[:_MAX_SUBJECTS] if u in shown
        ]
        for method, each in zip(methods, made, strict=True):
            if exemplars and row["row_id"] in each:
                item = pictures.new_name()
                picture = pictures.keep(each[row["row_id"]])
                items.append({"id": item, "picture": picture, "subjects": exemplars, **_asked(row)})
                key[item] = {"row_id": row["row_id"], "method": method}
    if not items:
        raise StudyError(
            f"{wanted.out} has no picture made of a subject's photos; rate a folder of personalize."
        )
    pictures.random.shuffle(items)
    question = wanted.question or "How much does the picture show the subject of the photos?"
    return _write(folder, "rating", wanted, pictures, items, key, methods, question)


class _Pictures:
    """The study's pictures, by names that tell nothing."""

    def __init__(self, folder: Path, seed: int) -> None:
        # First of all the key: a folder left half made is then known as a study's.
        claim_folder(folder, KEY_FILE, {}, "--to")
        self.random = random.Random(seed)
        self.folder = folder / PAGE / "pictures"
        unlinked(folder, self.folder, whole=True).mkdir(parents=True, exist_ok=True)
        for path in self.folder.iterdir():
            if _OURS.fullmatch(path.name):
                path.unlink()
        self.study = self.new_name()

    def new_name(self) -> str:
        return f"{self.random.getrandbits(64):016x}"

    def keep(self, data: bytes) -> str:
        name = f"{self.new_name()}.jpg"
        write_whole(self.folder / name, data)
        return f"{self.folder.name}/{name}"


def _made(wanted: Wanted) -> tuple[list[str], list[dict[str, Any]], list[dict[str, bytes]]]:
    """Return the two methods, the rows drawn, and each method's pictures by row."""
    view = OutputView(wanted.out)
    rows = [r for r in view.results(_COLUMNS).to_pylist() if r["status"] == "ok"]
    if wanted.against is not None:
        other = OutputView(wanted.against)
        theirs = {r["row_id"]: r for r in other.results(_COLUMNS).to_pylist()}
        rows = [r for r in rows if theirs.get(r["row_id"], {}).get("status") == "ok"]
    rows = _drawn(rows, wanted)
    after = dict(delivered_thumbnails(view, rows, SIDE_PX))
    if wanted.against is not None:
        before = dict(delivered_thumbnails(other, [theirs[r["row_id"]] for r in rows], SIDE_PX))
        return ["against", "out"], rows, [before, after]
    before = dict(before_thumbnails(view, rows, SIDE_PX))
    made = any(row["task"] in MADE_OF_WORDS for row in rows)
    return ["unguided", "guided"] if made else ["before", "after"], rows, [before, after]


def _drawn(rows: list[dict[str, Any]], wanted: Wanted) -> list[dict[str, Any]]:
    rows = sorted(rows, key=lambda row: row["row_id"])
    if len(rows) > wanted.number:
        rows = random.Random(wanted.seed).sample(rows, wanted.number)
    random.Random(wanted.seed + 1).shuffle(rows)
    return rows


def _asked(row: Mapping[str, Any]) -> dict[str, str]:
    prompt = text(row["prompt"]) if row["task"] in MADE_OF_WORDS else None
    return {} if prompt is None else {"prompt": prompt}


def _write(
    folder: Path,
    kind: str,
    wanted: Wanted,
    pictures: _Pictures,
    items: list[dict[str, Any]],
    key: dict[str, Any],
    methods: Sequence[str],
    question: str,
) -> Path:
    data = {
        "study": pictures.study,
        "kind": kind,
        "question": question,
        "items": items,
        "levels": list(wanted.levels) if kind == "rating" else [],
    }
    page = render_page(
        "study.html.jinja",
        data,
        scripts=_SCRIPTS,
        styles=_STYLES,
        title="Which is better?" if kind == "pairwise" else "How alike?",
        kind=kind,
        count=len(items),
    )
    said = {
        "study": pictures.study, "kind": kind, "methods": list(methods), "question": question,
        "levels": data["levels"], "out": wanted.out, "against": wanted.against,
        "seed": wanted.seed, "items": key,
    }  # fmt: skip
    write_whole(folder / KEY_FILE, json.dumps(said, indent=1).encode())
    write_whole(folder / PAGE / "index.html", page)
    return folder / PAGE / "index.html"
