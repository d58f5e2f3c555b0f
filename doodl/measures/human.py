"""What people chose, in figures: win, draw and loss of pairs, and four levels of likeness.

Each figure comes in three ways, as DOODL's human studies give theirs: of all votes together
(aggregate), of what most raters of an item said (majority), and of the items on which all agree
(unanimous).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from doodl.measures.bootstrap import Interval, bootstrap_interval

DRAW = "draw"


@dataclass(frozen=True)
class Vote:
    """One person's choice on one item.

    Attributes:
        item: what it was on. rater: whose it is.
        choice: of a pair the method chosen, or "draw"; of a picture the level, 1 the lowest.
        method: that made the picture rated; of a pair it says nothing.
    """

    item: str
    rater: str
    choice: Hashable
    method: str = ""


@dataclass(frozen=True)
class WinDrawLoss:
    """Counts, from the second method's side. undecided: items that this way of counting leaves."""

    wins: int
    draws: int
    losses: int
    undecided: int = 0

    @property
    def total(self) -> int:
        return self.wins + self.draws + self.losses

    def shares(self) -> tuple[float, float, float] | None:
        """Return the shares of win, draw and loss; None of nothing."""
        if not self.total:
            return None
        return self.wins / self.total, self.draws / self.total, self.losses / self.total


@dataclass(frozen=True)
class PairwiseFigures:
    """Of a study of pairs, from the second method's side.

    Attributes:
        score: an item's mean of 1 a win, 0.5 a draw, 0 a loss, with its interval over items.
        kappa: Fleiss's agreement between raters; None where it has no meaning.
    """

    aggregate: WinDrawLoss
    majority: WinDrawLoss
    unanimous: WinDrawLoss
    score: Interval | None
    num_items: int
    num_raters: int
    kappa: float | None


@dataclass(frozen=True)
class RatingFigures:
    """Of one method's pictures in a study of levels.

    Attributes:
        counts: votes by level, the lowest first. mean: level, with its interval over pictures.
        aggregate: share of votes that accept. majority, unanimous: share of pictures that more
            than half, or all, of their raters accept.
    """

    method: str
    num_items: int
    counts: tuple[int, ...]
    mean: Interval | None
    aggregate: float
    majority: float
    unanimous: float
    kappa: float | None = field(default=None)


def pairwise_figures(votes: Sequence[Vote], first: str, second: str) -> PairwiseFigures:
    """Return the figures of votes between two methods: a win is the second's.

    A majority is more than half of an item's votes; without one the item is a draw. An item on
    which the raters differ is undecided in the unanimous count.
    Raises: ValueError for a choice that is none of the two methods nor a draw.
    """
    wrong = {str(vote.choice) for vote in votes} - {first, second, DRAW}
    if wrong:
        raise ValueError(f"choices {sorted(wrong)} must be {first}, {second} or {DRAW}.")
    by_item = _by_item(votes)
    majority: Counter[Hashable] = Counter()
    unanimous: Counter[Hashable] = Counter()
    scores = []
    for chosen in by_item.values():
        common, count = Counter(chosen).most_common(1)[0]
        majority[common if 2 * count > len(chosen) else DRAW] += 1
        unanimous[common if count == len(chosen) else None] += 1
        worth = {second: 1.0, DRAW: 0.5, first: 0.0}
        scores.append(sum(worth[str(choice)] for choice in chosen) / len(chosen))

    def counted(counts: Mapping[Hashable, int]) -> WinDrawLoss:
        return WinDrawLoss(
            counts.get(second, 0), counts.get(DRAW, 0), counts.get(first, 0), counts.get(None, 0)
        )

    return PairwiseFigures(
        aggregate=counted(Counter(choice for chosen in by_item.values() for choice in chosen)),
        majority=counted(majority),
        unanimous=counted(unanimous),
        score=bootstrap_interval(scores),
        num_items=len(by_item),
        num_raters=len({vote.rater for vote in votes}),
        kappa=fleiss_kappa(list(by_item.values())),
    )


def rating_figures(
    votes: Sequence[Vote], *, num_levels: int = 4, accept: int = 3
) -> list[RatingFigures]:
    """Return each method's figures, methods in order of name.

    Args:
        accept: the lowest level that accepts a picture.
    Raises: ValueError for a level outside 1..num_levels.
    """
    if not 1 <= accept <= num_levels:
        raise ValueError(f"accept (={accept}) must be in 1..{num_levels}.")
    for vote in votes:
        if not isinstance(vote.choice, int) or not 1 <= vote.choice <= num_levels:
            raise ValueError(f"level (={vote.choice!r}) must be in 1..{num_levels}.")
    return [
        _rated([vote for vote in votes if vote.method == method], method, num_levels, accept)
        for method in sorted({vote.method for vote in votes})
    ]


def _rated(votes: Sequence[Vote], method: str, num_levels: int, accept: int) -> RatingFigures:
    by_item = _by_item(votes)
    levels = {item: [int(str(choice)) for choice in chosen] for item, chosen in by_item.items()}
    accepted = {item: sum(v >= accept for v in values) for item, values in levels.items()}
    counts = Counter(value for values in levels.values() for value in values)
    return RatingFigures(
        method=method,
        num_items=len(levels),
        counts=tuple(counts[level] for level in range(1, num_levels + 1)),
        mean=bootstrap_interval([sum(values) / len(values) for values in levels.values()]),
        aggregate=sum(accepted.values()) / sum(map(len, levels.values())),
        majority=sum(2 * accepted[i] > len(levels[i]) for i in levels) / len(levels),
        unanimous=sum(accepted[i] == len(levels[i]) for i in levels) / len(levels),
        kappa=fleiss_kappa(list(by_item.values())),
    )


def _by_item(votes: Sequence[Vote]) -> dict[str, list[Hashable]]:
    found: dict[str, dict[str, Hashable]] = defaultdict(dict)
    for vote in votes:
        found[vote.item][vote.rater] = vote.choice  # a rater's later word stands
    return {item: list(chosen.values()) for item, chosen in found.items()}


def fleiss_kappa(items: Sequence[Sequence[Any]]) -> float | None:
    """Return the raters' agreement beyond chance: 1 is perfect, 0 is chance's.

    Over the items that as many raters judged as most were: the measure wants one number of them.
    None with fewer than two items or raters, or where all said the same everywhere.
    Source: J. L. Fleiss, Psychological Bulletin 76 (1971) 378, eqs. 3 to 7.
    """
    if not items:
        return None
    raters = Counter(len(chosen) for chosen in items).most_common(1)[0][0]
    same = [Counter(chosen) for chosen in items if len(chosen) == raters]
    if raters < 2 or len(same) < 2:
        return None
    total: Counter[Any] = sum(same, Counter())
    chance = sum((count / (raters * len(same))) ** 2 for count in total.values())
    if chance == 1:
        return None
    pairs = [sum(n * (n - 1) for n in count.values()) / (raters * (raters - 1)) for count in same]
    return (sum(pairs) / len(pairs) - chance) / (1 - chance)
