"""Measure a pair judge by what it picks.

    python -m doodl.pocket.training.measure_pairs --shared S --judge J

It picks of simple candidates of the validation photos, which training never saw; the photo itself
is among them, and so are the proposal's where there is one. The damage here is `degrade`'s, other
functions than those the judge was trained on.
"""

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from doodl.pocket.candidates import CANDIDATES
from doodl.pocket.colour import ciede2000, lab
from doodl.pocket.pair_judge import PairJudge, load_pair_judge
from doodl.pocket.photo_split import LIST_PATH, load_split, read_split
from doodl.pocket.proposal import load_proposal
from doodl.pocket.training.degrade import TONE, degrade
from doodl.pocket.training.photos import PhotoSet

__all__ = ["PickCases", "Picks", "Wariness", "make_cases", "pick", "summary", "table"]

logger = logging.getLogger("doodl.pocket.training.measure_pairs")

UNTOUCHED = "untouched"
KINDS = (*TONE, "noisy", "compressed")
NO_STRETCH = (
    "patchy_haze", "uneven_light", "vignetted", "flat_midtones", "murky", "washed_out",
    "tinted_midtones", "tinted_whites", "grey",
)  # fmt: skip
_DETAIL = ("noisy", "compressed")
GROUPS = {
    "no stretch": NO_STRETCH,
    "plain": tuple(kind for kind in TONE if kind not in NO_STRETCH),
    "detail": _DETAIL,
    "untouched": (UNTOUCHED,),
}
RIVALS = ("min-max", "stretch", "per channel", "auto gamma", "proposal", "proposal, half")
# Smaller differences are not told from none, in CIEDE2000.
_SAME = 0.05


@dataclass(frozen=True)
class PickCases:
    """Damaged and untouched photos with all their candidates.

    Attributes:
        kinds: of each case, its damage or UNTOUCHED.
        names: of the candidates; the first is the photo itself.
        views: (N, K, 3, s, s) uint8, as a judge reads them.
        delta_e, db: (N, K) mean CIEDE2000 and PSNR to the clean photo.
        change: (N, K) mean CIEDE2000 from the photo as it was given.
    """

    kinds: tuple[str, ...]
    names: tuple[str, ...]
    views: Tensor
    delta_e: Tensor
    db: Tensor
    change: Tensor


@dataclass(frozen=True)
class Picks:
    """What was picked of each case, (N,) each: gains in CIEDE2000 and dB, and what changed."""

    gain: Tensor
    gain_db: Tensor
    change: Tensor


@torch.no_grad()
def make_cases(
    photos: PhotoSet,
    *,
    per_kind: int = 24,
    untouched: int = 120,
    size_px: int = 96,
    view_px: int = 64,
    severity: tuple[float, float] = (0.4, 0.9),
    seed: int = 5,
    propose: Callable[[Tensor], Tensor] | None = None,
) -> PickCases:
    """Deal out damage to photos: `per_kind` of each of KINDS, and `untouched` left as they are.

    Photos without colour are left as they are only.
    """
    generator = torch.Generator().manual_seed(seed)
    clean = torch.stack([_square(photo, size_px) for photo in photos.pixels])
    coloured = (clean.amax(1) - clean.amin(1)).flatten(1).mean(1) > 0.03
    order = torch.randperm(len(clean), generator=generator)
    dealt = order[coloured[order]]
    kinds, numbers, given = [], [], []
    place = 0
    for kind in KINDS:
        rows = dealt[[(place + i) % len(dealt) for i in range(min(per_kind, len(dealt)))]]
        place += len(rows)
        low, high = severity
        severities = low + (high - low) * torch.rand(len(rows), generator=generator)
        given.append(degrade(kind, clean[rows], severities, generator))
        kinds += [kind] * len(rows)
        numbers += rows.tolist()
    rows = order[:untouched]
    given.append(clean[rows])
    kinds += [UNTOUCHED] * len(rows)
    numbers += rows.tolist()
    return _measured(tuple(kinds), clean[numbers], torch.cat(given), view_px, propose)


