"""`verify`: whatever happens to an output folder behind our back is named, and put right."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests.commits import OutputFolder
from manifests.errors import OutputCorruptError
from pipeline.plan import RunChoice
from pipeline.repair import repair_output
from pipeline.run import run_job
from pipeline.verify import KINDS, verify_output
from tests.photos import collection, jpeg
from tests.pipeline.conftest import results, spec_of


@pytest.fixture
def done(tmp_path):
    spec = spec_of(collection(tmp_path / "photos", 4))
    assert run_job(spec).exit_code == 0
    return spec


def found(spec):
    return {(f.kind, f.name) for f in verify_output(spec.out).findings}


def test_a_folder_as_it_was_left_is_sound(done):
    verdict = verify_output(done.out)
    assert (verdict.findings, verdict.rows, verdict.photos, verdict.unhashed) == ([], 4, 4, 0)


@pytest.mark.parametrize("images", ["both", "files", "parquet"])
def test_wherever_the_photos_are_kept_a_sound_folder_is_sound(tmp_path, images):
    spec = spec_of(collection(tmp_path / "photos", 2), images=images, sidecar=images == "files")
    run_job(spec)
    assert verify_output(spec.out).findings == []


def test_missing_changed_and_orphaned_photos_are_named_and_put_back(edits, done):
    edited = Path(done.out) / "edited"
    whole = {p: (edited / p).read_bytes() for p in ("p000.jpg", "p002.jpg")}
    (edited / "p000.jpg").unlink()
    with (edited / "p002.jpg").open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(b"\0")
    (edited / "stray.jpg").write_bytes(b"?")
    wrong = {
        ("missing", "edited/p000.jpg"),
        ("changed", "edited/p002.jpg"),
        ("orphaned", "edited/stray.jpg"),
    }
    assert found(done) == wrong
    verdict = verify_output(done.out)
    assert verdict.damaged_rows() == ["p000.jpg", "p002.jpg"]
    assert sorted(repair_output(done.out, verdict).restored) == [
        "edited/p000.jpg", "edited/p002.jpg",
    ]  # fmt: skip
    assert found(done) == {("orphaned", "edited/stray.jpg")}
    assert {p: (edited / p).read_bytes() for p in whole} == whole


def test_photos_kept_nowhere_else_are_made_again(tmp_path, edits):
    spec = spec_of(collection(tmp_path / "photos", 3), images="files")
    run_job(spec)
    (Path(spec.out) / "edited/p000.jpg").unlink()
    verdict = verify_output(spec.out)
    assert repair_output(spec.out, verdict).restored == []
    names = tuple(verdict.damaged_rows())
    assert run_job(spec, RunChoice(force=True, only_rows=names)).computed == 1
    assert found(spec) == set()
    assert edits() == 4


def _delete(part):
    part.unlink()


def _empty(part):
    pq.write_table(pq.read_table(part).slice(0, 0), part)


def _damage(part):
    part.write_bytes(part.read_bytes()[:-9])


@pytest.mark.parametrize("lose", [_delete, _empty, _damage])
@pytest.mark.parametrize("number", [1, 2])
def test_photos_whose_images_part_is_lost_are_named_and_made_again(tmp_path, edits, lose, number):
    spec = spec_of(collection(tmp_path / "photos", 3), images="parquet")
    run_job(spec)
    (tmp_path / "photos/new.jpg").write_bytes(jpeg(50))
    run_job(spec)
    lose(Path(spec.out) / f"images/part-{number:06d}.parquet")
    gone = ["p000.jpg", "p002.jpg", "sub/p001.jpg"] if number == 1 else ["new.jpg"]
    verdict = verify_output(spec.out)
    assert verdict.damaged_rows() == gone
    missing = [f.name for f in verdict.findings if f.kind == "missing"]
    assert sorted(missing) == [f"images/{row_id}" for row_id in gone]
    assert repair_output(spec.out, verdict).restored == []
    assert verify_output(spec.out).damaged_rows() == gone
    assert run_job(spec, RunChoice(force=True, only_rows=tuple(gone))).computed == len(gone)
    assert verify_output(spec.out).damaged_rows() == []
    assert {kind for kind, _ in found(spec)} <= {"set aside"}


@pytest.mark.parametrize("images", ["both", "files"])
def test_a_lost_images_part_costs_nothing_that_is_kept_as_files(tmp_path, images):
    spec = spec_of(collection(tmp_path / "photos", 2), images=images)
    run_job(spec)
    for part in (Path(spec.out) / "images").glob("*.parquet"):
        part.unlink()
    assert found(spec) == set()


@pytest.mark.parametrize("images", ["both", "parquet"])
def test_a_staged_row_holds_its_photo(tmp_path, monkeypatch, images):
    spec = spec_of(collection(tmp_path / "photos", 2), images=images)
    with monkeypatch.context() as patch:
        patch.setattr(OutputFolder, "compact", lambda self, **options: 0)
        run_job(spec)
    assert OutputFolder(spec.out).staged_count() == 2
    assert found(spec) == set()


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_a_truncated_part_stops_a_run_is_named_and_its_rows_come_back(edits, done, keep):
    part = Path(done.out) / "results" / "part-000001.parquet"
    data = part.read_bytes()
    part.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(OutputCorruptError, match=r"part-000001\.parquet is truncated or damaged"):
        run_job(done)
    verdict = verify_output(done.out)
    assert ("damaged", "results/part-000001.parquet") in {
        (f.kind, f.name) for f in verdict.findings
    }
    assert repair_output(done.out, verdict).set_aside == ["results/part-000001.parquet"]
    assert run_job(done).counts["ok"] == 4
    assert len(results(done)) == 4
    assert set(verify_output(done.out).counts()) == {"set aside"}


def test_a_part_damaged_in_its_middle_is_named(done):
    part = Path(done.out) / "images" / "part-000001.parquet"
    data = bytearray(part.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(64)
    part.write_bytes(data)
    verdict = verify_output(done.out)
    assert {f.kind for f in verdict.findings} <= {"damaged", "changed"}
    assert {f.name for f in verdict.findings} == {"images/part-000001.parquet"}


def test_a_foreign_file_among_the_results_is_named_moved_aside_and_kept(done):
    foreign = Path(done.out) / "results" / "notes.parquet"
    foreign.write_text("mine")
    with pytest.raises(OutputCorruptError, match=r"notes\.parquet"):
        run_job(done)
    assert found(done) == {("foreign", "results/notes.parquet")}
    repair_output(done.out, verify_output(done.out))
    assert run_job(done).counts["ok"] == 4
    assert (Path(done.out) / "_state/quarantine/results-notes.parquet").read_text() == "mine"


def test_a_corrupted_staged_row_is_named_and_done_again_and_no_other(edits, done):
    run = OutputFolder(done.out)
    staging = Path(done.out) / "_state" / "staging"
    staging.mkdir(exist_ok=True)
    (staging / "0123-4567-1.parquet").write_bytes(b"PAR1 and then nothing")
    assert found(done) == {("damaged", "_state/staging/0123-4567-1.parquet")}
    assert run_job(done).counts["ok"] == 4
    assert edits() == 4
    assert found(done) == {("set aside", "_state/quarantine/0123-4567-1.parquet")}
    assert run.staged_count() == 0


def test_a_row_in_two_parts_is_named(done):
    part = Path(done.out) / "results" / "part-000001.parquet"
    table = pq.read_table(part).slice(0, 1)
    pq.write_table(table, part.with_name("part-000002.parquet"))
    assert found(done) == {("double", table["row_id"][0].as_py())}


@pytest.mark.parametrize("days", [-30, 30])
def test_a_clock_that_jumps_loses_nothing_and_is_named(tmp_path, monkeypatch, days, edits):
    """The machine's clock is set in the middle of a run, and set right before the next."""
    from pipeline import stages

    photos = collection(tmp_path / "photos", 4)
    spec = spec_of(photos)

    class Jumping(datetime):
        calls = 0

        @classmethod
        def now(cls, tz=None):
            cls.calls += 1
            return datetime.now(tz) + timedelta(days=days * (cls.calls % 2))

    with monkeypatch.context() as patch:
        patch.setattr(stages, "datetime", Jumping)
        assert run_job(spec).counts["ok"] == 4
    table = results(spec)
    assert (table["edit_seconds"] >= 0).all()
    assert (table["finished_at"] >= table["started_at"]).all()
    kinds = {f.kind for f in verify_output(spec.out).findings}
    assert kinds == ({"clock"} if days > 0 else set())
    assert run_job(spec).computed == 0
    (photos / "p000.jpg").write_bytes((photos / "p002.jpg").read_bytes()[:-2] + b"\xff\xd9")
    run_job(spec, RunChoice(force=True))
    assert len(results(spec)) == 4
    assert (results(spec)["finished_at"] < datetime.now(UTC)).all()  # the later run stands
    assert found(spec) == set()


def test_rows_older_than_hashes_are_counted_and_not_called_changed(done):
    part = Path(done.out) / "results" / "part-000001.parquet"
    table = pq.read_table(part)
    at = table.column_names.index("edited_hash")
    none = pa.nulls(table.num_rows, pa.string())
    pq.write_table(table.set_column(at, table.schema.field(at), none), part)
    verdict = verify_output(done.out)
    assert (verdict.findings, verdict.unhashed) == ([], 4)


def test_every_kind_of_finding_says_what_it_is():
    assert all(KINDS.values())
