"""Contact sheets: a photo a row, what it was, what was done to it, and each method's edit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from doodl.errors import UnreadablePhotoError

ROWS_PER_PAGE = 24
_CELL_PX = (150, 112)
_GAP_PX = 5
_LINE_PX = 12
_LABEL_LINES = 2
_HEAD_PX = 34
_INK, _FAINT, _PAPER, _EMPTY = "#1a1a1a", "#777777", "white", "#eeeeee"
_GOOD, _BAD = "#11702c", "#a31919"


@dataclass(frozen=True)
class Cell:
    """One picture and what stands below it.

    picture: a small JPEG or PNG of ours; None or a file that is not there leaves the place empty.
    lines: at most two. verdict: above 0 colours the first line good, below 0 bad.
    """

    picture: Path | None
    lines: tuple[str, ...] = ()
    verdict: float = 0.0


def safe_label(text: str, limit: int = 24) -> str:
    """Return the text as printable Latin characters, the middle of a long one left out.

    A photo's name comes from outside: control characters, marks that turn the direction of
    writing, and what the font cannot show become `?`.
    """
    shown = "".join(c if c.isprintable() and ord(c) < 0x250 else "?" for c in text)
    if len(shown) <= limit:
        return shown
    tail = limit // 2
    return f"{shown[: limit - tail - 1]}…{shown[-tail:]}"


def contact_sheets(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]
) -> Iterator[Image.Image]:
    """Yield the pages: RGB pictures of at most 24 rows each, every one with title and headings."""
    pages = -(-len(rows) // ROWS_PER_PAGE)
    for page in range(pages):
        part = rows[page * ROWS_PER_PAGE : (page + 1) * ROWS_PER_PAGE]
        heading = title if pages == 1 else f"{title}, page {page + 1} of {pages}"
        yield _page(heading, columns, part)


def write_sheets(
    folder: Path, name: str, title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]
) -> list[Path]:
    """Write the pages as `name-01.png`, … into the folder, and remove those of an earlier, longer
    evaluation; `name` is a word of ours."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i, page in enumerate(contact_sheets(title, columns, rows), 1):
        path = folder / f"{name}-{i:02d}.png"
        page.save(path, optimize=True)
        paths.append(path)
    for stale in folder.glob(f"{name}-[0-9][0-9].png"):
        if stale not in paths:
            stale.unlink()
    return paths


def _page(title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Image.Image:
    width_px, height_px = _CELL_PX
    step_x, step_y = width_px + _GAP_PX, height_px + _LABEL_LINES * _LINE_PX + 2 * _GAP_PX
    size = (len(columns) * step_x + _GAP_PX, _HEAD_PX + len(rows) * step_y + _GAP_PX)
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(11)
    draw.text((_GAP_PX, 3), safe_label(title, 160), _INK, font)
    for j, column in enumerate(columns):
        draw.text((_GAP_PX + j * step_x, 18), safe_label(column), _INK, font)
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            left, top = _GAP_PX + j * step_x, _HEAD_PX + i * step_y
            _paste(sheet, cell.picture, (left, top))
            for k, line in enumerate(cell.lines[:_LABEL_LINES]):
                ink = _FAINT if k else _GOOD if cell.verdict > 0 else _BAD if cell.verdict else _INK
                place = (left, top + height_px + 1 + k * _LINE_PX)
                draw.text(place, safe_label(line, 27), ink, font)
    return sheet


def _paste(sheet: Image.Image, picture: Path | None, corner: tuple[int, int]) -> None:
    """Put a picture into its cell, whole and centred; grey where there is none."""
    place = Image.new("RGB", _CELL_PX, _EMPTY)
    if picture is not None and picture.is_file():
        try:
            with Image.open(picture, formats=["JPEG", "PNG"]) as image:
                small = image.convert("RGB")
        except OSError as error:
            raise UnreadablePhotoError(
                f"{picture} is damaged; remove it and run again with --redo."
            ) from error
        small.thumbnail(_CELL_PX, Image.Resampling.LANCZOS)
        place.paste(_PAPER, (0, 0, *_CELL_PX))
        place.paste(small, ((_CELL_PX[0] - small.width) // 2, (_CELL_PX[1] - small.height) // 2))
    sheet.paste(place, corner)
