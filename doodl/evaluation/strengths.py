"""Equal strength: the value of a method's knob at which its edits change photos as much."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

_MAX_STRIDE = 6.0  # the factor by which one trial may leave the last
_BEYOND = 1.05


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
        if _saturated(trials, target):
            break
        value = _next_value(trials, target)
        if any(math.isclose(value, tried, rel_tol=1e-3) for tried, _ in trials):
            break
    best = min(trials, key=lambda trial: abs(trial[1] - target))
    return Strength(best[0], best[1], target, tuple(trials))


def _saturated(trials: list[tuple[float, float]], target: float) -> bool:
    """Return whether a much larger value brought no more change, short of the target."""
    if len(trials) < 2:
        return False
    (value, change), (other, other_change) = sorted(trials)[-2:]
    return other > 1.5 * value and change <= other_change <= 1.01 * change < target


def _next_value(trials: list[tuple[float, float]], target: float) -> float:
    below = max((t for t in trials if t[1] < target), default=None, key=lambda trial: trial[0])
    above = min((t for t in trials if t[1] >= target), default=None, key=lambda trial: trial[0])
    if below is None or above is None:
        value, change = trials[-1]
        factor = (target / change) ** (1 / _power(trials)) if change > 0 else _MAX_STRIDE
        # A little further than the line says, to enclose the target.
        factor *= _BEYOND if factor > 1 else 1 / _BEYOND
        return value * min(max(factor, 1 / _MAX_STRIDE), _MAX_STRIDE)
    (low, low_change), (high, high_change) = below, above
    if low_change <= 0 or len(trials) > 4 or low >= high:
        return math.sqrt(low * high)
    share = math.log(target / low_change) / math.log(high_change / low_change)
    return low * (high / low) ** min(max(share, 0.1), 0.9)


def _power(trials: list[tuple[float, float]]) -> float:
    """Return the power by which change grew between the last two trials, 1 for want of them."""
    if len(trials) < 2:
        return 1.0
    (value, change), (other, other_change) = trials[-2:]
    if min(change, other_change) <= 0:
        return 1.0
    power = math.log(other_change / change) / math.log(other / value)
    return min(max(power, 0.2), 3.0)
