"""What a table says of a set of rows: each figure's value for a photo, its mean, its interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from doodl.evaluation.rows import Row
from doodl.measures.bootstrap import Interval, bootstrap_interval

SHARE = "share"


@dataclass(frozen=True)
class Figure:
    """One column: its heading, a photo's value (None leaves the photo out), and how it is shown.

    kind: `share` for yes or no, shown in percent; else a format of numbers, as `+.2f`.
    """

    name: str
    heading: str
    of: Callable[[Row], float | None]
    kind: str = "+.2f"

    def cell(self, interval: Interval | None) -> str:
        """Return `mean [low, high]`, or a dash without photos."""
        if interval is None:
            return "–"
        numbers = (interval.mean, interval.low, interval.high)
        if self.kind == SHARE:
            mean, low, high = (f"{100 * number:.0f}" for number in numbers)
            return f"{mean} % [{low}, {high}]"
        mean, low, high = (format(number, self.kind) for number in numbers)
        return f"{mean} [{low}, {high}]"

    def mean(self, interval: Interval | None) -> str:
        """Return the mean alone, as `cell` shows it."""
        return self.cell(interval).split(" [")[0]


def moved(row: Row) -> float | None:
    """Return 1 where the referee's score went the way asked; 0 for a photo left as it was."""
    change = _change(row, "referee")
    if change is None:
        return None
    return float(change > 0 if row["direction"] == "up" else change < 0)


def not_against(row: Row) -> float | None:
    """Return 1 where the referee's score did not go against what was asked."""
    change = _change(row, "referee")
    if change is None:
        return None
    return float(change >= 0 if row["direction"] == "up" else change <= 0)


def _change(row: Row, name: str) -> float | None:
    return _difference(row[f"{name}_after"], row[f"{name}_before"])


def _difference(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before


def _scorer(name: str) -> Callable[[Row], float | None]:
    return lambda row: _change(row, name)


def _clean_gain(row: Row) -> float | None:
    return _difference(row["clean_db_after"], row["clean_db_before"])


def _nearer(row: Row) -> float | None:
    gain = _clean_gain(row)
    return None if gain is None else float(gain > 0)


def _column(name: str, factor: float = 1.0) -> Callable[[Row], float | None]:
    return lambda row: None if row[name] is None else factor * row[name]


MOVED = Figure("moved", "referee follows", moved, SHARE)
NOT_AGAINST = Figure("not_against", "not against", not_against, SHARE)
REFEREE = Figure("referee_change", "Δ referee", _scorer("referee"))
NEARER = Figure("nearer", "nearer clean", _nearer, SHARE)
CLEAN_GAIN = Figure("clean_gain_db", "→ clean dB", _clean_gain)
SOURCE_DB = Figure("source_db", "to source dB", _column("source_db"), ".1f")
WHITES = Figure("neutral_shift", "whites ×100", _column("neutral_shift", 100), ".2f")
WHITES_BEFORE = Figure("neutral_before", "whites before", _column("neutral_before", 100), ".2f")
WHITES_CHROMA = Figure(
    "neutral_chroma_change", "whites' chroma", _column("neutral_chroma_change", 100)
)
GUIDE = Figure("guide_change", "Δ guide", _scorer("guide"))
JUDGE = Figure("judge_change", "Δ judge", _scorer("judge"))
DELIVERED = Figure("delivered", "delivered", lambda row: float(row["status"] == "ok"), SHARE)
FAILED = Figure("failed", "failed", lambda row: float(row["status"] == "failed"), SHARE)
RMS = Figure("rms_change", "RMS %", _column("rms_change", 100), ".1f")
SSIM = Figure("ssim", "SSIM", _column("ssim"), ".3f")
SECONDS = Figure("cpu_seconds", "CPU s", _column("cpu_seconds"), ".1f")
CALLS = Figure("unet_calls", "UNet calls", _column("unet_calls"), ".0f")
INVERSION = Figure("inversion_error", "inversion", _column("inversion_error"), ".1e")

DULLED = (
    MOVED, REFEREE, NEARER, CLEAN_GAIN, SOURCE_DB, WHITES_BEFORE, WHITES, WHITES_CHROMA, GUIDE,
    JUDGE, DELIVERED, RMS, SSIM, SECONDS, CALLS, INVERSION,
)  # fmt: skip
UNTOUCHED = (
    NOT_AGAINST, MOVED, REFEREE, SOURCE_DB, WHITES, WHITES_CHROMA, GUIDE, JUDGE, DELIVERED, RMS,
    SSIM, SECONDS, CALLS,
)  # fmt: skip
DOWN = (
    MOVED, REFEREE, SOURCE_DB, WHITES, GUIDE, JUDGE, DELIVERED, RMS, SSIM, SECONDS, CALLS,
)  # fmt: skip


def summarise(
    rows: Sequence[Row], figures: Sequence[Figure], *, seed: int = 0
) -> dict[str, Interval | None]:
    """Return each figure's mean over the rows that have it, with its bootstrap interval."""
    summary = {}
    for figure in figures:
        values = [value for row in rows if (value := figure.of(row)) is not None]
        summary[figure.name] = bootstrap_interval(values, seed=seed)
    return summary


def paired(
    first: Sequence[Row], second: Sequence[Row], figures: Sequence[Figure], *, seed: int = 0
) -> dict[str, Interval | None]:
    """Return the mean difference first - second of each figure, photo by photo.

    Photos are paired by case; a photo that only one of them has is left out.
    """
    others = {row["case"]: row for row in second}
    summary = {}
    for figure in figures:
        values = []
        for row in first:
            if row["case"] in others:
                difference = _difference(figure.of(row), figure.of(others[row["case"]]))
                values += [] if difference is None else [difference]
        summary[figure.name] = bootstrap_interval(values, seed=seed)
    return summary