def _square(photo: Tensor, size_px: int) -> Tensor:
    squashed = F.interpolate(
        photo[None].float() / 255,
        size=(size_px, size_px),
        mode="bilinear",
        antialias=True,
        align_corners=False,
    )[0]
    return (squashed.clamp(0, 1) * 255).round() / 255


def _measured(
    kinds: tuple[str, ...],
    clean: Tensor,
    given: Tensor,
    view_px: int,
    propose: Callable[[Tensor], Tensor] | None,
) -> PickCases:
    names = tuple(CANDIDATES) + (("proposal", "proposal, half") if propose else ())
    views, delta_e, db, change = [], [], [], []
    for goal, photo in zip(clean.split(1), given.split(1), strict=True):
        made = [make(photo) for make in CANDIDATES.values()]
        if propose is not None:
            made += [propose(photo), photo.lerp(propose(photo), 0.5)]
        candidates = (torch.cat(made).clamp(0, 1) * 255).round() / 255
        colours = lab(candidates[..., ::2, ::2])
        delta_e.append(ciede2000(colours, lab(goal[..., ::2, ::2]).expand_as(colours)).mean((1, 2)))
        change.append(ciede2000(colours, colours[:1].expand_as(colours)).mean((1, 2)))
        error = (candidates - goal).square().mean((1, 2, 3)).clamp_min(1e-5)
        db.append(-10 * error.log10())
        view = F.interpolate(candidates, size=(view_px, view_px), mode="bilinear", antialias=True)
        views.append((view.clamp(0, 1) * 255).round().byte())
    return PickCases(
        kinds,
        names,
        torch.stack(views),
        torch.stack(delta_e),
        torch.stack(db),
        torch.stack(change),
    )


@torch.no_grad()
def verdicts(judge: PairJudge, cases: PickCases) -> tuple[Tensor, Tensor]:
    """Return the judge's gains and its probabilities of nearer, (N, K) each."""
    gain, nearer = [], []
    for views in cases.views.split(8):
        images = views.float() / 255
        verdict = judge(images[:, 0], images)
        gain.append(verdict.gain)
        nearer.append(verdict.nearer.sigmoid())
    return torch.cat(gain), torch.cat(nearer)


@dataclass(frozen=True)
class Wariness:
    """What a judge's promise must be worth before a photo is changed.

    Of forty promises the greatest is mostly an error, and of large changes the errors are large.

    Attributes:
        price: what a change costs, per CIEDE2000 that it moves the photo by.
        margin: the gain, in CIEDE2000, that must be left of what a candidate promises.
        sure: the probability of being nearer that it must have.
    """

    price: float = 0.35
    margin: float = 0.2
    sure: float = 0.5


def pick(cases: PickCases, gain: Tensor, nearer: Tensor, wariness: Wariness) -> Picks:
    """Return what comes of taking each case's most promising candidate, or leaving it."""
    worth = gain - wariness.price * cases.change
    worth = worth.masked_fill(nearer < wariness.sure, float("-inf"))
    worth[:, 0] = wariness.margin
    return picked(cases, worth.argmax(1))


def picked(cases: PickCases, which: Tensor) -> Picks:
    """Return what comes of taking candidate which[n] of case n."""
    column = which[:, None]
    return Picks(
        (cases.delta_e[:, :1] - cases.delta_e.gather(1, column))[:, 0],
        (cases.db.gather(1, column) - cases.db[:, :1])[:, 0],
        cases.change.gather(1, column)[:, 0],
    )


def always(cases: PickCases, name: str) -> Picks:
    """Return what comes of taking the same candidate of every case."""
    return picked(cases, torch.full((len(cases.kinds),), cases.names.index(name)))


