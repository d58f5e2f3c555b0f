"""Only damage is damage: what cannot be read now is neither set aside nor done again."""

import errno
import hashlib
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.exits import exit_code_of
from manifests.commits import OutputFolder
from manifests.compaction import INTENTS
from manifests.errors import UnreadableFileError
from manifests.records import to_records
from manifests.staging import STAGING
from manifests.storage import LocalStorage
from pipeline.plan import RunChoice
from pipeline.repair import repair_output
from pipeline.run import run_job
from pipeline.verify import verify_output
from tests.photos import collection, jpeg
from tests.pipeline.conftest import results, spec_of

FAULTS = {
    "stale": OSError(errno.ESTALE, "Stale file handle"),
    "too many open files": OSError(errno.EMFILE, "Too many open files"),
    "bad sector": OSError(errno.EIO, "Input/output error"),
    "not allowed": PermissionError(errno.EACCES, "Permission denied"),
    "a store's": OSError("When reading information for key: AWS Error NETWORK_CONNECTION"),
    "no memory": MemoryError(),
    "no memory for Arrow": pa.ArrowMemoryError("malloc of size 4096 failed"),
    "no time zones": pa.ArrowInvalid("Cannot locate timezone 'UTC'"),
}
UNABLE = {
    "no threads for Arrow": pa.ArrowException("Unknown error: Failed to launch worker thread"),
    "no threads": RuntimeError("can't start new thread"),
    "stopped": pa.ArrowCancelled("Operation cancelled"),
    "too large here": pa.ArrowCapacityError("array cannot contain more than 2147483646 bytes"),
    "no codec": pa.ArrowNotImplementedError("Support for codec 'zstd' not built"),
}
"""What this machine cannot do, whatever the file."""
FAULTS |= UNABLE


@pytest.fixture
def photos(tmp_path):
    folder = collection(tmp_path / "photos", 3)
    for path in folder.rglob("*.jpg"):
        os.utime(path, (1e9, 1e9))  # old enough for their hashes to be remembered
    return folder


@pytest.fixture
def out_of_reach(monkeypatch):
    """Return a function that lets files below a path of any output be read no more, and undoes."""

    def break_(prefix, error):
        patch = pytest.MonkeyPatch()
        for method in ("read", "open"):
            plain = getattr(LocalStorage, method)

            def broken(self, path, plain=plain):
                if path.startswith(prefix):
                    raise error
                return plain(self, path)

            patch.setattr(LocalStorage, method, broken)
        patches.append(patch)
        return patch

    patches: list[pytest.MonkeyPatch] = []
    yield break_
    for patch in patches:
        patch.undo()


def leave_staged(spec, monkeypatch):
    """Run, and leave the rows staged as a run that is killed does."""
    with monkeypatch.context() as patch:
        patch.setattr(OutputFolder, "compact", lambda self, **options: 0)
        assert run_job(spec).counts["ok"] == 3


def leave_intent(spec, monkeypatch):
    """Leave an intent too: the run was killed when it had written it."""
    leave_staged(spec, monkeypatch)
    folder = OutputFolder(spec.out)
    names = [entry.name for entry in folder.storage.files(STAGING)]
    intent = {"part": 1, "epoch": 1, "staged": names}
    folder.storage.write(f"{INTENTS}/part-000001.json", json.dumps(intent).encode())


def kept(spec):
    """What the books hold, byte by byte."""
    out = Path(spec.out)
    folders = ("results", "images", "edited", STAGING, INTENTS, "_state/quarantine")
    return {
        str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest()
        for folder in folders
        for p in sorted((out / folder).rglob("*"))
        if p.is_file()
    } | {"hashes": hashlib.sha256((out / "_state/hashes.parquet").read_bytes()).hexdigest()}


def attempt(spec):
    """Run, and return the exit code a scheduler sees."""
    try:
        return run_job(spec).exit_code
    except Exception as error:
        return exit_code_of(error)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("prefix", [STAGING, INTENTS, "results", "_state/hashes"])
def test_books_that_cannot_be_read_now_are_kept_and_nothing_is_done_again(
    photos, edits, monkeypatch, out_of_reach, prefix, fault
):
    spec = spec_of(photos)
    if prefix in (STAGING, INTENTS):
        leave_intent(spec, monkeypatch)
    else:
        run_job(spec)
    before = kept(spec)
    patch = out_of_reach(prefix, FAULTS[fault])
    assert attempt(spec) == (6 if fault != "no time zones" else None)
    patch.undo()
    assert kept(spec) == before
    assert edits() == 3
    summary = run_job(spec)
    assert (summary.exit_code, summary.computed, edits()) == (0, 0, 3)
    assert verify_output(spec.out).findings == []


