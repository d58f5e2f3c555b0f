"""Workers that refill their batch: every row is committed once, whatever happens to another."""

import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from pipeline.errors import DiskFullError
from pipeline.feed import Feeder
from pipeline.plan import RunChoice
from pipeline.run import run_job
from pipeline.spec import JobSpec, make_spec
from pipeline.stages import CommitRows, DecodePhotos, RowProcessor
from tests.fakes import FakeEditor
from tests.photos import collection
from tests.pipeline.conftest import results, spec_of

PHOTOS = 6


class StreamingEditor(FakeEditor):
    """Holds `room` photos at a time and finishes the newest first."""

    most = 0

    def stream(self, requests, room, *, on_iteration=None):
        held, source = [], enumerate(requests)
        while True:
            while len(held) < room and (entry := next(source, None)) is not None:
                held.append(entry)
            if not held:
                return
            StreamingEditor.most = max(StreamingEditor.most, len(held))
            place, request = held.pop()
            yield place, self._edit(request)


def load_editor(model, config, *, device="cpu", software="doodl-batch"):
    StreamingEditor.most = 0
    return StreamingEditor(software)


@pytest.fixture
def photos(tmp_path):
    return collection(tmp_path / "photos", PHOTOS)


def streaming(photos, **options):
    spec = spec_of(photos, batch_size=2, **options)
    return type(spec).from_json(
        spec.to_json().replace("tests.fakes:load_editor", f"{__name__}:load_editor")
    )


def table(photos, tmp_path, **columns):
    uris = sorted(str(path) for path in Path(photos).rglob("*.jpg"))
    path = tmp_path / "rows.csv"
    pd.DataFrame({"image_uri": uris, **columns}).to_csv(path, index=False)
    return path


def test_a_worker_refills_its_batch_and_commits_every_row_once(photos, edits, monkeypatch):
    sizes, process = [], RowProcessor.__call__

    def noted(self, items):
        sizes.append(len(items))
        return process(self, items)

    monkeypatch.setattr(RowProcessor, "__call__", noted)
    spec = streaming(photos)
    summary = run_job(spec)
    assert summary.counts["ok"] == PHOTOS == edits() == len(results(spec))
    assert StreamingEditor.most == 2
    assert sizes == [3, 2, 1]  # half of what is left, and never less than a batch


def test_one_bad_photo_fails_alone_and_the_rest_goes_on(photos, tmp_path, monkeypatch):
    prompts = ["", "", "fail"] + [""] * (PHOTOS - 3)
    spec = streaming(table(photos, tmp_path, prompt=prompts))
    monkeypatch.setattr(Feeder, "_batch_size", lambda self, pool: PHOTOS)
    summary = run_job(spec)
    assert (summary.counts["ok"], summary.counts["failed"]) == (PHOTOS - 1, 1)
    failed = results(spec).query("status == 'failed'")
    assert "asked to fail" in failed["error_message"].item()


def test_a_photo_that_cannot_be_read_fails_alone(photos, monkeypatch):
    next(iter(sorted(Path(photos).rglob("*.jpg")))).write_bytes(b"no photo")
    monkeypatch.setattr(Feeder, "_batch_size", lambda self, pool: PHOTOS)
    counts = run_job(streaming(photos)).counts
    assert (counts["ok"], counts["failed"]) == (PHOTOS - 1, 1)


def test_an_output_that_takes_nothing_more_ends_the_stream(photos, monkeypatch):
    monkeypatch.setattr(Feeder, "_batch_size", lambda self, pool: PHOTOS)
    committed = []

    def full(self, item, done, times):
        committed.append(item.row_id)
        raise DiskFullError("no space left")

    monkeypatch.setattr("pipeline.stages.CommitRows.finished", full)
    summary = run_job(streaming(photos))
    assert summary.exit_code == 7
    assert len(committed) == 1
    assert summary.counts["pending"] == PHOTOS


def test_reading_and_committing_go_on_beside_the_batch(photos, monkeypatch):
    where = {"read": set(), "commit": set(), "checkpoint": set()}

    def noted(what, call):
        def wrapped(*arguments, **options):
            where[what].add(threading.current_thread().name.split("_")[0])
            return call(*arguments, **options)

        return wrapped

    for what, owner, name in (
        ("read", DecodePhotos, "__call__"),
        ("commit", CommitRows, "finished"),
        ("checkpoint", CommitRows, "load_checkpoint"),
    ):
        monkeypatch.setattr(owner, name, noted(what, getattr(owner, name)))
    monkeypatch.setattr(Feeder, "_batch_size", lambda self, pool: PHOTOS)
    spec = streaming(photos)
    assert run_job(spec).counts["ok"] == PHOTOS == len(results(spec))
    assert where == {
        "read": {"doodl-ahead"},
        "commit": {"doodl-behind"},
        "checkpoint": {threading.main_thread().name},
    }


