"""`replay`: a row made again from its recorded parameters, and how far it comes out the same."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from doodl.pocket import weights_dir
from manifests.commits import OutputFolder
from pipeline.plan import RunChoice
from pipeline.replay import Replayer, ReplayError, compare_pictures, spec_of_params
from pipeline.run import run_job
from pipeline.spec import make_spec
from tests.photos import collection, jpeg, pixels
from tests.pipeline.conftest import spec_of

FAKE = "tests.fakes:load_editor"


@pytest.fixture
def done(tmp_path):
    spec = spec_of(collection(tmp_path / "photos", 2), prompt="a flower", strength=0.5)
    run_job(spec)
    return spec


def test_a_row_comes_out_the_same_from_its_recorded_parameters(done):
    replayed = Replayer(done.out, editor=FAKE)("p000.jpg")
    assert (replayed.identical, replayed.same_file, replayed.max_difference) == (True, True, 0)
    assert replayed.scores["score_after"] == (6.0, 6.0)
    assert replayed.notes == ()


def test_the_parameters_are_the_rows_and_not_those_of_the_last_run(done):
    down = spec_of(done.photos, done.out, direction="down")
    run_job(down, RunChoice(redo=True, limit=1))
    folder = OutputFolder(done.out)
    rows = folder.rows(["p000.jpg", "sub/p001.jpg"]).values()
    by_direction = {row.direction: row for row in rows}
    assert set(by_direction) == {"up", "down"}
    for direction, row in by_direction.items():
        again = Replayer(done.out, editor=FAKE)(row.row_id)
        assert again.identical
        assert again.scores["score_after"][1] == (6.0 if direction == "up" else 4.0)


def test_a_delivered_photo_that_was_changed_differs_and_says_how_far(done):
    path = Path(done.out) / "edited" / "p000.jpg"
    path.write_bytes(jpeg(9))
    replayed = Replayer(done.out, editor=FAKE)("p000.jpg")
    assert not replayed.identical
    assert replayed.max_difference > 0
    assert 0 < replayed.changed_share <= 1
    assert replayed.psnr_db < 40


def test_what_it_was_made_from_must_still_be_there(done, tmp_path):
    photo = tmp_path / "photos" / "p000.jpg"
    with pytest.raises(ReplayError, match="no row 'nothing'"):
        Replayer(done.out)("nothing")
    kept = photo.read_bytes()
    photo.write_bytes(jpeg(77))
    with pytest.raises(Exception, match="changed"):
        Replayer(done.out, editor=FAKE)("p000.jpg")
    photo.write_bytes(kept)
    for params in (Path(done.out) / "_state" / "params").iterdir():
        params.write_text('{"task": "enhance", "params": {"task": "enhance", "bad": 1}}')
    with pytest.raises(ReplayError, match="not those of a job"):
        Replayer(done.out, editor=FAKE)("p000.jpg")
    params.unlink()
    with pytest.raises(ReplayError, match="are not in"):
        Replayer(done.out, editor=FAKE)("p000.jpg")


def test_other_software_and_weights_are_noted(done, monkeypatch):
    monkeypatch.setattr("doodl.__version__", "99.0.0")
    monkeypatch.setattr("pipeline.replay.model_revision", lambda model: "blake2b:other")
    notes = Replayer(done.out, editor=FAKE)("p000.jpg").notes
    assert any("doodl-batch was" in note and "is 99.0.0" in note for note in notes)
    assert any("is blake2b:other" in note for note in notes)


def test_a_spec_comes_back_from_its_recorded_parameters(done):
    folder = OutputFolder(done.out)
    recorded = folder.read_params(folder.read_job()["params_fingerprint"])
    spec = spec_of_params(recorded, out=done.out)
    assert spec.params() == done.params()
    assert spec.edit_config == done.edit_config


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def test_pictures_are_compared_pixel_by_pixel():
    first = pixels(1, (300, 64))
    other = first.copy()
    other[280, 5, 1] ^= 4
    largest, share, psnr = compare_pictures(png(first), png(other), max_pixels=10**6)
    assert (largest, share) == (4, pytest.approx(1 / (300 * 64)))
    mean = np.square(first.astype(float) - other).mean()
    assert psnr == pytest.approx(10 * np.log10(255**2 / mean), abs=0.01)
    assert compare_pictures(png(first), png(first), max_pixels=10**6) == (0, 0.0, None)
    assert compare_pictures(png(first), png(first[:200]), max_pixels=10**6) is None


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_rows_of_the_pocket_model_come_out_with_identical_pixels(tmp_path):
    assert weights_dir().is_dir()
    photos = collection(tmp_path / "photos", 10)
    spec = make_spec(photos, runner="inline", overrides={"optimiser.num_optim_steps": 4})
    run_job(spec)
    table = OutputFolder(spec.out).results().to_pandas().set_index("row_id")
    ok = table.query("status == 'ok'").index
    replayer = Replayer(spec.out)
    replayed = [replayer(row_id) for row_id in ok]
    for one in replayed:
        print(one.row_id, one.identical, one.max_difference, one.psnr_db, one.notes)
    assert len(table) == 10
    assert len(ok) >= 1
    assert all(one.identical for one in replayed)
