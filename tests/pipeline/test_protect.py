"""`--protect`: masks found beside photos, in their rows' keys, and read again by the workers."""

import io

import numpy as np
import pytest
from PIL import Image

from manifests.errors import ManifestError
from manifests.identity import params_fingerprint
from pipeline.collection import OutputView
from pipeline.inputs import load_rows
from pipeline.plan import RunChoice, preview_plan
from pipeline.protecting import ReadMasks
from pipeline.run import run_job
from pipeline.spec import make_spec
from tests.fakes import FakeEditor
from tests.photos import collection

SEEN = []


class SeeingEditor(FakeEditor):
    """The cheap edit; keeps what each request protects."""

    def _edit(self, request):
        SEEN.append(None if request.protect is None else float(request.protect.mean() / 255))
        return super()._edit(request)


def load_editor(model, config, *, device="cpu", software="doodl-batch"):
    return SeeingEditor(software)


def top_row(pixels):
    mask = np.zeros(pixels.shape[:2], bool)
    mask[: len(mask) // 4] = True
    return mask


def broken(pixels):
    raise RuntimeError("no face model")


def mask(path, share):
    values = np.zeros((80, 96), np.uint8)
    values[: round(80 * share)] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    path.write_bytes(buffer.getvalue())


def job(folder, **options):
    SEEN.clear()
    editor = "tests.pipeline.test_protect:load_editor"
    return make_spec(folder / "photos", runner="inline", editor=editor, **options)


@pytest.fixture
def photos(tmp_path):
    collection(tmp_path / "photos", 4)  # p000, sub/p001, p002, sub/p003
    mask(tmp_path / "masks" / "p000.png", 0.5)
    mask(tmp_path / "masks" / "sub" / "p001.jpg.png", 0.25)
    return tmp_path


def rows(spec):
    columns = ("row_id", "status", "error_type", "error_message", "work_key")
    table = OutputView(spec.out).results(columns)
    return {row["row_id"]: row for row in table.to_pylist()}


def test_each_photo_meets_its_own_mask_and_others_are_edited_whole(photos):
    spec = job(photos, protect=str(photos / "masks"))
    assert run_job(spec).exit_code == 0
    assert sorted(SEEN, key=str) == [0.25, 0.5, None, None]


def test_a_changed_mask_makes_its_photo_new_and_no_other(photos):
    spec = job(photos, protect=str(photos / "masks"))
    run_job(spec)
    mask(photos / "masks" / "p000.png", 0.75)
    assert run_job(spec).computed == 1
    assert SEEN[-1] == 0.75


def test_masks_are_part_of_what_was_asked_but_not_where_they_lie(photos):
    def fingerprint(**options):
        return params_fingerprint(job(photos, **options).params())

    one = fingerprint(protect=str(photos / "masks"))
    assert one == fingerprint(protect="/elsewhere")
    assert len({one, fingerprint(), fingerprint(protect_with="a:b")}) == 3


def test_a_mask_that_cannot_be_read_fails_its_photo_alone(photos):
    (photos / "masks" / "p002.png").write_bytes(b"nothing")
    spec = job(photos, protect=str(photos / "masks"))
    run_job(spec)
    failed = {n: r["error_type"] for n, r in rows(spec).items() if r["status"] == "failed"}
    assert failed == {"p002.jpg": "ProtectionError"}


def test_a_folder_without_a_fitting_mask_is_refused(photos, tmp_path):
    with pytest.raises(ManifestError, match="no folder"):
        load_rows(job(photos, protect=str(tmp_path / "none")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match="no mask of any"):
        preview_plan(job(photos, protect=str(tmp_path / "empty")), RunChoice())


def test_a_protector_of_ones_own_adds_to_the_masks(photos):
    spec = job(
        photos, protect=str(photos / "masks"), protect_with="tests.pipeline.test_protect:top_row"
    )
    run_job(spec)
    assert sorted(SEEN) == [0.25, 0.25, 0.25, 0.5]


def test_a_protector_that_fails_fails_its_rows_and_says_so(photos):
    spec = job(photos, protect_with="tests.pipeline.test_protect:broken", breaker=0)
    run_job(spec)
    assert {row["error_type"] for row in rows(spec).values()} == {"ProtectionError"}
    assert "no face model" in rows(spec)["p000.jpg"]["error_message"]


def test_subjects_of_a_manifest_are_no_masks(photos):
    reader = ReadMasks(job(photos, protect=str(photos / "masks")))

    class Item:
        class row:  # noqa: N801
            subject_uris = (str(photos / "photos" / "p000.jpg"),)

        subject_hashes = ("x",)

    assert reader(Item, None) is None


def test_protecting_goes_with_photos_only():
    with pytest.raises(ValueError, match="protect goes with"):
        make_spec(None, "/o", task="generate", prompts=("a",), protect="/m")
