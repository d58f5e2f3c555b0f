from argparse import Namespace

import pytest

from tests.benchmarks.batches import FIRST, WAYS, mixed_files, rows_of, verdict
from tests.benchmarks.variants import Variant
from tests.photos import collection

TINY = {
    "working_px": 64, "num_crops": 0, "optimiser.num_optim_steps": 1, "stop_score": None,
    "sampler.num_inference_steps": 5,
}  # fmt: skip


def test_ways_edit_the_same_photos_to_the_same_result(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "tests.benchmarks.batches.VARIANTS", {"fast": Variant("fast", "tiny", dict(TINY))}
    )
    args = Namespace(
        photos=[collection(tmp_path / "photos", 4)], number=3, room=2, max_px=96, out=None,
        as_they_are=False, device="cpu", dtype="float32", threads=1, repeats=1,
    )  # fmt: skip
    files = mixed_files(args)
    assert ["untouched" in file.name for file in files] == [False, True, False]
    ways = [FIRST, "fixed", list(WAYS)[-1]]
    rows = rows_of("fast", files, ways, args)
    assert [row["way"] for row in rows] == ways
    for row in rows:
        assert (row["photos"], row["frames"], row["iterations"]) == (3, 1, 1)
        assert row["seconds"] > 0
        assert row["other_stops"] == 0
        assert row["frame_difference"] <= 1e-3
        assert row["pixel_difference"] <= 1e-3
    assert rows[0]["way"] == FIRST
    assert rows[0]["file_score_difference"] == 0
    assert "within 0.001" in verdict(rows)
    assert "MORE THAN" in verdict([{**rows[0], "frame_difference": 2e-3}])


def test_too_few_photos_are_told(tmp_path):
    args = Namespace(photos=[collection(tmp_path / "photos", 1)], number=8, max_px=96, out=None)
    with pytest.raises(ValueError, match="ask for fewer"):
        mixed_files(args)
