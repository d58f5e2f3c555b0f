"""The numbers of an evaluation: intervals, distances, drift, and what counts as improved."""

import io
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy.linalg import sqrtm

from doodl.errors import InversionError
from doodl.evaluation.cases import Case, Prepared, Source
from doodl.evaluation.methods import Cost, Edited
from doodl.evaluation.rows import COLUMNS, Models, Run, measure
from doodl.evaluation.strengths import match_strength
from doodl.images import decode_photo
from doodl.measures.bootstrap import bootstrap_interval
from doodl.measures.figures import (
    CLEAN_GAIN,
    DULLED,
    MOVED,
    NEARER,
    NOT_AGAINST,
    REFEREE,
    paired,
    summarise,
)
from doodl.measures.frechet import frechet_distance, gaussian_distance
from doodl.measures.metrics import neutral_drift, rms_change
from tests.photos import pixels


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def test_bootstrap_interval_is_the_normal_one_for_many_photos():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    interval = bootstrap_interval(list(values), seed=2)
    error = values.std() / np.sqrt(len(values))
    assert interval.mean == pytest.approx(values.mean())
    # A 2.5 % quantile of 2,000 resamples is itself uncertain by sqrt(.025 .975 / 2000) / .0584
    # = 0.06 standard errors; four of those.
    assert interval.low == pytest.approx(values.mean() - 1.96 * error, abs=0.25 * error)
    assert interval.high == pytest.approx(values.mean() + 1.96 * error, abs=0.25 * error)


def test_bootstrap_of_two_photos_reaches_both_and_of_equal_ones_has_no_width():
    # Resamples of {0, 1} have mean 0, 1/2, 1 with probability 1/4, 1/2, 1/4.
    assert bootstrap_interval([0.0, 1.0]).low == 0
    assert bootstrap_interval([0.0, 1.0]).high == 1
    assert bootstrap_interval([2.5] * 7).low == bootstrap_interval([2.5] * 7).high == 2.5
    assert bootstrap_interval([]) is None


def test_bootstrap_is_the_same_for_the_same_seed():
    values = list(np.random.default_rng(0).normal(size=30))
    assert bootstrap_interval(values, seed=5) == bootstrap_interval(values, seed=5)
    assert bootstrap_interval(values, seed=5) != bootstrap_interval(values, seed=6)


def test_drift_of_whites_under_a_known_cast_is_that_cast():
    clean = np.full((40, 40, 3), 230, np.uint8)
    clean[:20] = (200, 60, 20)  # no white: neither its colour nor its change counts
    cast = clean.astype(int) + np.array([10, 0, -15])
    drift = neutral_drift(clean, cast.astype(np.uint8))
    red_green, blue_yellow = 10 / 255, (-15 - 5) / 255
    assert drift.share == 0.5
    assert drift.red_green == pytest.approx(red_green, abs=1e-6)
    assert drift.blue_yellow == pytest.approx(blue_yellow, abs=1e-6)
    assert drift.shift == pytest.approx(np.hypot(red_green, blue_yellow), abs=1e-6)
    assert drift.chroma_change == pytest.approx(drift.shift, abs=1e-6)  # it was exactly neutral


def test_drift_of_tinted_whites_made_neutral_is_below_zero():
    tinted = np.full((40, 40, 3), (235, 230, 228), np.uint8)
    drift = neutral_drift(tinted, np.full((40, 40, 3), 232, np.uint8))
    assert drift.chroma_change < 0 < drift.shift


def test_photo_without_whites_has_no_drift():
    dark = np.full((40, 40, 3), 90, np.uint8)
    assert neutral_drift(dark, dark) is None


def test_distance_of_diagonal_gaussians_is_the_closed_form():
    first = (np.array([1.0, -2.0, 0.0]), np.diag([4.0, 1.0, 0.25]))
    second = (np.array([0.0, 1.0, 0.5]), np.diag([1.0, 9.0, 0.25]))
    means = 1 + 9 + 0.25
    spreads = (2 - 1) ** 2 + (1 - 3) ** 2 + 0
    assert gaussian_distance(first, second) == pytest.approx(means + spreads)
    assert gaussian_distance(second, first) == pytest.approx(means + spreads)


def test_distance_of_covariances_that_do_not_commute_is_scipys():
    rng = np.random.default_rng(3)
    roots = rng.normal(size=(2, 6, 6))
    covariances = [root @ root.T for root in roots]
    means = rng.normal(size=(2, 6))
    product = sqrtm(covariances[0] @ covariances[1])
    assert np.abs(product.imag).max() < 1e-6
    want = np.square(means[0] - means[1]).sum() + np.trace(
        covariances[0] + covariances[1] - 2 * product.real
    )
    got = gaussian_distance((means[0], covariances[0]), (means[1], covariances[1]))
    assert got == pytest.approx(want, rel=1e-9)


def test_distance_of_fewer_samples_than_dimensions_is_finite_and_zero_to_itself():
    features = np.random.default_rng(0).normal(size=(8, 32))
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(features, features + 0.5) == pytest.approx(32 * 0.25)
    with pytest.raises(ValueError, match="N at least 2"):
        frechet_distance(features[:1], features)


def brightness(view):
    return view.mean((1, 2, 3))


