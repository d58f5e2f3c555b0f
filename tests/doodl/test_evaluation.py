"""An evaluation from photos to tables: what is drawn, what is kept, what is written."""

import csv
import io
import json
import multiprocessing
import os
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from doodl.errors import DoodlError
from doodl.evaluation.cases import (
    GROUPS,
    NO_STRETCH_TYPES,
    UNSEEN_TYPES,
    Draw,
    Source,
    draw_cases,
    prepare,
)
from doodl.evaluation.methods import METHODS
from doodl.evaluation.output import write_evaluation
from doodl.evaluation.run import run_evaluation
from doodl.evaluation.sheets import Cell, contact_sheets, safe_label, write_sheets
from doodl.evaluation.store import Store
from doodl.evaluation.tables import Table, markdown
from doodl.evaluation.work import EvaluationSpec
from doodl.evaluation.workers import WorkerDiedError
from doodl.pocket import weights_dir
from doodl.pocket.training.degrade import TONE, degrade
from doodl.pocket.training.recipes import RECIPES
from tests.doodl.test_evaluation_methods import QUICK
from tests.photos import jpeg, pixels

EVIL = "=<b>|`evil`\x1b[31m\u202e.jpg"


def sources(count, size=(96, 96)):
    return [Source(f"p{i:02d}.jpg", "", partial(jpeg, i, size)) for i in range(count)]


def grey_jpeg():
    buffer = io.BytesIO()
    Image.fromarray(pixels(0)).convert("L").save(buffer, "JPEG")
    return buffer.getvalue()


def broken():
    return b"no photo"


def names(cases):
    return [case.source.name for case in cases]


def test_draw_is_the_same_for_the_same_seed_whatever_the_order_of_the_photos():
    first = draw_cases(sources(20), Draw(6, 4, 3, seed=1))
    again = draw_cases(sources(20)[::-1], Draw(6, 4, 3, seed=1))
    assert [c.key for c in first.cases] == [c.key for c in again.cases]
    assert names(draw_cases(sources(20), Draw(6, 4, 3, seed=2)).cases) != names(first.cases)


def test_asking_for_more_photos_keeps_those_there_were():
    few = {c.key for c in draw_cases(sources(30), Draw(4, 3, 3)).cases}
    many = {c.key for c in draw_cases(sources(30), Draw(12, 8, 3)).cases}
    assert few < many


def test_validation_photos_are_in_no_table():
    drawn = draw_cases(sources(12), Draw(50, 50, 4))
    assert len(drawn.validation) == 4
    assert not set(names(drawn.validation)) & set(names(drawn.cases))
    assert {c.set for c in drawn.validation} == {"dulled", "untouched"}


def test_grey_photos_are_not_dulled_and_unreadable_ones_are_named():
    mixed = [*sources(3), Source("grey.jpg", "", grey_jpeg), Source("bad.jpg", "", broken)]
    drawn = draw_cases(mixed, Draw(10, 10, 0))
    dulled = [c for c in drawn.cases if c.set == "dulled"]
    assert set(names(dulled)) == {"p00.jpg", "p01.jpg", "p02.jpg"}
    assert "grey.jpg" in names(drawn.cases)
    assert [name for name, _ in drawn.unreadable] == ["bad.jpg"]


def test_damage_is_of_every_type_and_in_the_stated_range():
    cases = list(draw_cases(sources(60), Draw(len(Draw().cycle), 0, 0)).cases)
    assert {c.type for c in cases} == set(TONE)
    assert all(0.4 <= c.severity <= 0.9 for c in cases)
    assert np.ptp([c.severity for c in cases]) > 0.3
    for kind in TONE:
        assert sum(c.type == kind for c in cases) == (3 if kind in UNSEEN_TYPES else 1)


def test_groups_are_what_the_recipes_say():
    assert set(UNSEEN_TYPES) == set(RECIPES["tower"].left_out) & set(
        RECIPES["judge"].left_out
    ) & set(TONE)
    assert UNSEEN_TYPES
    assert set(NO_STRETCH_TYPES) <= set(TONE)
    assert set(GROUPS["trained"]) <= set(RECIPES["tower"].degradations)


