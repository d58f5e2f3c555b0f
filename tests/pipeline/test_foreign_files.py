"""Files that desktops, shares and sync tools leave in an output folder: passed over, and kept."""

import os
import re
from pathlib import Path

import pytest

from jobs.plan import print_plan
from jobs.repairs import retry_rows, verify_folder
from jobs.report.build import build_report
from jobs.status import show_status
from manifests.checkpoints import CHECKPOINTS
from manifests.commits import OutputFolder
from manifests.compaction import INTENTS
from manifests.errors import OutputCorruptError
from manifests.ledger import LEDGER
from manifests.overwrites import OVERWRITTEN
from manifests.settling import QUARANTINE
from manifests.staging import STAGING
from manifests.storage import TEMP_FOLDER
from manifests.submissions import SUBMISSIONS
from pipeline.history import past_runs
from pipeline.plan import RunChoice
from pipeline.replay import Replayer
from pipeline.restrength import restrength_edits
from pipeline.run import run_job
from tests.photos import collection, jpeg
from tests.pipeline.conftest import results, spec_of

KEY, ROW = "0123456789abcdef" * 2, "fedcba9876543210"
RUN = "20260101T000000.000Z-abcdef"

# What a file of ours is called in each folder.
FOLDERS = {
    "": "_job.json",
    "_state": "hashes.parquet",
    STAGING: f"{KEY}-{ROW}-1.parquet",
    OVERWRITTEN: f"{KEY}-1",
    LEDGER: f"run={RUN}",
    f"{LEDGER}/run={RUN}": f"part-{KEY}.parquet",
    INTENTS: "part-000001.json",
    CHECKPOINTS: f"{KEY}.bin",
    QUARANTINE: f"{KEY}-{ROW}-1.parquet",
    TEMP_FOLDER: f"{KEY}.tmp",
    "_state/params": f"{KEY}.json",
    "_state/changes/01": f"{KEY}.safetensors",
    "_state/logs": f"run={RUN}.jsonl",
    SUBMISSIONS: "doodl-batch-0123456789abcdef-1.json",
    "_state/lease": "000000001.json",
    "results": "part-000001.parquet",
    "images": "part-000001.parquet",
    "edited": "p000.jpg",
}


def _conflicted(name):
    stem, dot, suffix = name.rpartition(".")
    return f"{stem or suffix} (conflicted copy){dot if stem else ''}{suffix if stem else ''}"


JUNK = {
    "a Mac's folder": lambda name: ".DS_Store",
    "a Windows folder's": lambda name: "Thumbs.db",
    "a Windows folder's own": lambda name: "desktop.ini",
    "AppleDouble": lambda name: f"._{name}",
    "NFS": lambda name: ".nfs000000000012ab3400000001",
    "a sync tool's": lambda name: f"{name}.tmp",
    "another sync tool's": lambda name: f".~syncthing~{name}.tmp",
    "a conflict": _conflicted,
    "a number": lambda name: "notes-from-2026",
    "Synology": lambda name: f"@eaDir/{name}/SYNOFILE_THUMB_M.jpg",
}


@pytest.fixture
def spec(tmp_path):
    spec = spec_of(collection(tmp_path / "photos", 3))
    assert run_job(spec).counts["ok"] == 3
    return spec


def litter(spec, folders, kinds):
    """Put foreign files into folders of the output, and return them with what they hold."""
    there = {}
    for folder in folders:
        for kind in kinds:
            path = Path(spec.out) / folder / JUNK[kind](FOLDERS[folder])
            if kind == "a conflict" and folder in ("results", "images", "edited"):
                continue  # a table or a photo, which readers would take for one of ours
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"{kind} in {folder}".encode())
            there[path] = path.read_bytes()
    return there


