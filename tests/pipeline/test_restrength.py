"""Edits delivered again at another strength, from what the output folder keeps."""

import hashlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from doodl.delivery.deliver import deliver
from doodl.editing.requests import EditResult
from doodl.images import decode_photo, model_view
from jobs.cli import app
from manifests.changes import Changes
from manifests.errors import OriginalError
from manifests.storage import LocalStorage
from pipeline.restrength import default_folder, restrength_edits
from pipeline.run import run_job
from pipeline.spec import make_spec
from tests.doodl.photo_files import XMP, exif_block, picture, save
from tests.photos import collection
from tests.pipeline.conftest import results


class WarmingEditor:
    """Delivers as the real editor does, from two images no model has drawn."""

    def edit(self, requests, *, on_iteration=None):
        return [self._edit(request) for request in requests]

    def _edit(self, request):
        before = model_view(request.photo, 64)
        after = (before * 0.8 + torch.tensor([0.15, 0.05, -0.1]).view(1, 3, 1, 1)).clamp(-1, 1)
        encoded, change = deliver(
            request.photo, before, after, request.delivery, software="doodl-batch test"
        )
        status = "rejected" if request.prompt == "reject" else "ok"
        return EditResult(encoded, status, 5, 6, 5, 6, 20, 0.9, 0, 1, "steps", [1.0], change)


def load_editor(model, config, *, device="cpu", software="doodl-batch"):
    return WarmingEditor()


@pytest.fixture
def edited(tmp_path):
    """Return the spec of a finished run over three photos."""
    photos = collection(tmp_path / "photos", 3)
    editor = "tests.pipeline.test_restrength:load_editor"
    spec = make_spec(photos, runner="inline", editor=editor)
    assert run_job(spec).counts["ok"] == 3
    return spec


def digests(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(Path(folder).rglob("*"))
        if p.is_file()
    }


def test_half_the_strength_is_half_the_change_and_nothing_else_is_touched(edited):
    before = digests(edited.photos) | digests(edited.out)
    to = default_folder(edited.out, 0.5, 0.0)
    done = list(restrength_edits(edited.out, to, 0.5))
    assert sorted(d.row_id for d in done) == ["p000.jpg", "p002.jpg", "sub/p001.jpg"]
    for result in done:
        assert result.error is None
        source, whole, half = (
            decode_photo(Path(path).read_bytes()).pixels.astype(float)
            for path in (
                f"{edited.photos}/{result.row_id}",
                f"{edited.out}/edited/{result.row_id}",
                result.path,
            )
        )
        assert np.abs(whole - source).mean() > 5
        middle = (source + whole) / 2
        assert np.abs(half - middle).mean() < 0.1 * np.abs(whole - source).mean()
        assert 10 < result.psnr_db < 60
    after = digests(edited.photos) | {
        name: digest
        for name, digest in digests(edited.out).items()
        if not name.startswith("strength-0.5/")
    }
    assert after == before
    assert not (Path(to) / "_state").exists()


def test_the_delivered_strength_gives_the_delivered_files(edited, tmp_path):
    for result in restrength_edits(edited.out, str(tmp_path / "again"), 1.0):
        delivered = Path(f"{edited.out}/edited/{result.row_id}").read_bytes()
        # the stand-in names another software
        again = Path(result.path).read_bytes()
        assert np.array_equal(decode_photo(again).pixels, decode_photo(delivered).pixels)


def test_a_photo_that_is_gone_or_another_fails_alone(edited, tmp_path):
    photos = Path(edited.photos)
    (photos / "p000.jpg").unlink()
    (photos / "p002.jpg").write_bytes((photos / "sub/p001.jpg").read_bytes())
    done = {r.row_id: r for r in restrength_edits(edited.out, str(tmp_path / "to"), 0.5)}
    assert "p000.jpg" in done["p000.jpg"].error
    assert "not those that were edited" in done["p002.jpg"].error
    assert done["sub/p001.jpg"].error is None


