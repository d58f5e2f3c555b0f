"""Continuous batching: who is at work when, and that it changes nobody's result."""

import threading
import time
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from doodl.editing.editor import load_editor
from doodl.editing.methods import Slot
from doodl.editing.objective import Aim
from doodl.editing.requests import EditRequest
from doodl.engine.checkpoints import state_to_bytes
from doodl.engine.stream import edit_continuously
from doodl.errors import InversionError
from doodl.images import decode_photo
from doodl.optimise import LatentState
from doodl.recipes.presets import preset
from tests.photos import jpeg


@dataclass
class Asked:
    """A photo that takes so many iterations; `photo` is its frame's side."""

    iterations: int
    photo: int = 1
    fails: bool = False


class ToyWay:
    joins, inverts = True, True

    def __init__(self, log):
        self.log = log

    def advance(self, slots, problem):
        assert [slot.place for slot in slots] == problem.places
        assert len({slot.view.shape for slot in slots}) == 1
        self.log.append([slot.place for slot in slots])
        for slot in slots:
            slot.state.iteration += 1
            if slot.state.iteration >= slot.request.iterations:
                slot.state.stop_reason = "steps"

    def render(self, slots, problem):
        assert [slot.place for slot in slots] == problem.places
        return torch.tensor([float(place) for place in problem.places])


@dataclass
class ToyProblem:
    places: list

    def keep(self, indices):
        return ToyProblem([self.places[i] for i in indices])


class ToyEditor:
    def __init__(self, joins=True):
        self.log, self.way = [], ToyWay([])
        self.way.joins = joins

    def view(self, photo):
        return torch.zeros(1, 3, photo, photo)

    def begin(self, arrivals):
        return [
            InversionError("no")
            if a.request.fails
            else Slot(a.place, a.request, a.view, a.view, LatentState.start(*torch.zeros(2, 1), 0))
            for a in arrivals
        ]

    def together(self, slots):
        return self.way, ToyProblem([slot.place for slot in slots])

    def finished(self, slot, image):
        assert image.item() == slot.place
        return slot.state.iteration


def run(asked, room, *, joins=True, on_iteration=None, overlap=True):
    editor = ToyEditor(joins)
    results = dict(edit_continuously(editor, iter(asked), room, on_iteration, overlap=overlap))
    assert set(results) == set(range(len(asked)))
    for place, request in enumerate(asked):
        wanted = InversionError if request.fails else int
        assert isinstance(results[place], wanted)
        assert request.fails or results[place] == request.iterations
    return editor.way.log


@pytest.mark.parametrize("overlap", [True, False])
def test_a_photo_that_is_done_gives_its_place_to_the_next(overlap):
    log = run([Asked(3), Asked(1), Asked(1), Asked(2)], 2, overlap=overlap)
    assert log == [[0, 1], [0, 2], [0, 3], [3]]


def test_a_fixed_batch_of_the_same_photos_takes_more_iterations():
    asked = [Asked(n) for n in (9, 1, 1, 1, 1, 1, 1, 1)]
    assert len(run(asked, 2)) == 9
    assert len(run(asked, 2, joins=False)) == 9 + 1 + 1 + 1


def test_photos_of_another_size_wait_until_those_at_work_are_done():
    log = run([Asked(2), Asked(1, photo=2), Asked(1), Asked(1, photo=2)], 2)
    assert log == [[0, 2], [0], [1, 3]]


def test_a_method_that_keeps_step_starts_the_next_batch_when_this_one_is_done():
    log = run([Asked(2), Asked(1), Asked(1)], 2, joins=False)
    assert log == [[0, 1], [0], [2]]


@pytest.mark.parametrize("room", [1, 2, 5])
def test_photos_that_cannot_begin_leave_the_others_alone(room):
    run([Asked(1, fails=True), Asked(2), Asked(1, fails=True), Asked(1, photo=3), Asked(3)], room)
    run([Asked(1, fails=True), Asked(1, fails=True)], room)
    run([], room)


def test_no_more_photos_are_asked_for_than_there_is_room_to_hold():
    held = []

    def requests():
        for n in range(12):
            held.append(n)
            # All but the first are of another size: they wait.
            yield Asked(30 if n == 0 else 1, photo=1 if n == 0 else 2)

    editor = ToyEditor()
    first = next(edit_continuously(editor, requests(), 3, None))
    assert first[0] == 0
    assert len(held) == 1 + 3


def test_a_frames_size_says_how_many_there_is_room_for():
    asked = [Asked(2, photo=n) for n in (2, 1, 1, 2, 1, 2, 1)]
    log = run(asked, lambda arrival: {1: 3, 2: 1}[arrival.view.shape[-1]])
    assert [len(places) for places in log] == [1, 1, 3, 3, 1, 1, 1, 1, 1, 1]


