"""Continuous batching: photos that are done leave, and others take their places.

All photos at work share one frame size, and with it one shape of latents; those of other sizes
wait until the ones at work are done. Places change hands between iterations only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from doodl.editing.methods import Slot, Way
from doodl.editing.objective import EnhanceProblem
from doodl.engine.overlap import Behind
from doodl.errors import DoodlError
from doodl.optimise import LatentState

OnIteration = Callable[[int, LatentState], None]
"""Called with the request's place among all and its state, after each iteration."""


@dataclass(frozen=True, eq=False)
class Arrival:
    """A photo that waits for a place; `view` (1, 3, H, W) is the photo at the model's size."""

    place: int
    request: Any
    view: Tensor


Room = int | Callable[[Arrival], int]
"""Photos at work at one time, or how many of them where they are of the size of this one."""


class Editing(Protocol):
    """What the batch needs of an editor."""

    def view(self, photo: Any) -> Tensor:
        """Return the photo at the model's size, (1, 3, H, W)."""

    def begin(self, arrivals: Sequence[Arrival]) -> list[Slot | DoodlError]:
        """Return photos of one frame size at their start; an error for one that cannot."""

    def together(self, slots: Sequence[Slot]) -> tuple[Way, EnhanceProblem]:
        """Return the method and the objective of photos that share a batch."""

    def finished(self, slot: Slot, image: Tensor) -> Any:
        """Return the result of a photo that is done, or its error."""


def edit_continuously(
    editor: Editing,
    requests: Iterable[Any],
    room: Room,
    on_iteration: OnIteration | None,
    *,
    overlap: bool = True,
) -> Iterator[tuple[int, Any]]:
    """Yield (place, result or error) of each request as it is done, in no set order.

    An error is the photo's own: one that `editor.begin` or `editor.finished` gave back, or that
    `editor.finished` raised. What the work of several photos raises is raised.

    Args:
        requests: asked for the next one only when there is a place for it, or, as far as `room`
            goes, while those that came are of another frame size.
        room: photos at work at one time, at least 1: a number, or what says it of a photo whose
            frame's size the batch is to have.
        overlap: photos that are done are delivered in a thread, as many as there is room for,
            while the others go on; False delivers each before anything goes on.
    """
    deliveries: Behind[Any]
    with Behind(thread=overlap) as deliveries:
        for place, delivered in _edit(editor, requests, room, on_iteration, deliveries):
            error = delivered.exception()
            if error is not None and not isinstance(error, Exception):
                raise error
            yield place, delivered.result() if error is None else error


def _edit(
    editor: Editing,
    requests: Iterable[Any],
    room: Room,
    on_iteration: OnIteration | None,
    deliveries: Behind[Any],
) -> Iterator[tuple[int, Future[Any]]]:
    arrivals = _Arrivals(editor, requests, room)
    slots: list[Slot] = []
    way: Way | None = None
    problem: EnhanceProblem | None = None
    while True:
        yield from deliveries.ended()
        joining: list[Arrival] = []
        if way is None or not slots or way.joins:
            shape = slots[0].view.shape if slots else None
            joining = arrivals.take(len(slots), shape)
        if joining:
            for arrival, begun in zip(joining, editor.begin(joining), strict=True):
                if isinstance(begun, Slot):
                    slots.append(begun)
                else:
                    yield arrival.place, _known(begun)
            if slots:
                way, problem = editor.together(slots)
        if not slots:
            if joining:
                continue
            break
        assert way is not None
        assert problem is not None
        done = [i for i, slot in enumerate(slots) if slot.state.stop_reason is not None]
        if not done:
            way.advance(slots, problem)
            for slot in slots:
                if on_iteration is not None:
                    on_iteration(slot.place, slot.state)
            continue
        leaving = [slots[i] for i in done]
        images = way.render(leaving, problem.keep(done))
        going_on = [i for i, slot in enumerate(slots) if slot.state.stop_reason is None]
        slots = [slots[i] for i in going_on]
        if slots:
            problem = problem.keep(going_on)
        for slot, image in zip(leaving, images.split(1), strict=True):
            deliveries.begin(slot.place, editor.finished, slot, image)
            yield from deliveries.ended(left=arrivals.room)
        # Not to be held while the others go on: a photo may be large.
        del slot, leaving
    yield from deliveries.ended(left=0)


def _known(result: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(result)
    return future


class _Arrivals:
    """Requests in their order, but for those whose frame size is not the one at work.

    Attributes:
        room: photos of the frame size at work that may be at work at one time.
    """

    def __init__(self, editor: Editing, requests: Iterable[Any], room: Room) -> None:
        self.editor, self.room = editor, 1
        self._room_of = room
        self.source = enumerate(requests)
        self.waiting: deque[Arrival] = deque()

    def take(self, at_work: int, shape: Sequence[int] | None) -> list[Arrival]:
        """Return photos of one view shape, as many as there is room for; None: whatever is next."""
        taken: list[Arrival] = []
        while not shape or at_work + len(taken) < self.room:
            arrival = self._waiting(shape) or self._new(shape)
            if arrival is None:
                break
            if shape is None:
                shape = arrival.view.shape
                room = self._room_of
                self.room = room if isinstance(room, int) else room(arrival)
            taken.append(arrival)
        return taken

    def _waiting(self, shape: Sequence[int] | None) -> Arrival | None:
        for arrival in self.waiting:
            if shape is None or arrival.view.shape == shape:
                self.waiting.remove(arrival)
                return arrival
        return None

    def _new(self, shape: Sequence[int] | None) -> Arrival | None:
        while len(self.waiting) < self.room:
            place, request = next(self.source, (0, None))
            if request is None:
                return None
            arrival = Arrival(place, request, self.editor.view(request.photo))
            if shape is None or arrival.view.shape == shape:
                return arrival
            self.waiting.append(arrival)
        return None