@pytest.mark.parametrize("error", [ValueError("no such ink"), MemoryError()])
def test_an_error_of_one_delivery_is_charged_to_its_row_alone(photos, edits, monkeypatch, error):
    stream, given = StreamingEditor.stream, []

    def one_fails(self, requests, room, *, on_iteration=None):
        for place, result in stream(self, requests, room, on_iteration=on_iteration):
            given.append(place)
            yield place, error if len(given) == 3 else result

    monkeypatch.setattr(StreamingEditor, "stream", one_fails)
    monkeypatch.setattr(Feeder, "_batch_size", lambda self, pool: PHOTOS)
    counts = run_job(streaming(photos)).counts
    # What memory did not suffice for is tried again alone, and succeeds.
    failed = 0 if isinstance(error, MemoryError) else 1
    assert (counts["ok"], counts["failed"]) == (PHOTOS - failed, failed)


def test_a_batch_that_fails_loses_no_photo_that_was_read_ahead(photos, monkeypatch):
    stream, begun = StreamingEditor.stream, []

    def fails_once(self, requests, room, *, on_iteration=None):
        begun.append(None)
        for count, one in enumerate(stream(self, requests, room, on_iteration=on_iteration)):
            if len(begun) == 1 and count == 2:
                raise RuntimeError("the batch, not a photo")
            yield one

    monkeypatch.setattr(StreamingEditor, "stream", fails_once)
    monkeypatch.setattr(Feeder, "_batch_size", lambda self, pool: PHOTOS)
    spec = streaming(photos)
    assert run_job(spec).counts["ok"] == PHOTOS
    assert len(results(spec)) == PHOTOS
    assert len(begun) == 2


def test_an_editor_that_cannot_refill_gets_fixed_batches(photos, monkeypatch):
    taken, edit = [], FakeEditor.edit

    def noted(self, requests, *, on_iteration=None):
        taken.append(len(requests))
        return edit(self, requests, on_iteration=on_iteration)

    monkeypatch.setattr(FakeEditor, "edit", noted)
    monkeypatch.setattr(Feeder, "_batch_size", lambda self, pool: 5)
    assert run_job(spec_of(photos, batch_size=2)).counts["ok"] == PHOTOS
    assert Counter(taken) == Counter([2, 2, 1, 1])


@pytest.mark.parametrize(
    ("task", "batch_size", "left", "workers", "want"),
    [
        ("enhance", 1, 1000, 2, 1),  # nothing to refill
        ("generate", 4, 1000, 2, 4),  # it refills none
        ("enhance", 4, 1000, 2, 16),
        ("enhance", 4, 40, 2, 10),
        ("enhance", 4, 8, 2, 4),
        ("enhance", 4, 0, 2, 4),  # nobody knows
        # Memory says how many: as if it held the most it ever does.
        ("enhance", 0, 1000, 2, 128),
        ("enhance", 0, 40, 2, 20),
        ("enhance", 0, 8, 1, 8),
        ("enhance", 0, 0, 2, 1),
    ],
)
def test_workers_get_shares_that_let_them_end_together(task, batch_size, left, workers, want):
    spec = SimpleNamespace(task=task, batch_size=batch_size)
    feeder = Feeder(spec, None, None, None, None, None)
    feeder._left = left
    assert feeder._batch_size(SimpleNamespace(num_workers=workers)) == want


def test_memory_says_how_many_and_the_job_is_the_same_job(photos, tmp_path, monkeypatch):
    asked, told, process = [], [], RowProcessor.__call__
    monkeypatch.setattr(
        "doodl.engine.room.photo_bytes",
        lambda editor, arrival: asked.append(arrival.view.shape) or 1,
    )

    def noted(self, items):
        outcomes = process(self, items)
        told.extend(outcome.together for outcome in outcomes)
        return outcomes

    monkeypatch.setattr(RowProcessor, "__call__", noted)
    overrides = {"working_px": 64, "num_crops": 0, "optimiser.num_optim_steps": 0}
    options = {"runner": "inline", "overrides": overrides}
    spec = make_spec(photos, tmp_path / "out", batch_size=0, **options)
    assert run_job(spec, RunChoice(limit=3)).computed == 3
    assert len(asked) == len(set(asked)) > 0
    assert told == [3, 3, 3]
    alone = make_spec(photos, tmp_path / "out", batch_size=1, **options)
    assert spec.params() == alone.params()
    assert JobSpec.from_json(spec.to_json()).batch_size == 0


@pytest.mark.parametrize(
    ("task", "size", "words"), [("generate", 0, "give generate a number"), ("enhance", -1, "fit")]
)
def test_batch_sizes_that_make_no_sense_are_refused(task, size, words):
    with pytest.raises(ValueError, match=words):
        JobSpec("photos", "out", task=task, batch_size=size)