def perfect(cases: PickCases) -> Picks:
    """Return what comes of the best candidate of every case."""
    return picked(cases, cases.delta_e.argmin(1))


def table(rows: Mapping[str, Picks], cases: PickCases) -> str:
    """Return a Markdown table of what comes of each way to pick, a row each, and of the judge's
    picks by kind: gains in CIEDE2000 and dB, shares nearer, worse and left alone."""
    lines = ["| way | set | cases | ΔE gained | dB | nearer | worse | left alone |"]
    lines.append("|---" * 8 + "|")
    for way, picks in rows.items():
        for name, kinds in GROUPS.items():
            lines.append(_line(way, name, summary(cases, picks, kinds)))
    last = list(rows)[-1]
    shown = [kind for kind in (*KINDS, UNTOUCHED) if kind in cases.kinds]
    lines += [_line(last, kind, summary(cases, rows[last], (kind,))) for kind in shown]
    return "\n".join(lines) + "\n"


def _line(way: str, name: str, s: dict[str, float]) -> str:
    shares = " | ".join(f"{s[key]:.0%}" for key in ("nearer", "worse", "left_alone"))
    return f"| {way} | {name} | {s['cases']} | {s['gain']:+.2f} | {s['db']:+.2f} | {shares} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the table of a judge, and of its rivals among the candidates."""
    parser = argparse.ArgumentParser(
        prog="python -m doodl.pocket.training.measure_pairs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shared", type=Path, required=True, help="the folder that holds photos/")
    parser.add_argument("--split", type=Path, default=LIST_PATH, help="the list of hashes")
    parser.add_argument("--judge", type=Path, required=True, help="folder of a trained judge")
    parser.add_argument("--proposal", type=Path, help="folder of a proposal, two more candidates")
    wary = Wariness()
    parser.add_argument("--price", type=float, default=wary.price, help="of ΔE changed, in ΔE")
    parser.add_argument("--margin", type=float, default=wary.margin, help="gain above the price")
    parser.add_argument("--sure", type=float, default=wary.sure, help="probability of being nearer")
    parser.add_argument("--per-kind", type=int, default=24, help="photos of each kind of damage")
    parser.add_argument("--untouched", type=int, default=120)
    parser.add_argument("--out", type=Path, help="the file to write; else the table is logged")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    photos = load_split(options.shared, "validation", read_split(options.split))
    propose = None if options.proposal is None else load_proposal(options.proposal).propose
    cases = make_cases(
        photos, per_kind=options.per_kind, untouched=options.untouched, propose=propose
    )
    gain, nearer = verdicts(load_pair_judge(options.judge), cases)
    rows = {name: always(cases, name) for name in cases.names if name in RIVALS}
    rows["perfect"] = perfect(cases)
    wariness = Wariness(options.price, options.margin, options.sure)
    rows["judge"] = pick(cases, gain, nearer, wariness)
    written = table(rows, cases)
    if options.out is None:
        logger.info("%s", written)
    else:
        options.out.write_text(written)


def summary(cases: PickCases, picks: Picks, kinds: Sequence[str]) -> dict[str, float]:
    """Return means over the cases of some kinds, those left out that were not really damaged."""
    damaged = (cases.delta_e[:, 0] > 1).tolist()
    rows = [
        i
        for i, kind in enumerate(cases.kinds)
        if kind in kinds and (kind == UNTOUCHED or damaged[i])
    ]
    gain, gain_db, change = picks.gain[rows], picks.gain_db[rows], picks.change[rows]
    return {
        "cases": len(rows),
        "gain": round(float(gain.mean()), 2),
        "db": round(float(gain_db.mean()), 2),
        "nearer": round(float((gain > _SAME).float().mean()), 3),
        "worse": round(float((gain < -_SAME).float().mean()), 3),
        "left_alone": round(float((change < 1).float().mean()), 3),
    }


if __name__ == "__main__":
    main()