@pytest.mark.parametrize("fault", ["stale", "no memory", "bad sector", "no threads"])
@pytest.mark.parametrize("prefix", ["_job.json", "_state/extra_columns"])
def test_a_job_that_cannot_be_read_now_stays_the_job(photos, edits, out_of_reach, prefix, fault):
    spec = spec_of(photos)
    run_job(spec)
    before = kept(spec)
    patch = out_of_reach(prefix, FAULTS[fault])
    assert attempt(spec) == 6
    patch.undo()
    assert kept(spec) == before
    assert run_job(spec).computed == 0


@pytest.mark.parametrize("fault", ["stale", "not allowed", "bad sector"])
def test_images_that_cannot_be_read_now_cost_no_copy_its_source(photos, edits, out_of_reach, fault):
    spec = spec_of(photos, images="parquet")
    run_job(spec)
    (photos / "again.jpg").write_bytes((photos / "p000.jpg").read_bytes())
    patch = out_of_reach("images", FAULTS[fault])
    assert attempt(spec) == 6
    patch.undo()
    assert run_job(spec).copied == 1
    assert edits() == 3


@pytest.mark.parametrize("fault", ["stale", "too many open files", "bad sector"])
def test_a_checkpoint_that_cannot_be_read_now_is_kept_and_no_photo_is_charged(
    photos, out_of_reach, fault
):
    from manifests.identity import params_fingerprint
    from pipeline.plan import job_record, make_plan, work_items
    from pipeline.run import load_rows
    from pipeline.stages import RowProcessor

    spec = spec_of(photos)
    folder = OutputFolder(spec.out)
    with folder.lock():
        job = folder.open_job(job_record(spec))
        items = list(work_items(make_plan(spec, RunChoice(), folder, load_rows(spec)).to_compute()))
    folder.checkpoints.save(items[0].work_key, b"half done")
    work = RowProcessor(spec, params_fingerprint(spec.params()), job)
    patch = out_of_reach("_state/checkpoints", FAULTS[fault])
    (outcome,) = work(items[:1])
    patch.undo()
    assert outcome.status == "unwritable"
    assert folder.staged_count() == 0
    assert folder.checkpoints.load(items[0].work_key) == b"half done"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_ledger_that_cannot_be_read_now_is_not_taken_for_an_empty_one(
    photos, out_of_reach, fault
):
    spec = spec_of(photos)
    run_job(spec)
    folder = OutputFolder(spec.out)
    patch = out_of_reach("_state/ledger", FAULTS[fault])
    with pytest.raises(UnreadableFileError if fault in UNABLE else type(FAULTS[fault])):
        folder.read_ledger()
    patch.undo()
    assert folder.read_ledger().num_rows == 3


def test_a_fault_that_passes_between_two_reads_is_none(photos, edits, monkeypatch):
    spec = spec_of(photos)
    leave_staged(spec, monkeypatch)
    plain, failed = LocalStorage.open, set()

    def once(self, path):
        if path not in failed:
            failed.add(path)
            raise OSError(errno.ESTALE, "Stale file handle")
        return plain(self, path)

    monkeypatch.setattr(LocalStorage, "open", once)
    assert run_job(spec).exit_code == 0
    assert len(failed) > 3
    assert edits() == 3