# Scorers that are plain to reason about: guide, judge and referee all like it bright.
LIKE_BRIGHT = Models(
    SimpleNamespace(view=lambda photo: _tensor(photo.pixels), guide=brightness, judge=brightness),
    brightness,
)


def _tensor(array):
    import torch

    return torch.from_numpy(array.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


def row_of(status, *, direction="up", step=12, set_="dulled"):
    """The row of an edit that brightens a dark photo by `step`, toward its clean original."""
    clean = pixels(1).clip(60, 200)
    source = clean - 30
    edited = (source.astype(int) + step).clip(0, 255).astype(np.uint8)
    case = Case(Source("a.png", "", bytes), set_, "murky" if set_ == "dulled" else None, 0.5, 1)
    prepared = Prepared(
        png(source),
        decode_photo(png(source)),
        png(clean) if set_ == "dulled" else None,
        clean if set_ == "dulled" else None,
    )
    outcome = status if isinstance(status, Exception) else Edited(png(edited), status)
    run = Run("edit", direction, 1.0, "r")
    return measure(LIKE_BRIGHT, run, case, prepared, outcome, Cost(1.5, 9.0)).row


def test_delivered_edit_counts_by_what_the_file_shows():
    row = row_of("ok")
    assert row["referee_after"] - row["referee_before"] == pytest.approx(12 / 127.5, abs=1e-5)
    # 30 away before, 18 after: PSNR is 20 log10(255 / distance).
    assert row["clean_db_before"] == pytest.approx(20 * np.log10(255 / 30))
    assert row["clean_db_after"] == pytest.approx(20 * np.log10(255 / 18))
    assert row["source_db"] == pytest.approx(20 * np.log10(255 / 12))
    assert row["rms_change"] == pytest.approx(12 / 255)
    assert MOVED.of(row) == NEARER.of(row) == NOT_AGAINST.of(row) == 1
    assert set(row) == set(COLUMNS)


@pytest.mark.parametrize("status", ["rejected", "skipped", InversionError("not finite")])
def test_undelivered_edit_counts_as_not_improved_and_as_no_change(status):
    row = row_of(status)
    assert MOVED.of(row) == NEARER.of(row) == 0
    assert REFEREE.of(row) == CLEAN_GAIN.of(row) == 0
    assert NOT_AGAINST.of(row) == 1  # the photo is what it was
    assert row["source_db"] is None
    assert row["ssim"] == pytest.approx(1)
    if not isinstance(status, Exception):
        assert row["referee_edited"] > row["referee_before"]  # seen, but not counted
        assert row["rms_change"] > 0


def test_going_down_counts_when_the_referee_falls():
    up_when_down = row_of("ok", direction="down")
    assert MOVED.of(up_when_down) == NOT_AGAINST.of(up_when_down) == 0
    assert MOVED.of(row_of("ok", direction="down", step=-12)) == 1


def test_untouched_photo_has_no_clean_original_to_come_nearer_to():
    row = row_of("ok", set_="untouched")
    assert row["clean_db_before"] is row["clean_db_after"] is None
    summary = summarise([row], DULLED)
    assert summary["clean_gain_db"] is None
    assert CLEAN_GAIN.cell(summary["clean_gain_db"]) == "–"


def test_share_counts_rejected_photos_in_its_denominator():
    rows = [row_of("ok"), row_of("ok"), row_of("rejected"), row_of("skipped")]
    summary = summarise(rows, (MOVED, NEARER))
    assert summary["moved"].mean == summary["nearer"].mean == 0.5
    assert summary["moved"].count == 4


def test_pairs_are_of_one_photo():
    first = [{**row_of("ok"), "case": "a"}, {**row_of("ok", step=20), "case": "b"}]
    second = [{**row_of("ok"), "case": "b"}, {**row_of("ok"), "case": "c"}]
    difference = paired(first, second, (REFEREE,))["referee_change"]
    assert difference.count == 1
    assert difference.mean == pytest.approx(8 / 127.5, abs=1e-5)


def test_score_that_is_no_number_is_none():
    broken = replace(LIKE_BRIGHT, referee=lambda view: brightness(view) * float("nan"))
    case = Case(Source("a.png", "", bytes), "untouched", None, None, 1)
    prepared = Prepared(png(pixels(1)), decode_photo(png(pixels(1))))
    run = Run("edit", "up", 1.0, "r")
    row = measure(broken, run, case, prepared, Edited(png(pixels(2)), "ok"), Cost(1, 1)).row
    assert row["referee_after"] is None
    assert MOVED.of(row) is None


def test_change_is_in_units_of_the_range():
    assert rms_change(np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)) == 1


@pytest.mark.parametrize("power", [0.4, 1.0, 1.7])
def test_strength_is_found_where_change_grows_as_a_power(power):
    found = match_strength(lambda value: 0.02 * value**power, 0.07, start=1.0)
    assert found.matched
    assert found.change == pytest.approx(0.07, rel=0.03)
    assert len(found.trials) <= 6


def test_strength_out_of_reach_is_the_nearest_tried_and_says_so():
    found = match_strength(lambda value: min(0.01 * value, 0.03), 0.09, start=1.0)
    assert not found.matched
    assert found.change == 0.03
    dead = match_strength(lambda value: 0.0, 0.05)
    assert not dead.matched
    assert len(dead.trials) == 2  # more of what does nothing is not tried
