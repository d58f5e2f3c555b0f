"""What a run leaves behind to read: its log, its place in the history."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from manifests.commits import OutputFolder
from manifests.secrets import scrub
from manifests.storage import LocalStorage, open_storage
from pipeline import runlog
from pipeline.errors import UnusableEnvironmentError
from pipeline.history import past_runs
from pipeline.plan import RunChoice
from pipeline.run import run_job
from pipeline.runlog import RunLog, logged_runs
from tests.photos import collection
from tests.pipeline.conftest import spec_of

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def photos(tmp_path):
    return collection(tmp_path / "photos", 4)


def events(out, number=0):
    """The events of a run, by default of the first."""
    storage = LocalStorage(out)
    run_id = logged_runs(storage)[number]
    lines = storage.read(f"{runlog.LOGS}/run={run_id}.jsonl").decode().splitlines()
    return [json.loads(line) for line in lines]


def names(found):
    return [event["event"] for event in found if event["event"] != "message"]


def test_a_run_is_told_from_its_start_to_its_end(photos):
    (photos / "bad.jpg").write_bytes(b"x")
    spec = spec_of(photos)
    run_job(spec)
    found = events(spec.out)
    assert names(found) == ["started", "planned", "loading", *["row"] * 5, "finished"]
    assert {event["run_id"] for event in found} == {found[0]["run_id"]}
    started, finished = found[0], found[-1]
    assert started["model"] == "pocket"
    assert started["device_name"].startswith("cpu")
    assert next(e for e in found if e["event"] == "planned")["counts"] == {"new": 5}
    rows = {event["row_id"]: event for event in found if event["event"] == "row"}
    assert rows["bad.jpg"]["status"] == "failed"
    assert rows["bad.jpg"]["error"]
    assert rows["p000.jpg"]["worker_seconds"] >= 0
    assert finished["rows"] == {"ok": 4, "failed": 1}
    assert (finished["exit_code"], finished["computed"]) == (3, 5)
    run_job(spec)
    assert names(events(spec.out, 1)) == ["started", "planned", "loading", "finished"]


def test_photos_that_cannot_be_read_are_the_nights_failures(tmp_path, photos):
    manifest = tmp_path / "m.csv"
    manifest.write_text(f"image_uri\n{photos / 'p000.jpg'}\n{photos / 'gone.jpg'}\n")
    spec = spec_of(manifest)
    run_job(spec)
    (failed,) = (e for e in events(spec.out) if e.get("status") == "failed")
    assert failed["error_type"] == "FileNotFoundError"
    (night,) = past_runs(spec.out)
    assert (night.computed, night.rows) == (1, {"ok": 1, "failed": 1})


def test_a_breaker_and_a_bound_are_named(tmp_path, photos):
    bad = tmp_path / "bad"
    bad.mkdir()
    for i in range(4):
        (bad / f"{i}.jpg").write_bytes(bytes([i]) * 9)
    spec = spec_of(bad, breaker=2)
    run_job(spec)
    (stopped,) = (e for e in events(spec.out) if e["event"] == "stopped")
    assert stopped["exit_code"] == 4
    assert "all failed" in stopped["reason"]
    spec = spec_of(photos)
    run_job(spec, RunChoice(max_gpu_hours=1e-9))
    (stopped,) = (e for e in events(spec.out) if e["event"] == "stopped")
    assert stopped["exit_code"] == 8


def test_a_run_that_crashes_says_so_and_one_of_another_job_leaves_no_log(photos, monkeypatch):
    spec = spec_of(photos)

    def no_pool(*_):
        raise UnusableEnvironmentError("no worker, see https://u:p@host/x?sig=abc")

    with monkeypatch.context() as patched:
        patched.setattr("pipeline.run._Run._open_pool", no_pool)
        with pytest.raises(UnusableEnvironmentError):
            run_job(spec)
    found = events(spec.out)
    assert names(found)[-1] == "crashed"
    assert found[-1]["error"] == "no worker, see https://...@host/x?..."
    with pytest.raises(Exception, match="other options"):
        run_job(spec_of(photos, direction="down"))
    assert len(logged_runs(LocalStorage(spec.out))) == 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("see https://me:pw@host/a?X-Amz-Signature=1f&x=2 now", "see https://...@host/a?... now"),
        ("s3://key:secret@bucket/p", "s3://...@bucket/p"),
        ("HF_TOKEN=hf_abcdefgh1234", "HF_TOKEN=..."),
        ("rejected hf_abcdefgh1234: 401", "rejected ...: 401"),
        ("Authorization: Bearer abcdefgh.ijk", "Authorization: ..."),
        ("password: hunter2, user: me", "password: ..., user: me"),
        ("is this a photo?yes", "is this a photo?yes"),
        ("photos/a?b.jpg cannot be read", "photos/a?b.jpg cannot be read"),
    ],
)
def test_scrub_takes_secrets_and_leaves_names(text, shown):
    assert scrub(text) == shown


def test_a_log_is_bounded_and_still_says_how_the_run_ended(tmp_path):
    log = RunLog(LocalStorage(tmp_path), "r", max_bytes=2000)
    log.event("started")
    for i in range(1000):
        log.event("row", row_id=f"{i}", status="ok", error="x" * 5000)
    log.event("finished", exit_code=0)
    log.close()
    found = events(tmp_path)
    assert names(found)[-2:] == ["truncated", "finished"]
    assert (tmp_path / "_state/logs/run=r.jsonl").stat().st_size < 4000


def test_logs_of_long_ago_go(tmp_path, monkeypatch):
    monkeypatch.setattr(runlog, "KEPT_RUNS", 3)
    (tmp_path / "_state/logs").mkdir(parents=True)
    other = tmp_path / "_state/logs/schedule-nightly.log"
    other.write_text("mine")
    for i in range(5):
        RunLog(LocalStorage(tmp_path), f"2026{i}").close()
    assert logged_runs(LocalStorage(tmp_path)) == ["20262", "20263", "20264"]
    assert other.read_text() == "mine"


def test_a_log_that_cannot_be_written_fails_no_run(photos, monkeypatch):
    spec = spec_of(photos)
    (Path(spec.out) / "_state").mkdir(parents=True)
    (Path(spec.out) / "_state" / "logs").write_text("a file where the folder goes")
    assert run_job(spec).exit_code == 0


def test_a_log_on_other_storage_is_put_at_the_end(tmp_path):
    storage = open_storage(f"file://{tmp_path}")
    if getattr(storage, "local", None) is not None:
        from manifests.storage import ArrowStorage

        storage = ArrowStorage(f"file://{tmp_path}")
    log = RunLog(storage, "r")
    log.event("started")
    assert logged_runs(LocalStorage(tmp_path)) == []
    log.close()
    assert names(events(tmp_path)) == ["started"]


def test_history_shows_every_night_newest_first(photos):
    spec = spec_of(photos)
    run_job(spec, RunChoice(limit=1))
    (photos / "bad.jpg").write_bytes(b"x")
    run_job(spec)
    run_job(spec)
    last, middle, first = past_runs(spec.out)
    assert [run.computed for run in (first, middle, last)] == [1, 4, 0]
    assert middle.rows == {"ok": 3, "failed": 1}
    assert (first.exit_code, middle.exit_code, last.exit_code) == (0, 3, 3)
    assert first.counts["pending"] == 3
    assert all(run.state == "finished" and run.seconds is not None for run in (first, last))
    assert len(past_runs(spec.out, 2)) == 2


def test_history_tells_a_killed_run_and_one_older_than_the_logs(photos, tmp_path):
    spec = spec_of(photos)
    path = tmp_path / "spec.json"
    path.write_text(spec.to_json())
    process = subprocess.Popen(
        [Path(sys.executable).parent / "doodl-batch", "run", str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "DOODL_TEST_SECONDS": "30"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not logged_runs(LocalStorage(spec.out)):
        time.sleep(0.05)
    while "loading" not in names(events(spec.out)):
        time.sleep(0.05)
    assert past_runs(spec.out)[0].state == "running"
    process.send_signal(signal.SIGKILL)
    process.wait()
    (killed,) = past_runs(spec.out)
    assert (killed.state, killed.exit_code, killed.computed) == ("killed", None, 0)
    run_job(spec)
    newest = past_runs(spec.out)[0]
    storage = OutputFolder(spec.out).storage
    storage.delete(f"{runlog.LOGS}/run={newest.run_id}.jsonl")
    unlogged = past_runs(spec.out)[0]
    assert (unlogged.run_id, unlogged.state, unlogged.rows) == (
        newest.run_id,
        "unlogged",
        {"ok": 4},
    )