def test_dulled_photo_is_the_degradation_of_the_clean_one():
    (case,) = list(draw_cases(sources(1), Draw(1, 0, 0, types=("hazy",))).cases)
    prepared = prepare(case, 1024)
    clean = torch.from_numpy(prepared.clean_pixels.copy()).permute(2, 0, 1)[None] / 255
    generator = torch.Generator().manual_seed(case.seed)
    want = degrade("hazy", clean, torch.tensor([case.severity]), generator)
    got = torch.from_numpy(prepared.photo.pixels.copy()).permute(2, 0, 1)[None] / 255
    assert torch.allclose(got, want, atol=1e-6)
    assert prepared.photo.format == "PNG"
    assert not torch.allclose(got, clean, atol=0.02)


def test_untouched_photo_is_the_file_itself_unless_it_is_too_large():
    (case,) = draw_cases(sources(1, (96, 200)), Draw(0, 1, 0)).cases
    assert prepare(case, 1024).data == case.source.read()
    small = prepare(case, 100).photo
    assert (small.width_px, small.height_px) == (100, 48)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"severity": (0.9, 0.4)}, "severity"),
        ({"types": ("mosaic",)}, "mosaic"),
        ({"num_dulled": -1}, "num_dulled"),
        ({"max_px": 3}, "max_px"),
    ],
)
def test_draw_that_makes_no_sense_is_refused_by_name(options, word):
    with pytest.raises(ValueError, match=word):
        Draw(**options)


class Told:
    """An observer that remembers."""

    def __init__(self):
        self.total, self.rows, self.messages = 0, [], []

    def start(self, total):
        self.total = total

    def row(self, row_id, status, detail):
        self.rows.append((row_id, status, detail))

    def message(self, text):
        self.messages.append(text)


# The judge stands in for the referee: what is tested here is the way, not the verdict.
SPEC = EvaluationSpec(
    referee=str(weights_dir() / "judge"),
    draw=Draw(2, 1, 0, types=("hazy", "vignetted")),
    config=QUICK,
    methods=("edit", "autoencoder", "auto-contrast"),
    directions=("up",),
)


def photos():
    return [*sources(2), Source(EVIL, "", partial(jpeg, 7, (96, 96)))]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluation")
    told = Told()
    evaluation = run_evaluation(photos(), SPEC, out, told)
    return out, evaluation, told


def test_every_case_has_a_row_for_every_method(finished):
    _, evaluation, told = finished
    assert evaluation.computed == told.total == len(told.rows) == 9
    pairs = [(row["photo"], row["set"], row["method"]) for row in evaluation.rows]
    assert len(set(pairs)) == 9
    assert {row["status"] for row in evaluation.rows} <= {"ok", "rejected", "skipped"}


def test_rerun_computes_nothing_and_a_lost_row_only_itself(finished):
    out, evaluation, _ = finished
    again = run_evaluation(photos(), SPEC, out, Told())
    assert again.computed == 0
    assert again.rows == evaluation.rows
    rows = out / "_work" / "rows.jsonl"
    lines = rows.read_bytes().splitlines(keepends=True)
    rows.write_bytes(b"".join(lines[:-1]) + lines[-1][:40])  # killed while writing
    healed = run_evaluation(photos(), SPEC, out, Told())
    assert healed.computed == 1
    for old, new in zip(evaluation.rows, healed.rows, strict=True):
        for name, value in old.items():
            if name != "cpu_seconds":
                number = isinstance(value, float)
                assert new[name] == (pytest.approx(value, abs=1e-3) if number else value), name


def test_other_models_or_options_are_computed_anew(finished):
    _, evaluation, _ = finished
    revisions = evaluation.revisions
    recipe = SPEC.run("edit", "up", 1.0, revisions).recipe
    assert SPEC.run("edit", "up", 1.0, {**revisions, "referee": "blake2b:0"}).recipe != recipe
    assert SPEC.run("edit", "up", 1.1, revisions).recipe != recipe
    assert SPEC.run("edit", "down", 1.0, revisions).recipe != recipe