def check_nights(spec, edits, monkeypatch, capsys, there):
    """Every command goes on as if nothing lay there, and leaves all of it as it is."""
    photos = Path(spec.photos)
    before = edits()
    (photos / "p000.jpg").write_bytes(jpeg(60))  # its old file is kept until the new row is there
    (photos / "new.jpg").write_bytes(jpeg(61))
    with monkeypatch.context() as patch:
        patch.setattr(OutputFolder, "compact", lambda self, **options: 0)
        assert run_job(spec).exit_code == 0
    assert run_job(spec).exit_code == 0
    assert edits() == before + 2
    assert run_job(spec, RunChoice(force=True, only_rows=("new.jpg",))).computed == 1
    assert len(OutputFolder(spec.out).done()) == len(results_of(spec)) == 4
    assert print_plan(spec, RunChoice(), "why", as_json=False) == 0
    assert show_status(spec.out, as_json=False) == 0
    assert verify_folder(spec.out, repair=True, as_json=False) == 0
    assert past_runs(spec.out)[0].computed == 1
    assert OutputFolder(spec.out).read_ledger().num_rows >= 6
    build_report(spec.out)
    options = {"failed": True, "classes": [], "rows": [], "damaged": False}
    where = {"runner": "inline", "address": None, "report": False, "as_json": False}
    assert retry_rows(spec.out, **options, **where) == 0
    again = list(restrength_edits(spec.out, str(photos.parent / "weaker"), 0.5))
    assert [bool(re.match("no change was kept", str(r.error))) for r in again] == [True] * 4
    assert Replayer(spec.out, editor="tests.fakes:load_editor")("new.jpg").identical
    capsys.readouterr()
    assert {path: path.read_bytes() for path in there} == there


def results_of(spec):
    parts = [p for p in (Path(spec.out) / "results").iterdir() if p.name.startswith("part-")]
    assert parts
    return OutputFolder(spec.out).results()


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_with_every_kind_of_foreign_file_goes_on(spec, edits, monkeypatch, capsys, folder):
    there = litter(spec, [folder], JUNK)
    check_nights(spec, edits, monkeypatch, capsys, there)


@pytest.mark.parametrize("kind", JUNK)
def test_a_kind_of_foreign_file_in_every_folder_is_passed_over(
    spec, edits, monkeypatch, capsys, kind
):
    there = litter(spec, FOLDERS, [kind])
    check_nights(spec, edits, monkeypatch, capsys, there)


@pytest.mark.parametrize("folder", ["results", "images"])
@pytest.mark.parametrize("name", ["part-000001 (conflicted copy).parquet", "mine.PARQUET"])
def test_a_foreign_table_that_readers_would_take_for_results_is_refused(spec, folder, name):
    (Path(spec.out) / folder / name).write_bytes(b"a table")
    with pytest.raises(OutputCorruptError, match=re.escape(f"{folder}/{name} is not a part")):
        run_job(spec, RunChoice(force=True))
    assert (Path(spec.out) / folder / name).read_bytes() == b"a table"


def test_what_is_ours_is_still_cleared_away(spec):
    """The patterns know our own names: what a killed run leaves is put right as ever."""
    out = Path(spec.out)
    half = out / TEMP_FOLDER / f"{KEY}.tmp"
    half.parent.mkdir(exist_ok=True)
    half.write_bytes(b"half")
    stale = out / CHECKPOINTS / f"{KEY}.bin"
    stale.parent.mkdir(exist_ok=True)
    stale.write_bytes(b"stale")
    torn = out / STAGING / f"{KEY}-{ROW}-1.failed.parquet"
    torn.parent.mkdir(exist_ok=True)
    torn.write_bytes(b"torn")
    kept = out / OVERWRITTEN / f"{KEY}-1"
    kept.parent.mkdir(exist_ok=True)
    kept.write_bytes(b"an old photo")
    assert run_job(spec).exit_code == 0
    assert not any(os.path.lexists(path) for path in (half, stale, torn, kept))
    assert (out / QUARANTINE / torn.name).read_bytes() == b"torn"
    assert len(results(spec)) == 3