def test_a_photo_is_delivered_while_the_others_go_on():
    gone_on, editor = threading.Event(), ToyEditor()

    def finished(slot, image):
        assert slot.place == 1 or gone_on.is_set()
        return gone_on.wait(30)

    editor.finished = finished
    stream = edit_continuously(
        editor,
        [Asked(5), Asked(1)],
        2,
        lambda place, state: gone_on.set() if state.iteration == 4 else None,
    )
    assert dict(stream) == {0: True, 1: True}


@pytest.mark.parametrize("overlap", [True, False])
def test_what_goes_wrong_in_a_delivery_is_its_photos_own(overlap):
    editor = ToyEditor()

    def finished(slot, image):
        if slot.place == 1:
            raise OSError("full")
        return slot.place

    editor.finished = finished
    asked = [Asked(n) for n in (3, 1, 2, 1)]
    results = dict(edit_continuously(editor, asked, 2, None, overlap=overlap))
    assert isinstance(results.pop(1), OSError)
    assert results == {0: 0, 2: 2, 3: 3}


def test_slow_deliveries_hold_no_more_photos_than_there_is_room_for_twice():
    editor, asked_for, held = ToyEditor(), [], []

    def requests():
        for place in range(12):
            asked_for.append(place)
            yield Asked(1)

    def finished(slot, image):
        time.sleep(0.01)
        held.append(len(asked_for) - len(held))
        return slot.place

    editor.finished = finished
    assert sorted(place for place, _ in edit_continuously(editor, requests(), 3, None)) == list(
        range(12)
    )
    assert max(held) <= 6


@pytest.mark.parametrize("left_early", [True, False])
def test_nothing_hangs_or_runs_on_once_the_stream_has_ended(left_early):
    editor, release = ToyEditor(), threading.Event()
    editor.finished = lambda slot, image: release.wait(30) and slot.place

    def on_iteration(place, state):
        if state.iteration == 3:
            release.set()
            if not left_early:
                raise RuntimeError("no more")

    stream = edit_continuously(editor, [Asked(1), Asked(9), Asked(9)], 2, on_iteration)
    if left_early:
        assert next(stream) == (0, 0)
        stream.close()
    else:
        with pytest.raises(RuntimeError, match="no more"):
            list(stream)
    assert not [t for t in threading.enumerate() if t.name.startswith("doodl-")]


def test_each_iteration_is_told_with_the_photos_own_place():
    told = []
    run([Asked(1), Asked(2), Asked(1)], 2, on_iteration=lambda i, s: told.append((i, s.iteration)))
    assert told == [(0, 1), (1, 1), (1, 2), (2, 1)]


SHORT = replace(
    preset("pocket"),
    working_px=64,
    num_crops=1,
    stop_score=None,
    optimiser=replace(preset("pocket").optimiser, num_optim_steps=3),
)


def request(seed, size=(96, 96), **options):
    return EditRequest(decode_photo(jpeg(seed, size)), Aim("up"), seed=seed, **options)


def test_results_are_the_same_whoever_came_and_went(monkeypatch):
    torch.set_num_threads(1)
    editor = load_editor("pocket", SHORT)
    saved = {}
    editor.edit(
        [request(2)],
        on_iteration=lambda _, s: saved.setdefault(s.iteration, state_to_bytes(s)),
    )
    # The second is two iterations ahead, so that the places change hands at different times.
    requests = [
        request(1),
        request(2, checkpoint=saved[2]),
        request(3, prompt="a rose"),
        request(4, size=(96, 128)),
    ]
    at_work, together = [], editor.together

    def noted(slots):
        at_work.append([slot.place for slot in slots])
        return together(slots)

    monkeypatch.setattr(editor, "together", noted)
    results = dict(editor.stream(iter(requests), 2))
    assert at_work == [[0, 1], [0, 2], [3]]
    plain = dict(editor.stream(iter(requests), 2, overlap=False))
    for place, asked in enumerate(requests):
        in_turn = plain[place]
        assert results[place].loss_curve == in_turn.loss_curve
        assert results[place].score_after == in_turn.score_after
        assert np.array_equal(*(decode_photo(r[place].encoded).pixels for r in (results, plain)))
        (alone,) = editor.edit([asked])
        assert results[place].loss_curve == pytest.approx(alone.loss_curve, abs=1e-3)
        assert results[place].score_after == pytest.approx(alone.score_after, abs=1e-3)
        got, want = (decode_photo(r.encoded).pixels.astype(int) for r in (results[place], alone))
        assert np.abs(got - want).mean() < 0.05
