"""The commit protocol under a crash at every boundary.

A boundary is a point at which a process can die between two changes of what lies on storage:
before and after every temporary file, rename and unlink, and in the middle of a temporary file.
At each of them a reader looks at the folder, and after each crash a new driver takes over, which
may die in its turn.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from manifests.commits import OutputFolder
from manifests.identity import input_key, row_seed, work_key
from manifests.rows import ResultRow, Status
from manifests.schemas import DONE_STATUSES
from manifests.storage import LocalStorage

ROWS = ("a.jpg", "b.jpg", "trip/c.jpg", "d.png")
JOB = {"task": "enhance", "doodl_version": "1", "params": {"steps": 10}}


class Crash(BaseException):
    """The process dies here: nothing of ours may catch it."""


class CrashingStorage(LocalStorage):
    """A folder whose process dies at a chosen boundary; a reader looks on at each."""

    def __init__(self, root: Path, look: Callable[[], None], renamed: Callable[[Path], None]):
        super().__init__(root)
        self.look, self.renamed = look, renamed
        self.boundaries = 0
        self.crash_at: int | None = None

    def _boundary(self) -> None:
        self.boundaries += 1
        self.look()
        if self.boundaries == self.crash_at:
            raise Crash

    def _write_temporary(self, path: Path, fill: Callable[[BinaryIO], None]) -> None:
        self._boundary()
        with path.open("wb") as file:
            fill(file)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        self._boundary()  # torn: what a crash leaves of a file half written
        path.write_bytes(whole)
        self._boundary()

    def _rename(self, source: Path, target: Path) -> None:
        super()._rename(source, target)
        self.renamed(target)
        self._boundary()

    def _link(self, source: Path, target: Path) -> None:
        super()._link(source, target)
        self._boundary()

    def _unlink(self, path: Path) -> None:
        super()._unlink(path)
        self._boundary()

    def _sync_folder(self, folder: Path) -> None:
        pass  # tested by itself; here it would only cost time


@dataclass(frozen=True)
class Commit:
    """What a commit says, as far as readers can tell one from another."""

    work_key: str
    status: str
    epoch: int
    finished_at: datetime

    @property
    def is_done(self) -> bool:
        return self.status in DONE_STATUSES

    def after(self, new: Commit, redo_epoch: int) -> Commit:
        """Return what stands once `new` is committed for the row that says this."""
        if new.work_key != self.work_key:
            later = (new.epoch, new.finished_at) >= (self.epoch, self.finished_at)
            return new if later else self
        if not (self.is_done or new.is_done):
            return new if new.epoch >= self.epoch else self
        counts = [commit.epoch >= redo_epoch for commit in (self, new)]
        if counts[0] != counts[1]:
            return new if counts[1] else self
        if self.is_done != new.is_done:
            return new if new.is_done else self
        return new if new.epoch > self.epoch else self


class Harness:
    """A job, its driver and workers, and the truth about what they have committed."""

    def __init__(self, root: Path, with_images: bool = True):
        self.root, self.with_images = root, with_images
        self.truth: dict[str, Commit] = {}
        self.ever: set[tuple[str, str, str]] = set()
        self.about_to_commit: tuple[str, Commit] | None = None
        self.past: list[tuple[ResultRow, int]] = []
        self.versions = dict.fromkeys(ROWS, 0)
        self._read: dict[tuple[str, int, int], list[dict]] = {}
        self.crashes = self.looks = 0
        self.spoilt: set[str] = set()
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.storage = CrashingStorage(root, self.look, self.renamed)
        self.out = OutputFolder(self.storage)
        self.start_run()

    @property
    def redo_epoch(self) -> int:
        """The run since which rows count as done, as recorded this instant."""
        job = OutputFolder(self.root).read_job()
        return job["redo"]["epoch"] if job else 0

    # What is done to the folder

    def start_run(self, redo: bool = False) -> None:
        self.out = OutputFolder(self.storage)
        with self.out.lock():
            self.out.open_job(JOB, redo=redo)
            self.out.recover()
        self.check_photos()

    def compact(self, part_bytes: int = 1 << 20) -> None:
        with self.out.lock():
            self.out.compact(force=True, part_bytes=part_bytes)

    def result(self, row_id: str, fails: bool = False) -> ResultRow:
        """Return a result of the row as it is now; the same work comes out the same way."""
        key = input_key(f"{row_id}:{self.versions[row_id]}", {})
        work = work_key(key, "params")
        outcome: Status = "rejected" if int(work, 16) % 4 == 0 else "ok"
        status: Status = "failed" if fails else outcome
        self.now += timedelta(seconds=1)
        return ResultRow(row_id, key, work, status, seed=row_seed(work), finished_at=self.now)

    def commit(self, result: ResultRow, epoch: int | None = None) -> None:
        """Write and stage one row, as a worker of the run `epoch` does."""
        worker = OutputFolder(self.storage)
        own_epoch = worker.read_job()["epoch"]
        if epoch is not None:
            worker._job = {"epoch": epoch, "redo": {"epoch": 0}}
        epoch = own_epoch if epoch is None else epoch
        commit = Commit(result.work_key, result.status, epoch, result.finished_at)
        photo = f"photo of {result.work_key}".encode()
        if result.status == "ok":
            # A worker left over from another run fences off no file, only rows: `verify` is to
            # name what it wrote over.
            if epoch < own_epoch and result.row_id in self.truth:
                self.spoilt.add(result.row_id)
            result.edited_uri = worker.write_edited(result.row_id, photo)
        self.about_to_commit = (result.row_id, commit)
        self.past.append((result, commit.epoch))
        worker.stage(result, photo if self.with_images and result.edited_uri else None)

    def commit_under_crash(self, crash_at: int | None, result: ResultRow) -> None:
        """Commit a row of this run's plan; other work for a row takes another plan."""
        latest = self.truth.get(result.row_id)
        epoch = self.out.read_job()["epoch"]
        if latest is not None and latest.epoch == epoch and latest.work_key != result.work_key:
            self.start_run()
        self.under_crash(crash_at, lambda: self.commit(result))

    def renamed(self, target: Path) -> None:
        if target.parent.name == "staging" and self.about_to_commit is not None:
            row_id, new = self.about_to_commit
            self.ever.add((row_id, new.work_key, new.status))
            old = self.truth.get(row_id)
            self.truth[row_id] = new if old is None else old.after(new, self.redo_epoch)
            if self.truth[row_id] is new:
                self.spoilt.discard(row_id)
            self.about_to_commit = None

    def under_crash(self, crash_at: int | None, act: Callable[[], None]) -> None:
        """Run `act` with a crash at its boundary number `crash_at`; then a new driver starts.

        The new driver dies at the same number of its own boundaries, the next one does not.
        """
        for attempt in (act, self.start_run):
            self.storage.crash_at = crash_at and self.storage.boundaries + crash_at
            try:
                attempt()
            except Crash:
                self.crashes += 1
                self.about_to_commit = None
                self.storage.crash_at = None
                self.check_done()
            else:
                self.storage.crash_at = None
                self.check_done()
                return
        self.start_run()
        self.check_done()

    # What readers see

    def _rows(self, path: Path) -> list[dict]:
        status = path.stat()
        key = (path.name, status.st_ino, status.st_mtime_ns)
        if key not in self._read:
            with pq.ParquetFile(path) as file:
                self._read[key] = file.read().to_pylist()
        return self._read[key]

    def _table(self, folder: str) -> list[dict]:
        entries = sorted((self.root / folder).iterdir()) if (self.root / folder).exists() else []
        assert all(e.name.startswith("part-") and e.suffix == ".parquet" for e in entries)
        return [row for entry in entries for row in self._rows(entry)]

    def look(self) -> None:
        """Read the folder as it is this instant, as its users do."""
        self.looks += 1
        rows, images = self._table("results"), self._table("images")
        results = {row["row_id"]: row for row in rows}
        photos = {row["row_id"]: row for row in images}
        assert len(results) == len(rows), "a row twice"
        assert len(photos) == len(images), "a photo twice"
        for row_id, row in results.items():
            assert (row_id, row["work_key"], row["status"]) in self.ever, "a row never committed"
            if self.with_images and row["edited_uri"]:
                photo = photos[row_id]
                assert photo["work_key"] == row["work_key"], "another photo"
                assert photo["edited_image"]["bytes"] == f"photo of {row['work_key']}".encode()
        staged = {
            (row["row_id"], row["work_key"], row["status"])
            for path in (self.root / "_state/staging").glob("*.parquet")
            for row in self._rows(path)
        }
        for row_id, commit in self.truth.items():
            said = (row_id, commit.work_key, commit.status)
            row = results.get(row_id, {})
            assert said in staged or said[1:] == (row.get("work_key"), row.get("status")), "lost"

    def check_done(self) -> None:
        """Compare what a planner sees with the truth."""
        done = OutputFolder(self.root).done().to_pylist()
        redo_epoch = self.redo_epoch
        seen = {row["row_id"]: (row["work_key"], row["status"]) for row in done}
        assert len(seen) == len(done)
        assert seen == {
            row_id: (commit.work_key, commit.status)
            for row_id, commit in self.truth.items()
            if commit.epoch >= redo_epoch
        }

    def check_photos(self) -> None:
        """Compare what lies in `edited/` with the rows, as it must be when a run starts."""
        for row_id, commit in self.truth.items():
            if commit.status == "ok" and row_id not in self.spoilt:
                photo = (self.root / "edited" / row_id).read_bytes()
                assert photo == f"photo of {commit.work_key}".encode(), "another photo"

    def finish(self) -> None:
        """Start once more, compact, and compare everything."""
        self.storage.crash_at = None
        self.start_run()
        self.compact()
        self.look()
        self.check_done()
        self.check_photos()
        results = {row["row_id"]: row for row in self._table("results")}
        assert {r: (row["work_key"], row["status"]) for r, row in results.items()} == {
            r: (c.work_key, c.status) for r, c in self.truth.items()
        }
        delivered = {r for r, row in results.items() if row["edited_uri"]}
        photos = {row["row_id"] for row in self._table("images")}
        assert photos == (delivered if self.with_images else set())
        for row_id in delivered:
            assert (self.root / results[row_id]["edited_uri"]).exists()
        for folder in ("staging", "intents", "tmp", "quarantine", "overwritten"):
            path = self.root / "_state" / folder
            assert not path.exists() or not list(path.iterdir()), f"{folder} is not empty"


