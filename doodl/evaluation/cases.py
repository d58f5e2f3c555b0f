"""Which photos an evaluation edits: some as they are, some damaged by a known amount."""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from PIL import Image

from doodl.errors import PhotoError
from doodl.images import Photo, decode_photo
from doodl.pocket.training.degrade import TONE, degrade
from doodl.pocket.training.recipes import RECIPES

SETS = ("dulled", "untouched")

GUIDE_TYPES = tuple(name for name in TONE if name not in RECIPES["tower"].left_out)
"""Damage of tone and colour that the guide was trained to recognise."""

UNSEEN_TYPES = tuple(
    name for name in TONE if all(name in RECIPES[who].left_out for who in ("tower", "judge"))
)
"""Damage that neither the guide nor the judge ever saw in training."""

NO_STRETCH_TYPES = (
    "patchy_haze",
    "uneven_light",
    "vignetted",
    "flat_midtones",
    "murky",
    "washed_out",
    "tinted_midtones",
    "tinted_whites",
)
"""Damage that no global stretch of the levels undoes: it varies over the frame, bends the curve
between fixed end points, or tints between clean ones."""

GROUPS = {
    "trained": GUIDE_TYPES,
    "unseen": UNSEEN_TYPES,
    "no stretch": NO_STRETCH_TYPES,
}
"""Groups reported apart; a type may be in two of them."""

# Two types among eighteen would be a ninth of the photos: too few for an interval worth reading.
_UNSEEN_DRAWS = 3


@dataclass(frozen=True)
class Source:
    """A photo that an evaluation may draw: its name, class ("" if none), and how to read it.

    read: returns the file's bytes; it is sent to worker processes, so it must pickle.
    """

    name: str
    label: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Case:
    """One photo as an evaluation uses it.

    Attributes:
        source: the photo.
        set: dulled | untouched.
        type, severity: the damage, None for an untouched photo.
        seed: of the damage, of the edit's crops, and of whatever else is drawn for it.
    """

    source: Source
    set: str
    type: str | None
    severity: float | None
    seed: int

    @property
    def key(self) -> str:
        """What tells this case from every other: photo, set, damage, seed."""
        severity = "" if self.severity is None else f"{self.severity:.4f}"
        return "|".join((self.source.name, self.set, self.type or "", severity, str(self.seed)))


@dataclass(frozen=True)
class Draw:
    """How many cases are drawn, and how.

    Attributes:
        num_dulled, num_untouched: cases that the tables are made of.
        num_validation: photos kept apart to tune the rival methods' strengths on.
        severity: the range that the damage's severity is drawn from, uniformly.
        max_px: photos with a longer side are scaled down to it.
        types: the damage to draw from; empty means all of TONE.
    """

    num_dulled: int = 100
    num_untouched: int = 50
    num_validation: int = 6
    severity: tuple[float, float] = (0.4, 0.9)
    max_px: int = 1024
    types: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_dulled", "num_untouched", "num_validation"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} (={getattr(self, name)}) must not be negative.")
        low, high = self.severity
        if not 0 < low <= high <= 1:
            raise ValueError(f"severity (={low}, {high}) must be a range within (0, 1].")
        if self.max_px < 64:
            raise ValueError(f"max_px (={self.max_px}) must be at least 64.")
        unknown = [name for name in self.types if name not in TONE]
        if unknown:
            raise ValueError(
                f"types {', '.join(unknown)} are not damage of tone; known: {', '.join(TONE)}."
            )

    @cached_property
    def cycle(self) -> tuple[str, ...]:
        """The types in the order they are dealt out, again and again; unseen ones come thrice."""
        types = self.types or TONE
        dealt = [
            name for name in types for _ in range(_UNSEEN_DRAWS if name in UNSEEN_TYPES else 1)
        ]
        random.Random(self.seed).shuffle(dealt)
        return tuple(dealt)


@dataclass(frozen=True)
class Prepared:
    """A case made ready: the photo the method gets, as decoded from its file's bytes.

    data: the bytes of that file. clean: those of a PNG of the photo before the damage, with its
    pixels (H, W, 3) uint8 in clean_pixels; None if there was none.
    """

    data: bytes
    photo: Photo
    clean: bytes | None = None
    clean_pixels: np.ndarray | None = None


@dataclass
class Drawn:
    """The cases of an evaluation, and the sources that could not serve: (name, why)."""

    validation: list[Case]
    cases: list[Case]
    unreadable: list[tuple[str, str]]


