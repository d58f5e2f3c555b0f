"""The named variants of the preset that `photos` compares, and how they stand to each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from doodl.evaluation.rows import Row
from doodl.measures.bootstrap import RESAMPLES, bootstrap_interval
from doodl.recipes.config import EditConfig
from doodl.recipes.presets import QUALITIES, preset, quality_overrides, sampler_overrides

PRESET = "pocket"
REFERENCE = "paper"
"""The variant whose gain and time the others' are shares of."""


@dataclass(frozen=True)
class Variant:
    """A recipe by name: what it sets otherwise than the preset, dotted names to values."""

    name: str
    group: str
    overrides: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> EditConfig:
        """Raises: ValueError as `EditConfig`, KeyError on an unknown name."""
        values = preset(PRESET).to_dict()
        for key, value in self.overrides.items():
            *path, last = key.split(".")
            node = values
            for part in path:
                node = node[part]
            if last not in node:
                raise KeyError(key)
            node[last] = value
        return EditConfig.from_dict(values)

    @property
    def changes(self) -> str:
        """The overrides as text."""
        if not self.overrides:
            return "nothing"
        return ", ".join(f"{k.rpartition('.')[2]} {_word(v)}" for k, v in self.overrides.items())


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _curves() -> list[Variant]:
    """Return one option at a time around `balanced`, which is among the values of most."""
    made = []

    def curve(name: str, **overrides: Any) -> None:
        made.append(
            Variant(name, "curves", {k.replace("__", "."): v for k, v in overrides.items()})
        )

    made += [
        Variant(
            f"belm T={steps}",
            "curves",
            {**sampler_overrides("belm"), "sampler.num_inference_steps": steps},
        )
        for steps in (5, 10, 20)
    ]
    for steps in (5, 10, 20):
        curve(f"edict T={steps}", sampler__num_inference_steps=steps)
    for depth in (0.25, 0.5, 1.0):
        curve(f"depth {depth:g}", sampler__depth=depth)
    for count in (4, 6, 10, 20):
        curve(f"steps {count}", optimiser__num_optim_steps=count)
    for patience in (1, 2, 3):
        curve(f"patience {patience}", optimiser__patience=patience)
    for score in (7.2, None):
        curve(f"stop {'never' if score is None else score}", stop_score=score)
    # How the gradient's length is set: to a mean by the preset, clipped as released, or not at all.
    curve("gradient clipped", optimiser__grad_mean_abs=None, optimiser__grad_clip_value=1e-3)
    curve("gradient raw", optimiser__grad_mean_abs=None)
    for crops in (0, 1, 4):
        curve(f"crops {crops}", num_crops=crops)
    # Twice as long a way per update, in fewer updates.
    twice = 2 * (preset(PRESET).optimiser.grad_mean_abs or 0.0)
    for count in (4, 6):
        curve(
            f"grad x2, steps {count}",
            optimiser__grad_mean_abs=twice,
            optimiser__num_optim_steps=count,
        )
    for rate in (1.0, 1.5, 2.0, 4.0):
        other = {"optimiser.learning_rate": rate}
        made.append(Variant(f"fast, rate {rate:g}", "curves", quality_overrides("fast") | other))
    fewer = {"sampler.num_inference_steps": 5}
    made.append(Variant("fast, T=5", "curves", quality_overrides("fast") | fewer))
    for memory in ("checkpoint", "invert", "full"):
        curve(f"memory {memory}", sampler__memory=memory)
    return made


VARIANTS = {
    variant.name: variant
    for variant in (*(Variant(n, "quality", quality_overrides(n)) for n in QUALITIES), *_curves())
}


def chosen_variants(names: Sequence[str]) -> list[Variant]:
    """Return variants by name or group, each once, the reference first if it is among them.

    Raises: ValueError on an unknown name.
    """
    chosen: dict[str, Variant] = {}
    for name in names:
        found = [v for v in VARIANTS.values() if name in (v.name, v.group)]
        if not found:
            raise ValueError(
                f"variants (={name!r}) must be of quality, curves, {', '.join(VARIANTS)}."
            )
        chosen |= {v.name: v for v in found}
    return sorted(chosen.values(), key=lambda v: v.name != REFERENCE)


def gain_of(row: Row) -> float:
    """Return the referee's gain of what was delivered: 0 where nothing was."""
    before, after = row["referee_before"], row["referee_after"]
    if row["status"] != "ok" or before is None or after is None:
        return 0.0
    return after - before


def share_interval(
    gains: Sequence[float], of: Sequence[float], *, seed: int = 0
) -> tuple[float, float, float] | None:
    """Return the ratio of two paired means and its 95 % bootstrap interval; None if `of` is 0.

    The same photos are drawn for both. None as well where a draw's mean of `of` is not above 0.
    """
    ours, theirs = np.asarray(gains, np.float64), np.asarray(of, np.float64)
    if not len(theirs) or theirs.mean() <= 0:
        return None
    picks = np.random.default_rng(seed).integers(0, len(ours), (RESAMPLES, len(ours)))
    below = theirs[picks].mean(1)
    if (below <= 0).any():
        return None
    low, high = np.quantile(ours[picks].mean(1) / below, [0.025, 0.975])
    return float(ours.mean() / theirs.mean()), float(low), float(high)


def _mean(rows: Sequence[Row], name: str) -> float:
    return float(np.mean([row[name] or 0 for row in rows]))


def summary(variant: Variant, own: dict[str, Row], reference: dict[str, Row]) -> dict[str, Any]:
    """Return a variant's line of the table, over the photos that the reference has too.

    Args:
        own, reference: finished rows by case; with no reference's at all, every own one counts.
    """
    cases = [case for case in own if not reference or case in reference]
    rows = [own[case] for case in cases]
    line: dict[str, Any] = {
        "variant": variant.name, "changes": variant.changes, "photos": len(rows),
    }  # fmt: skip
    if not rows:
        return line
    gains = [gain_of(row) for row in rows]
    interval = bootstrap_interval(gains)
    assert interval is not None
    seconds = _mean(rows, "cpu_seconds")
    line |= {
        "referee_gain": interval.mean,
        "gain_low": interval.low,
        "gain_high": interval.high,
        "delivered": sum(row["status"] == "ok" for row in rows) / len(rows),
        "failed": sum(row["status"] == "failed" for row in rows),
        "iterations": _mean(rows, "num_optim_steps"),
        "cpu_seconds": seconds,
        "wall_seconds": _mean(rows, "wall_seconds"),
        "unet_calls": _mean(rows, "unet_calls"),
        "photos_per_hour": 3600 / seconds,
    }
    if reference:
        theirs = [reference[case] for case in cases]
        line["time_share"] = seconds / _mean(theirs, "cpu_seconds")
        share = share_interval(gains, [gain_of(row) for row in theirs])
        if share is not None:
            line |= dict(zip(("gain_share", "share_low", "share_high"), share, strict=True))
    return line