@pytest.fixture
def root() -> Iterator[Path]:
    yield from _memory_folder()


def _memory_folder() -> Iterator[Path]:
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
    try:
        yield folder / "out"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


ROW = st.sampled_from(ROWS)
# Operations have 8 boundaries (a commit) to some 40 (a compaction): most of these are a crash.
CRASH = st.sampled_from([None, *range(1, 9), *range(9, 45, 3)])


class CommitProtocol(RuleBasedStateMachine):
    """Workers, drivers, zombies and crashes in any order."""

    @initialize(with_images=st.booleans())
    def begin(self, with_images: bool) -> None:
        self._folder = _memory_folder()
        self.harness = Harness(next(self._folder), with_images)

    @rule(row_id=ROW, fails=st.sampled_from([False, False, True]), crash_at=CRASH)
    def compute(self, row_id: str, fails: bool, crash_at: int | None) -> None:
        h = self.harness
        result = h.result(row_id, fails)
        # Work that was done is not tried again, but for a row thought lost: then it is the
        # row's latest work.
        latest = h.truth.get(row_id)
        was_done = any((row_id, result.work_key, s) in h.ever for s in DONE_STATUSES)
        if was_done and (latest is None or latest.work_key != result.work_key):
            result = h.result(row_id)
        h.commit_under_crash(crash_at, result)

    @rule(row_id=ROW, crash_at=CRASH)
    def compute_changed_photo(self, row_id: str, crash_at: int | None) -> None:
        h = self.harness
        h.versions[row_id] += 1
        h.commit_under_crash(crash_at, h.result(row_id))

    @rule(data=st.data(), crash_at=CRASH)
    def late_worker_commits_again(self, data: st.DataObject, crash_at: int | None) -> None:
        h = self.harness
        if h.past:
            result, epoch = data.draw(st.sampled_from(h.past))
            h.under_crash(crash_at, lambda: h.commit(replace(result), epoch))

    @rule(source=ROW, row_id=ROW, crash_at=CRASH)
    def copy(self, source: str, row_id: str, crash_at: int | None) -> None:
        h = self.harness
        h.commit_under_crash(crash_at, replace(h.result(source), row_id=row_id))

    @rule(crash_at=CRASH, part_bytes=st.sampled_from([1, 1 << 20]))
    def compact(self, crash_at: int | None, part_bytes: int) -> None:
        h = self.harness
        h.under_crash(crash_at, lambda: h.compact(part_bytes))

    @rule(crash_at=CRASH, redo=st.sampled_from([False, False, True]))
    def start_again(self, crash_at: int | None, redo: bool) -> None:
        h = self.harness
        h.under_crash(crash_at, lambda: h.start_run(redo))

    @invariant()
    def readers_see_each_row_once(self) -> None:
        if hasattr(self, "harness"):
            self.harness.look()

    def teardown(self) -> None:
        if hasattr(self, "harness"):
            try:
                self.harness.finish()
            finally:
                self._folder.close()


