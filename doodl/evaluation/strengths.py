"""Equal strength: the value of a method's knob at which its edits change photos as much."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

_MAX_STRIDE = 6.0  # the factor by which one trial may leave what has been tried


@dataclass(frozen=True)
class Strength:
    """The value found, the mean RMS change there and asked for, and every trial (value, change)."""

    value: float
    change: float
    target: float
    trials: tuple[tuple[float, float], ...]

    @property
    def matched(self) -> bool:
        """Whether the change came within a tenth of what was asked for."""
        return abs(self.change - self.target) <= 0.1 * self.target


def match_strength(
    measure: Callable[[float], float],
    target: float,
    *,
    start: float = 1.0,
    tolerance: float = 0.03,
    max_trials: int = 6,
) -> Strength:
    """Return the value at which `measure` gives `target`, or the nearest of the trials made.

    Change grows with the knob about as a power, so trials follow a line in log-log; once two
    enclose the target, false position between them, or their middle where that makes no headway.

    Args:
        measure: mean RMS change of the edits at a value, at least 0; noisy and flat are both fine.
        tolerance: relative distance from the target that ends the search.
    Raises: ValueError unless start and target are above zero.
    """
    if not (start > 0 and target > 0):
        raise ValueError(f"start (={start}) and target (={target}) must be above zero.")
    trials: list[tuple[float, float]] = []
    value = start
    for _ in range(max_trials):
        change = measure(value)
        trials.append((value, change))
        if abs(change - target) <= tolerance * target:
            break
        value = _next_value(trials, target)
        if any(math.isclose(value, tried, rel_tol=1e-3) for tried, _ in trials):
            break
    best = min(trials, key=lambda trial: abs(trial[1] - target))
    return Strength(best[0], best[1], target, tuple(trials))


def _next_value(trials: list[tuple[float, float]], target: float) -> float:
    below = max((t for t in trials if t[1] < target), default=None, key=lambda trial: trial[0])
    above = min((t for t in trials if t[1] >= target), default=None, key=lambda trial: trial[0])
    if below is None:
        assert above is not None  # a trial is on one side or the other
        return above[0] / _stride(target, above[1])
    if above is None:
        return below[0] * _stride(below[1], target)
    (low, low_change), (high, high_change) = below, above
    middle = math.sqrt(low * high)
    if low_change <= 0 or len(trials) > 3 or low >= high:
        return middle
    share = math.log(target / low_change) / math.log(high_change / low_change)
    return low * (high / low) ** min(max(share, 0.1), 0.9)


def _stride(lower: float, higher: float) -> float:
    """Return the factor that would make up for the ratio, and a little more to enclose it."""
    if lower <= 0:
        return _MAX_STRIDE
    return min(max(1.15 * higher / lower, 1.3), _MAX_STRIDE)