def test_everything_written_names_models_and_command_and_escapes_names(finished):
    out, evaluation, _ = finished
    command = "doodl-batch evaluate enhance 'my photos' --out x"
    written = write_evaluation(evaluation, out, command)
    text = written.tables_path.read_text()
    assert text.count(command) == len(written.tables) == text.count(evaluation.revisions["model"])
    assert "auto-contrast" in text
    rows = list(csv.DictReader(io.StringIO(written.rows_path.read_text(), newline="")))
    assert len(rows) == 9
    assert not any(row["photo"].startswith("=") for row in rows)
    record = json.loads((out / "evaluation.json").read_text())
    assert record["revisions"] == evaluation.revisions
    assert {path.name for path in written.sheets} == {"dulled-up-01.png", "untouched-up-01.png"}
    for path in written.sheets:
        with Image.open(path) as sheet:
            assert np.asarray(sheet).std() > 10  # something is drawn on it


def test_rivals_are_tuned_to_the_edits_change_on_photos_of_no_table(tmp_path):
    spec = EvaluationSpec(
        referee=str(weights_dir() / "judge"),
        draw=Draw(1, 0, 1),
        config=QUICK,
        methods=("autoencoder",),
        directions=("up",),
    )
    evaluation = run_evaluation(sources(3), spec, tmp_path, Told())
    found = evaluation.strengths["autoencoder", "up"]
    assert found.target == evaluation.strengths["edit", "up"].change > 0
    assert found.matched
    assert [row["strength"] for row in evaluation.rows] == [found.value]
    again = Told()
    assert run_evaluation(sources(3), spec, tmp_path, again).computed == 0
    assert not any("tuning" in message for message in again.messages)


def test_no_readable_photo_is_an_error_that_says_why(tmp_path):
    with pytest.raises(DoodlError, match=r"bad\.jpg"):
        run_evaluation([Source("bad.jpg", "", broken)], SPEC, tmp_path, Told())


def test_unknown_method_is_refused_by_name():
    with pytest.raises(ValueError, match="magic"):
        EvaluationSpec("r", Draw(), QUICK, methods=("edit", "magic"))
    assert "edit" in METHODS


def test_store_reads_past_lines_that_are_not_rows(tmp_path):
    store = Store(tmp_path)
    (tmp_path / "_work" / "rows.jsonl").write_bytes(
        b'{"case": "a", "recipe": "r", "x": 1}\n[1]\n{"case": "b"\n\xff\n'
        b'{"case": "a", "recipe": "r", "x": 2}\n'
    )
    assert [row["x"] for row in store.rows().values()] == [2]


def test_sheets_are_paged_and_an_earlier_longer_ones_pages_go(tmp_path):
    line = [Cell(None, ("a", "b"), 1.0)]
    assert len(list(contact_sheets("t", ["c"], [line] * 49))) == 3
    write_sheets(tmp_path, "s", "t", ["c"], [line] * 49)
    write_sheets(tmp_path, "s", "t", ["c"], [line])
    assert [path.name for path in tmp_path.glob("*.png")] == ["s-01.png"]


def test_label_shows_no_control_characters_and_keeps_both_ends():
    assert safe_label("a\x1b[31m\u202eb\n") == "a?[31m?b?"
    long = safe_label("first" + "x" * 80 + "last.jpg")
    assert len(long) == 24
    assert long.startswith("first")
    assert long.endswith("last.jpg")


def test_markdown_keeps_a_tables_shape():
    text = markdown(Table("t", "c", ("a", "b"), (("x|y", "1"),)), "`cmd`")
    assert "x\\|y" in text
    assert text.rstrip().endswith("`cmd`")


@pytest.mark.slow
def test_two_workers_give_the_rows_of_one(finished, tmp_path):
    _, evaluation, _ = finished
    shared = run_evaluation(photos(), SPEC, tmp_path, Told(), workers=2)
    assert shared.computed == evaluation.computed
    for one, other in zip(evaluation.rows, shared.rows, strict=True):
        assert (one["case"], one["recipe"], one["status"]) == (
            other["case"], other["recipe"], other["status"],
        )  # fmt: skip
        assert one["referee_after"] == pytest.approx(other["referee_after"], abs=1e-3)


@pytest.mark.slow
def test_workers_death_is_said_and_what_is_finished_stays(tmp_path):
    evil = [*sources(2), Source("killer.jpg", "", _die_in_a_worker)]
    with pytest.raises(WorkerDiedError, match="same command goes on"):
        run_evaluation(evil, SPEC, tmp_path, Told(), workers=2)


def _die_in_a_worker():
    if multiprocessing.parent_process() is not None:
        os._exit(9)
    return jpeg(9, (96, 96))
