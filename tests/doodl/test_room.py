"""How many photos fit: by what is measured of one, and never more than memory holds."""

from dataclasses import replace

import pytest
import torch

from doodl.editing.editor import PhotoEditor, load_editor
from doodl.editing.objective import Aim
from doodl.editing.requests import EditRequest
from doodl.engine import room
from doodl.engine.room import MARGIN, FittingRoom, available_bytes, free_bytes, photo_bytes
from doodl.engine.stream import Arrival
from doodl.images import decode_photo
from doodl.recipes.presets import preset
from tests.photos import jpeg

CONFIG = replace(
    preset("pocket"),
    working_px=64,
    num_crops=1,
    sampler=replace(preset("pocket").sampler, memory="checkpoint"),
)


@pytest.fixture(scope="module")
def editor():
    torch.set_num_threads(1)
    return load_editor("pocket", CONFIG)


def arrival(editor, place=0, size=(96, 96)):
    photo = decode_photo(jpeg(place, size))
    return Arrival(place, EditRequest(photo, Aim("up"), seed=place), editor.view(photo))


def with_memory(editor, memory, **sampler):
    config = replace(CONFIG, sampler=replace(CONFIG.sampler, memory=memory, **sampler))
    return PhotoEditor(editor.backbone, editor.guide, editor.judge, config)


def peak_bytes(editor, count):
    """The peak of live tensors of one iteration of so many photos."""
    slots = editor.begin([arrival(editor, place) for place in range(count)])
    way, problem = editor.together(slots)
    with torch.profiler.profile(profile_memory=True) as profile:
        way.advance(slots, problem)
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def test_a_photo_more_takes_what_was_measured_of_one(editor):
    peaks = {count: peak_bytes(editor, count) for count in (1, 3)}
    each = (peaks[3] - peaks[1]) / 2
    said = photo_bytes(editor, arrival(editor))
    assert each <= MARGIN * said
    assert peaks[1] <= MARGIN * said
    assert each >= said / 4  # nor are places left empty for nothing


def test_a_recipe_that_keeps_every_call_takes_more(editor):
    photo = arrival(editor)
    one, larger = (photo_bytes(editor, a) for a in (photo, arrival(editor, size=(96, 192))))
    assert one < larger < 3 * one
    full, calls = {}, {}
    for steps in (10, 20):
        kept = with_memory(editor, "full", num_inference_steps=steps)
        full[steps] = photo_bytes(kept, photo)
        calls[steps] = 2 * int(editor.backbone.schedule(steps, 0.5).noise_calls.sum())
    call = (full[20] - full[10]) / (calls[20] - calls[10])
    assert 0 < call <= one
    assert full[10] > calls[10] * call


def test_room_is_what_is_free_over_what_one_takes_within_its_bounds(editor, monkeypatch):
    measured = []
    monkeypatch.setattr(
        room, "photo_bytes", lambda editor, arrival: measured.append(arrival) or 1000
    )
    photo = arrival(editor)
    wide = arrival(editor, size=(96, 192))
    fitting = FittingRoom(editor, int(1000 * MARGIN * 5.5), limit=8)
    assert fitting.latest == 1
    assert [fitting(photo), fitting(wide), fitting(photo)] == [5, 5, 5]
    assert fitting.latest == 5
    assert len(measured) == 2  # a frame's size once
    assert FittingRoom(editor, 10**9, limit=8)(photo) == 8
    assert FittingRoom(editor, 0, limit=8)(photo) == 1
    # A budget of kept activations is taken off once, whatever the photos at work.
    budget = with_memory(editor, "budget:1KiB")
    assert FittingRoom(budget, 1024 + int(1000 * MARGIN * 3), limit=8)(photo) == 3


def test_a_stream_takes_as_many_as_fit(editor, monkeypatch):
    at_work, together = [], editor.together
    monkeypatch.setattr(
        editor, "together", lambda slots: at_work.append(len(slots)) or together(slots)
    )
    monkeypatch.setattr(
        editor,
        "config",
        replace(CONFIG, optimiser=replace(CONFIG.optimiser, num_optim_steps=0, min_optim_steps=0)),
    )
    one = photo_bytes(editor, arrival(editor))
    at_work.clear()
    requests = (arrival(editor, place).request for place in range(3))
    fitting = FittingRoom(editor, int(2.5 * MARGIN * one), limit=8)
    assert len(dict(editor.stream(requests, fitting))) == 3
    assert at_work == [1, 2, 1]  # measured on one, then two, and the one that is left


def test_free_memory_is_the_smaller_of_the_machines_and_the_containers(tmp_path):
    memory, old, new = tmp_path / "meminfo", tmp_path / "v1", tmp_path / "v2"
    assert available_bytes(memory, (old, new)) == 0  # nobody knows
    memory.write_text("MemTotal: 9000 kB\nMemAvailable:    4000 kB\n")
    assert available_bytes(memory, (old, new)) == 4000 * 1024
    for folder, limit, used, bytes_ in (
        (new, "memory.max", "memory.current", "max"),
        (old, "memory.limit_in_bytes", "memory.usage_in_bytes", "3000000"),
    ):
        folder.mkdir()
        (folder / limit).write_text(f"{bytes_}\n")
        (folder / used).write_text("1000000\n")
    assert available_bytes(memory, (new,)) == 4000 * 1024
    assert available_bytes(memory, (new, old)) == 2_000_000
    (old / "memory.usage_in_bytes").write_text("5000000\n")
    assert available_bytes(memory, (old,)) == 0
    memory.write_text("MemAvailable: much\n")
    assert available_bytes(memory, ()) == 0


def test_workers_share_the_machines_memory():
    cpu = torch.device("cpu")
    whole, half = free_bytes(cpu), free_bytes(cpu, share=0.5)
    assert 0 < half < 0.7 * whole
