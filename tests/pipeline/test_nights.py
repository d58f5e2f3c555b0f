"""Night after night on the same collection: what is read again, computed again, or left alone."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from manifests import inline
from manifests.commits import OutputFolder
from pipeline.feed import Feeder
from pipeline.inputs import load_input
from pipeline.observers import Broadcast, Silent
from pipeline.outcomes import Outcome
from pipeline.plan import RunChoice, make_plan, work_items
from pipeline.pools import Completion
from pipeline.run import run_job
from pipeline.signals import StopRequest
from tests.photos import collection, jpeg
from tests.pipeline.conftest import results, spec_of


@pytest.fixture
def photos(tmp_path):
    """Four photos of long ago: a young one is read again, its clock being too coarse to trust."""
    folder = collection(tmp_path / "photos", 4)
    for path in folder.rglob("*.jpg"):
        os.utime(path, (1e9, 1e9))
    return folder


@pytest.fixture
def no_worker(monkeypatch):
    """From here on a run that starts a worker fails the test."""

    def start():
        monkeypatch.setattr(
            "pipeline.run._Run._open_pool", lambda *_: pytest.fail("a worker was started")
        )

    return start


@pytest.fixture
def reads(monkeypatch):
    """The photos whose bytes were read to hash them."""
    seen, real = [], inline.hash_file

    def noting(path, *arguments, **options):
        seen.append(Path(os.fsdecode(path)).name)
        return real(path, *arguments, **options)

    monkeypatch.setattr(inline, "hash_file", noting)
    return seen


def test_an_unchanged_night_starts_no_worker_and_reads_no_photo(photos, no_worker, reads):
    spec = spec_of(photos)
    run_job(spec)
    assert len(reads) == 4
    reads.clear()
    no_worker()
    summary = run_job(spec)
    assert (summary.exit_code, summary.computed, summary.copied) == (0, 0, 0)
    assert reads == []


def test_a_touched_photo_is_read_again_and_not_computed(photos, no_worker, reads):
    spec = spec_of(photos)
    run_job(spec)
    reads.clear()
    os.utime(photos / "p000.jpg", ns=(1, 1))
    no_worker()
    assert run_job(spec).exit_code == 0
    assert reads == ["p000.jpg"]


def test_a_photo_deleted_at_the_source_keeps_its_result_and_starts_no_worker(photos, no_worker):
    spec = spec_of(photos)
    run_job(spec)
    before = results(spec)
    (photos / "p000.jpg").unlink()
    no_worker()
    summary = run_job(spec)
    assert (summary.exit_code, summary.computed) == (0, 0)
    assert results(spec).equals(before)
    assert (Path(spec.out) / "edited" / "p000.jpg").is_file()


def test_only_the_new_photo_of_a_night_is_read_and_computed(photos, reads, edits):
    spec = spec_of(photos)
    run_job(spec)
    reads.clear()
    (photos / "new.jpg").write_bytes(jpeg(70))
    assert run_job(spec).computed == 1
    assert (reads, edits()) == (["new.jpg"], 5)


class DyingPool:
    """One worker that dies of every batch, a second after it got it."""

    def __init__(self, clock, **facts):
        self.clock, self.items, self.facts = clock, (), facts

    def has_room(self):
        return not self.items

    @property
    def in_flight(self):
        return bool(self.items)

    def submit(self, items):
        self.items = tuple(items)

    def wait(self, timeout_seconds):
        self.clock.now += 1.0
        items, self.items = self.items, ()
        return [Completion(items, worker_died="killed", **self.facts)]


def test_the_gpu_hours_of_workers_that_died_count_for_the_bound(photos, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("pipeline.feed.time", SimpleNamespace(monotonic=lambda: clock.now))
    spec = spec_of(photos, max_attempts=100, breaker=0)
    attempts = []
    plan = make_plan(spec, RunChoice(), OutputFolder(spec.out), load_input(spec.photos))
    ledger = SimpleNamespace(append=lambda **facts: attempts.append(facts["worker_seconds"]))
    told, events = Broadcast(Silent()), []
    told.recorders.append(
        SimpleNamespace(event=lambda name, **facts: events.append(name), load=lambda number: None)
    )
    bound = RunChoice(max_gpu_hours=3.5 / 3600)
    feeder = Feeder(spec, bound, None, ledger, told, StopRequest())
    feeder.feed(DyingPool(clock), work_items(plan.to_compute()), lambda: None)
    assert feeder.bound_reached
    assert attempts == [1.0, 1.0, 1.0, 1.0]
    assert events == ["worker_died"] * 4


class LosingPool(DyingPool):
    """One whose Ray is lost so many times, then whose worker does what it is given."""

    num_workers = 1

    def __init__(self, losses, **facts):
        super().__init__(SimpleNamespace(now=0.0), **facts)
        self.losses, self.batches = losses, []

    def submit(self, items):
        super().submit(items)
        self.batches.append([(item.row_id, item.attempt) for item in items])

    def wait(self, timeout_seconds):
        if len(self.batches) <= self.losses:
            return super().wait(timeout_seconds)
        items, self.items = self.items, ()
        return [Completion(items, tuple(Outcome(i.row_id, i.work_key, "ok") for i in items))]


def fed(photos, pool, **options):
    """Feed the photos to a pool; return the feeder."""
    spec = spec_of(photos, **options)
    plan = make_plan(spec, RunChoice(), OutputFolder(spec.out), load_input(spec.photos))
    ledger = SimpleNamespace(append=lambda **facts: None)
    feeder = Feeder(spec, RunChoice(), None, ledger, Broadcast(Silent()), StopRequest())
    feeder.feed(pool, work_items(plan.to_compute()), lambda: None, 4)
    return feeder


@pytest.mark.parametrize("losses", [1, 3])
def test_no_photo_is_charged_for_a_ray_that_was_lost(photos, losses):
    pool = LosingPool(losses, charged=False)
    feeder = fed(photos, pool, batch_size=1, max_attempts=1)
    assert feeder.statuses == {"ok": 4}
    assert pool.batches[: losses + 1] == [pool.batches[0]] * (losses + 1)
    assert {attempt for batch in pool.batches for _, attempt in batch} == {1}


def test_a_batch_whose_ray_was_lost_stays_one_batch(photos):
    pool = LosingPool(2, charged=False)
    assert fed(photos, pool, batch_size=4, max_attempts=1).statuses == {"ok": 4}
    assert [len(batch) for batch in pool.batches] == [4, 4, 4]


def test_a_photo_that_is_tried_alone_is_tried_alone_after_a_loss(photos):
    """Its batch died of one of its photos: which one is not known, and a lost Ray tells nothing."""
    pool = LosingPool(3)
    pool.wait = _losing_the_second_of_three(pool)
    assert fed(photos, pool, batch_size=4).statuses == {"ok": 4}
    assert [len(batch) for batch in pool.batches] == [4, 1, 1, 1, 1, 1]
    assert {attempt for batch in pool.batches for _, attempt in batch} == {1}


def _losing_the_second_of_three(pool):
    real = pool.wait

    def wait(timeout_seconds):
        pool.losses = 2
        pool.facts = {"charged": len(pool.batches) != 2}
        return real(timeout_seconds)

    return wait
