import json
from argparse import Namespace

import pytest

from doodl.evaluation.referee import default_referee
from tests.benchmarks.photos import COLUMNS, RECKONED, measured_lines, released_line
from tests.benchmarks.variants import (
    VARIANTS,
    Variant,
    chosen_variants,
    gain_of,
    share_interval,
    summary,
)
from tests.photos import collection

TINY = {"working_px": 64, "num_crops": 1, "optimiser.num_optim_steps": 1, "stop_score": None}


def row(before, after, status="ok", seconds=2.0):
    return {
        "referee_before": before, "referee_after": after, "status": status,
        "cpu_seconds": seconds, "wall_seconds": seconds, "unet_calls": 8, "num_optim_steps": 4,
    }  # fmt: skip


@pytest.fixture
def asked(tmp_path, monkeypatch):
    tiny = {
        name: Variant(name, "tiny", {**TINY, "sampler.num_inference_steps": steps, **more})
        for name, steps, more in (
            ("paper", 10, {"sampler.depth": 1.0}),
            ("short", 5, {}),
            ("short again", 5, {}),
        )
    }
    monkeypatch.setattr("tests.benchmarks.variants.VARIANTS", tiny)
    return Namespace(
        photos=[collection(tmp_path / "photos", 4)], number=1, variants=["tiny"], workers=1,
        limit_seconds=0, work=tmp_path / "work", referee=str(default_referee()),
    )  # fmt: skip


def test_photos_are_edited_by_each_recipe_once_and_a_cut_off_row_alone_is_done_again(asked):
    told = []
    lines, notes = measured_lines(asked, tell=told.append)
    # Two variants of one recipe share their rows.
    assert [r["variant"] for r in told] == ["paper", "short"]
    assert [n["variant"] for n in lines] == ["paper", "short", "short again"]
    assert [n["photos"] for n in lines] == [1, 1, 1]
    assert lines[1]["cpu_seconds"] == lines[2]["cpu_seconds"] > 0
    assert lines[0]["unet_calls"] > lines[1]["unet_calls"] > 0
    assert lines[0]["time_share"] == 1
    assert not any("not done" in note for note in notes)
    kept = asked.work / "_work" / "rows.jsonl"
    data = kept.read_bytes()
    kept.write_bytes(data[:-20])
    told.clear()
    again, _ = measured_lines(asked, tell=told.append)
    assert [r["variant"] for r in told] == ["short"]
    assert again[0] == lines[0]
    assert again[1]["referee_gain"] == lines[1]["referee_gain"]
    assert {json.loads(line)["variant"] for line in data.splitlines()} == {"paper", "short"}


def test_after_the_limit_nothing_begins_and_the_rest_is_said(asked):
    asked.limit_seconds = 1e-9
    lines, notes = measured_lines(asked, tell=lambda row: pytest.fail("began"))
    assert [n["photos"] for n in lines] == [0, 0, 0]
    assert any("3 edits are not done" in note for note in notes)


def test_every_variant_is_a_recipe_and_the_reference_comes_first():
    for variant in VARIANTS.values():
        assert variant.config is not None
    chosen = chosen_variants(["fast", "quality"])
    assert chosen[0].name == "paper"
    with pytest.raises(ValueError, match="grand"):
        chosen_variants(["grand"])


def test_what_is_not_delivered_gains_nothing():
    assert gain_of(row(5.0, 6.0)) == 1.0
    assert gain_of(row(5.0, 6.0, status="rejected")) == 0.0
    assert gain_of(row(5.0, None)) == 0.0


def test_shares_are_of_the_reference_on_the_photos_of_both():
    paper = {"a": row(5, 6, seconds=10.0), "b": row(5, 7, seconds=30.0), "c": row(5, 9)}
    ours = {"a": row(5, 6), "b": row(5, 6), "d": row(5, 8)}
    line = summary(VARIANTS["fast"], ours, paper)
    assert line["photos"] == 2
    assert line["referee_gain"] == 1
    assert line["gain_share"] == pytest.approx(1 / 1.5)
    assert line["share_low"] == 0.5
    assert line["share_high"] == 1
    assert line["time_share"] == pytest.approx(0.1)
    assert line["photos_per_hour"] == 1800
    assert set(COLUMNS) - set(line) == set()


def test_a_share_of_no_gain_is_none():
    assert share_interval([1.0, 2.0], [0.0, 0.0]) is None
    assert share_interval([], []) is None
    assert share_interval([1.0, 2.0], [-1.0, 5.0]) is None


def test_the_released_line_is_its_seconds_times_the_papers_iterations():
    line = released_line(3.0, {"iterations": 8.0, "cpu_seconds": 12.0}, "pocket", 50)
    assert line["variant"] == RECKONED
    assert line["cpu_seconds"] == 24
    assert line["time_share"] == 2
    assert line["photos_per_hour"] == 150