def test_an_edit_without_a_kept_change_says_what_to_do(edited, tmp_path):
    changes = Path(edited.out) / "_state/changes"
    (kept,) = {p for p in changes.rglob("*.safetensors") if results(edited).loc[
        "p000.jpg", "work_key"] in p.name}  # fmt: skip
    kept.unlink()
    done = {r.row_id: r for r in restrength_edits(edited.out, str(tmp_path / "to"), 0.5)}
    assert "--force" in done["p000.jpg"].error
    assert done["p002.jpg"].error is None


def test_rejected_rows_have_no_change_and_are_left_out(tmp_path):
    photos = collection(tmp_path / "photos", 2)
    editor = "tests.pipeline.test_restrength:load_editor"
    spec = make_spec(photos, runner="inline", editor=editor, prompt="reject")
    run_job(spec)
    assert list(restrength_edits(spec.out, str(tmp_path / "to"), 0.5)) == []
    assert not (Path(spec.out) / "_state/changes").exists()


def test_a_folder_of_other_files_is_refused_and_the_originals_are_never_written(edited):
    before = digests(edited.photos)
    for to in (edited.photos, edited.out, f"{edited.out}/edited"):
        with pytest.raises(OriginalError, match="--out"):
            list(restrength_edits(edited.out, to, 0.5))
    assert digests(edited.photos) == before


def test_the_same_folder_again_goes_on(edited, tmp_path):
    to = str(tmp_path / "to")
    first = list(restrength_edits(edited.out, to, 0.5))
    assert [r.path for r in restrength_edits(edited.out, to, 0.5)] == [r.path for r in first]


def test_gps_that_was_stripped_stays_so(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    image = Image.fromarray(picture(120, 96))
    (photos / "a.jpg").write_bytes(save(image, "JPEG", exif=b"Exif\0\0" + exif_block(), xmp=XMP))
    editor = "tests.pipeline.test_restrength:load_editor"
    spec = make_spec(photos, runner="inline", editor=editor, strip_gps=True)
    run_job(spec)
    (result,) = restrength_edits(spec.out, str(tmp_path / "to"), 0.5)
    images = pd.read_parquet(f"{spec.out}/images")["edited_image"]
    for data in (
        Path(f"{spec.out}/edited/a.jpg").read_bytes(),
        images.iloc[0]["bytes"],
        Path(result.path).read_bytes(),
    ):
        assert 0x8825 not in Image.open(io.BytesIO(data)).getexif()
        assert b"GPS" not in data
        assert b"48,51" not in data


def test_a_delivered_file_has_its_sources_date_and_on_request_a_sidecar(tmp_path):
    photos = collection(tmp_path / "photos", 1)
    os.utime(photos / "p000.jpg", (1_500_000_000, 1_500_000_000))
    editor = "tests.pipeline.test_restrength:load_editor"
    spec = make_spec(photos, runner="inline", editor=editor, sidecar=True)
    run_job(spec)
    edited = Path(spec.out) / "edited"
    assert (edited / "p000.jpg").stat().st_mtime == 1_500_000_000
    told = json.loads((edited / "p000.jpg.json").read_text())
    assert (told["row_id"], told["status"], told["score_after"]) == ("p000.jpg", "ok", 6)
    (result,) = restrength_edits(spec.out, str(tmp_path / "to"), 0.5)
    assert Path(result.path).stat().st_mtime == 1_500_000_000


def test_the_command_says_where_the_photos_are(edited):
    answer = CliRunner().invoke(app, ["restrength", edited.out, "--strength", "0.25", "--json"])
    assert answer.exit_code == 0, answer.output
    report = json.loads(answer.stdout)
    assert len(report["photos"]) == 3
    assert all(Path(photo["path"]).is_file() for photo in report["photos"])


def test_keys_that_are_no_work_keys_name_no_file(tmp_path):
    changes = Changes(LocalStorage(tmp_path))
    for key in ("../../etc/passwd", "ABC", "", "12"):
        with pytest.raises(ValueError, match="hex"):
            changes.save(key, b"x")
    assert changes.load("0123456789abcdef") is None