def draw_cases(sources: Sequence[Source], draw: Draw) -> Drawn:
    """Return the cases of an evaluation, the same for the same sources and seed.

    Sources are ordered by a hash of seed and name: the first are for validation, the next are
    dulled, and untouched ones are taken from the other end, so asking for more keeps what there
    was. With too few sources a photo serves in both sets, never in validation as well. Greyscale
    photos are not dulled: half of the damage would do nothing to them.
    """
    ordered = sorted(sources, key=lambda source: _hash(draw.seed, "order", source.name))
    reader = _Reader()
    num_validation = min(draw.num_validation, len(ordered) // 3)
    kept = reader.take(ordered, num_validation, colour=True)
    rest = [source for source in ordered if source not in kept]
    dulled = reader.take(rest, draw.num_dulled, colour=True)
    untouched = reader.take(rest[::-1], draw.num_untouched, colour=False)
    cases = [_dulled(source, i, draw) for i, source in enumerate(dulled)]
    cases += [_untouched(source, draw) for source in untouched]
    # Two damaged to one untouched, as in the tables.
    validation = [
        _untouched(source, draw) if i % 3 == 2 else _dulled(source, i, draw)
        for i, source in enumerate(kept)
    ]
    return Drawn(validation, cases, reader.unreadable)


def prepare(case: Case, max_px: int) -> Prepared:
    """Return the case's photo as its file gives it back, scaled to at most max_px a side.

    A damaged photo is written as a PNG and decoded again, so an edit of it goes the way of any
    user's photo. Raises: PhotoError if the source cannot be read; OSError if it is gone.
    """
    data = case.source.read()
    photo = decode_photo(data)
    longer = max(photo.width_px, photo.height_px)
    if case.type is None:
        if longer > max_px:
            data = _png(_bounded(photo, max_px), photo.icc_profile)
            photo = decode_photo(data)
        return Prepared(data, photo)
    assert case.severity is not None
    clean = _bounded(photo, max_px)
    image = torch.from_numpy(clean.copy()).permute(2, 0, 1)[None].float() / 255
    damaged = degrade(
        case.type,
        image,
        torch.tensor([case.severity]),
        torch.Generator().manual_seed(case.seed),
    )
    pixels = damaged[0].permute(1, 2, 0).mul(255).round().byte().numpy()
    data = _png(pixels, photo.icc_profile)
    return Prepared(data, decode_photo(data), _png(clean, photo.icc_profile), clean)


def _dulled(source: Source, place: int, draw: Draw) -> Case:
    low, high = draw.severity
    seed = _hash(draw.seed, "dulled", source.name)
    severity = low + (high - low) * random.Random(seed).random()
    kind = draw.cycle[place % len(draw.cycle)]
    return Case(source, "dulled", kind, round(severity, 4), seed)


def _untouched(source: Source, draw: Draw) -> Case:
    return Case(source, "untouched", None, None, _hash(draw.seed, "untouched", source.name))


class _Reader:
    """Takes sources that can be decoded, reading each at most once."""

    def __init__(self) -> None:
        self.unreadable: list[tuple[str, str]] = []
        self._grey: dict[str, bool | None] = {}

    def take(self, sources: Sequence[Source], count: int, *, colour: bool) -> list[Source]:
        taken: list[Source] = []
        for source in sources:
            if len(taken) == count:
                break
            grey = self._is_grey(source)
            if grey is not None and not (colour and grey):
                taken.append(source)
        return taken

    def _is_grey(self, source: Source) -> bool | None:
        """Return whether the photo is greyscale, None if it cannot be read."""
        if source.name not in self._grey:
            try:
                self._grey[source.name] = decode_photo(source.read()).grey
            except (PhotoError, OSError) as error:
                self._grey[source.name] = None
                self.unreadable.append((source.name, str(error)))
        return self._grey[source.name]


def _bounded(photo: Photo, max_px: int) -> np.ndarray:
    pixels = photo.pixels
    scale = max_px / max(photo.width_px, photo.height_px)
    if scale >= 1:
        return pixels
    size = (max(1, round(photo.width_px * scale)), max(1, round(photo.height_px * scale)))
    small = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    return np.asarray(small)


def _png(pixels: np.ndarray, icc_profile: bytes | None) -> bytes:
    buffer = io.BytesIO()
    profile = {"icc_profile": icc_profile} if icc_profile else {}
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1, **profile)
    return buffer.getvalue()


def _hash(seed: int, *words: str) -> int:
    """Return 48 bits: a seed for torch and random, exact in JSON and Parquet."""
    text = "\0".join((str(seed), *words)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=6).digest(), "big")