def _settings(schedules: int, steps: int) -> settings:
    return settings(
        max_examples=schedules,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


class TestShortSchedules(CommitProtocol.TestCase):
    settings = _settings(40, 10)


@pytest.mark.slow
class TestLongSchedules(CommitProtocol.TestCase):
    settings = _settings(250, 15)


def _prepare_superseding(root: Path) -> Harness:
    """Return a job with three published rows, two of which are about to be superseded."""
    harness = Harness(root)
    for row_id in ROWS[:3]:
        harness.commit(harness.result(row_id, fails=row_id == "b.jpg"))
    harness.compact()
    harness.start_run()
    harness.versions["a.jpg"] += 1
    for row_id in ("a.jpg", "b.jpg", "d.png"):
        harness.commit(harness.result(row_id))
    return harness


def _crash_everywhere(root: Path, act: Callable[[Harness], None]) -> int:
    """Kill `act`, and the driver after it, at each of its boundaries; return how many it has."""
    crash_at = 1
    while True:
        harness = _prepare_superseding(root / str(crash_at) / "out")
        harness.under_crash(crash_at, lambda h=harness: act(h))
        harness.finish()
        if not harness.crashes:
            return crash_at - 1
        crash_at += 1


def test_compaction_survives_a_crash_at_each_of_its_boundaries(root: Path) -> None:
    # Intent, images, results: 4 boundaries each, twice; two rewrites; 3 staged, 2 intents unlinked.
    assert _crash_everywhere(root, lambda h: h.compact(part_bytes=6000)) >= 30


def test_commit_survives_a_crash_at_each_of_its_boundaries(root: Path) -> None:
    assert _crash_everywhere(root, lambda h: h.commit(h.result("trip/c.jpg"))) == 9


def test_start_survives_a_crash_at_each_of_its_boundaries(root: Path) -> None:
    assert _crash_everywhere(root, lambda h: h.start_run(redo=True)) >= 4


def test_photo_of_a_changed_row_is_put_back_if_its_worker_died_before_the_commit(
    root: Path,
) -> None:
    for with_images in (True, False):
        harness = Harness(root / str(with_images), with_images)
        harness.commit(harness.result("a.jpg"))
        harness.compact()
        harness.start_run()
        old = (harness.root / "edited/a.jpg").read_bytes()
        harness.out.write_edited("a.jpg", b"new")
        harness.out.write_edited("a.jpg", b"new, by another worker")
        with harness.out.lock():
            harness.out.open_job(JOB)
            assert harness.out.recover().photos_restored == 1
        assert (harness.root / "edited/a.jpg").read_bytes() == old
        harness.finish()


def test_worker_left_from_before_a_redo_does_not_undo_it(root: Path) -> None:
    harness = Harness(root)
    first = harness.result("a.jpg")
    harness.commit(first)
    harness.compact()
    harness.start_run(redo=True)
    harness.commit(harness.result("a.jpg"))
    harness.commit(replace(first), epoch=1)
    harness.check_done()
    assert harness.truth["a.jpg"].epoch == 2
    harness.finish()


def test_failure_of_work_that_succeeded_is_dropped_in_any_order(root: Path) -> None:
    for number, fails in enumerate(([True, False], [False, True])):
        for compacts in (True, False):
            harness = Harness(root / f"{number}{compacts}")
            for fail in fails:
                harness.commit(harness.result("a.jpg", fails=fail))
                if compacts:
                    harness.compact()
            harness.finish()
            assert harness.truth["a.jpg"].status == "ok"


def test_worker_of_an_earlier_run_does_not_bring_the_old_photo_back(root: Path) -> None:
    harness = Harness(root)
    old = harness.result("a.jpg")
    harness.commit(old)
    harness.compact()
    harness.start_run()
    harness.versions["a.jpg"] += 1
    harness.commit(harness.result("a.jpg"))
    harness.compact()
    harness.commit(replace(old), epoch=1)
    harness.finish()
    assert harness.truth["a.jpg"].work_key != old.work_key


def test_file_is_durable_before_its_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened = []
    real_fsync = os.fsync

    def fsync(descriptor: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        happened.append(f"fsync {kind}")
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    storage = LocalStorage(tmp_path)
    storage.write("results/part-000001.parquet", b"first")
    happened.clear()
    rename = storage._rename
    monkeypatch.setattr(
        storage,
        "_rename",
        lambda source, target: (happened.append("rename"), rename(source, target)),
    )
    storage.write("results/part-000001.parquet", b"second")
    assert happened == ["fsync file", "rename", "fsync folder"]