def _cut(data):
    return data[: len(data) // 2]


def _flip(data):
    return data[:-6] + bytes(b ^ 0xFF for b in data[-6:])


def _other_table(data):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": [1]}), sink)
    return sink.getvalue().to_pybytes()


def _changed(data, column, value):
    table = pq.read_table(pa.BufferReader(data))
    index = table.column_names.index(column)
    sink = pa.BufferOutputStream()
    pq.write_table(table.set_column(index, column, pa.array([value])), sink)
    return sink.getvalue().to_pybytes()


DAMAGE = {
    "cut": _cut,
    "empty": lambda data: b"",
    "bits flipped": _flip,
    "other columns": _other_table,
    "no status": lambda data: _changed(data, "status", None),
    "no such status": lambda data: _changed(data, "status", "splendid"),
    "another type": lambda data: _changed(data, "seed", "a seed"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_staged_row_that_is_damaged_is_set_aside_and_done_again(
    photos, edits, monkeypatch, damage
):
    spec = spec_of(photos)
    leave_staged(spec, monkeypatch)
    path = sorted((Path(spec.out) / STAGING).iterdir())[1]
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert run_job(spec).counts["ok"] == 3
    assert edits() == 4
    (finding,) = verify_output(spec.out).findings
    assert (finding.kind, Path(finding.name).name) == ("set aside", path.name)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"part": 1}', b'{"part": 1, "staged": 3}'])
@pytest.mark.parametrize("published", [False, True])
def test_an_intent_that_is_damaged_is_set_aside_and_its_rows_are_kept(
    photos, edits, monkeypatch, text, published
):
    spec = spec_of(photos, images="parquet")
    leave_staged(spec, monkeypatch)
    if published:
        staged = {p: p.read_bytes() for p in (Path(spec.out) / STAGING).iterdir()}
        run_job(spec)
        for path, data in staged.items():
            path.write_bytes(data)
    OutputFolder(spec.out).storage.write(f"{INTENTS}/part-000001.json", text)
    assert run_job(spec).exit_code == 0
    assert edits() == 3
    assert len(results(spec)) == 3
    assert {f.kind for f in verify_output(spec.out).findings} == {"set aside"}
    assert not list((Path(spec.out) / INTENTS).iterdir())


def test_a_damaged_cache_of_hashes_is_made_anew(photos, edits):
    spec = spec_of(photos)
    run_job(spec)
    cache = Path(spec.out) / "_state/hashes.parquet"
    for damage in (_cut, _flip, lambda data: b""):
        cache.write_bytes(damage(cache.read_bytes()))
        assert run_job(spec).computed == 0
        assert pq.read_table(cache).num_rows == 3
    assert edits() == 3


def test_a_damaged_file_of_the_ledger_is_passed_over(photos, caplog):
    spec = spec_of(photos)
    run_job(spec)
    (path,) = (Path(spec.out) / "_state/ledger").rglob("*.parquet")
    path.write_bytes(path.read_bytes()[:50])
    assert OutputFolder(spec.out).read_ledger().num_rows == 0
    assert path.name in caplog.text


@pytest.mark.parametrize("fault", ["stale", "not allowed", "a store's", *UNABLE])
@pytest.mark.parametrize("images", ["parquet", "both"])
@pytest.mark.parametrize("prefix", ["results", "images/", STAGING])
def test_verify_tells_what_cannot_be_read_now_from_damage_and_repairs_nothing(
    photos, edits, monkeypatch, out_of_reach, prefix, fault, images
):
    spec = spec_of(photos, images=images)
    run_job(spec)
    (photos / "new.jpg").write_bytes(jpeg(50))
    with monkeypatch.context() as patched:
        patched.setattr(OutputFolder, "compact", lambda self, **options: 0)
        run_job(spec)
    before = kept(spec)
    patch = out_of_reach(prefix, FAULTS[fault])
    verdict = verify_output(spec.out)
    assert {f.kind for f in verdict.findings} == {"unreadable"}
    assert all(f.name.startswith(prefix) for f in verdict.findings)
    assert verdict.damaged_rows() == []
    patch.undo()
    assert repair_output(spec.out, verdict).set_aside == []
    assert kept(spec) == before


def test_a_delivered_photo_that_cannot_be_read_now_is_not_made_again(photos, monkeypatch):
    spec = spec_of(photos)
    run_job(spec)
    plain = verify_output.__globals__["hash_file"]

    def hash_file(path):
        if Path(path).name == "p000.jpg":
            raise OSError(errno.EIO, "Input/output error")
        return plain(path)

    monkeypatch.setattr("pipeline.verify.hash_file", hash_file)
    verdict = verify_output(spec.out)
    assert [(f.kind, f.name) for f in verdict.findings] == [("unreadable", "edited/p000.jpg")]
    assert verdict.damaged_rows() == []


def test_a_link_to_nowhere_or_a_file_gone_meanwhile_hides_no_other(photos, edits, monkeypatch):
    spec = spec_of(photos)
    run_job(spec)
    for folder in ("results", "images", STAGING):
        (Path(spec.out) / folder).mkdir(exist_ok=True)
        (Path(spec.out) / folder / "gone").symlink_to("nowhere")
    assert len(OutputFolder(spec.out).done()) == 3
    assert run_job(spec).computed == 0
    assert edits() == 3


WITHOUT_THREADS = """
import resource, sys
from pathlib import Path
from jobs.exits import exit_code_of
from manifests.commits import OutputFolder
from manifests.hashes import HASHES_FILE, _read_cache
from pipeline.run import run_job
from tests.pipeline.conftest import spec_of

spec = spec_of(sys.argv[1], sys.argv[2])
folder = OutputFolder(spec.out)
with folder.lock():
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, used + 2**29))
    print(folder.recover().quarantined, folder.done().num_rows, folder.read_ledger().num_rows)
    print(_read_cache(folder.storage).num_rows)
    print(folder.compact(force=True), folder.done().num_rows)
print(run_job(spec).computed)
Path(sys.argv[1], "new.jpg").write_bytes(b"to be hashed, by threads")
try:
    run_job(spec)
except Exception as error:
    print(exit_code_of(error), error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits are Linux's")
@pytest.mark.parametrize("images", ["files", "parquet", "both"])
def test_books_are_read_where_no_thread_can_be_started(photos, edits, monkeypatch, images):
    """Each thread's stack is to take 4 GiB of memory, and there are 512 MiB."""
    spec = spec_of(photos, images=images)
    leave_staged(spec, monkeypatch)
    ended = subprocess.run(
        ["bash", "-c", 'ulimit -S -s 4194304 && exec "$0" "$@"',
         sys.executable, "-c", WITHOUT_THREADS, photos, spec.out],
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.stdout.split("\n")[:-1] == [
        "[] 3 3", "3", "3 3", "0", "6 can't start new thread",
    ], ended.stderr  # fmt: skip
    (photos / "new.jpg").unlink()
    assert run_job(spec).computed == 0
    assert edits() == 3


WITHOUT_TIME_ZONES = """
import sys
sys.modules["tzdata"] = None  # as if it were not installed
from pathlib import Path
import zoneinfo
from manifests.commits import OutputFolder
from pipeline.replay import Replayer
from pipeline.run import run_job
from pipeline.verify import verify_output
from tests.pipeline.conftest import spec_of

try:
    zoneinfo.ZoneInfo("UTC")
except zoneinfo.ZoneInfoNotFoundError:
    print("no time zones here")
spec = spec_of(sys.argv[1], sys.argv[2])
compact = OutputFolder.compact
OutputFolder.compact = lambda self, **options: 0
run_job(spec)
OutputFolder.compact = compact
summary = run_job(spec)
print(summary.computed, summary.counts["ok"], summary.exit_code)
print(len(verify_output(spec.out).findings))
print(len(OutputFolder(spec.out).rows(["a", "b"])))
Path(sys.argv[3]).write_bytes(Path(sys.argv[4]).read_bytes())  # a photo changed
print(run_job(spec).computed)
print(Replayer(spec.out, editor="tests.fakes:load_editor")("b").identical)
"""


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", None])
def test_nights_need_no_time_zone_database(photos, tmp_path, edits, zone):
    """Slim containers have none: staged rows are rows all the same, whatever their zones."""
    instant = pa.array([datetime(2026, 7, 1, tzinfo=UTC)] * 2, pa.timestamp("us", tz=zone))
    table = {
        "row_id": ["a", "b"],
        "image_uri": [str(photos / "p000.jpg"), str(photos / "p002.jpg")],
        "taken_at": instant,
    }
    pq.write_table(pa.table(table), tmp_path / "rows.parquet")
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_TIME_ZONES, tmp_path / "rows.parquet", tmp_path / "out",
         photos / "p000.jpg", photos / "sub/p001.jpg"],
        env={**os.environ, "PYTHONTZPATH": "", "PYTHONPATH": str(Path.cwd())},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.stderr == ""
    assert ended.stdout.split("\n")[:-1] == [
        "no time zones here", "0 2 0", "0", "2", "1", "True",
    ]  # fmt: skip
    taken = pq.read_table(tmp_path / "out/results")["taken_at"]
    assert taken.type == instant.type
    assert taken.cast(pa.int64()).unique().to_pylist() == instant.cast(pa.int64()).to_pylist()[:1]


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kathmandu", "+02:00"])
def test_records_say_every_instant_in_utc(zone):
    noon = datetime(2026, 7, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    kind = pa.timestamp("us", tz=zone)
    table = pa.table(
        {
            "at": pa.array([noon, None], kind),
            "all": pa.array([[noon], None], pa.list_(kind)),
            "in": pa.array([{"at": noon, "n": 1}, None], pa.struct({"at": kind, "n": pa.int8()})),
            "naive": pa.array([noon.replace(tzinfo=None)] * 2),
            "text": ["x", None],
        }
    )  # fmt: skip
    first, second = to_records(table)
    assert first == {
        "at": noon, "all": [noon], "in": {"at": noon, "n": 1},
        "naive": noon.replace(tzinfo=None), "text": "x",
    }  # fmt: skip
    assert first["at"].tzinfo is UTC
    assert second["at"] is second["all"] is second["in"] is second["text"] is None
