"""Guided generation evaluated: resumable, judged by others, against the unguided picture."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from doodl.errors import DoodlError
from doodl.evaluation.cases import Source
from doodl.evaluation.guided.measures import Measure
from doodl.evaluation.guided.one_step import sample_one_step
from doodl.evaluation.guided.output import write_guided
from doodl.evaluation.guided.run import run_guided
from doodl.evaluation.guided.spec import (
    GuidedSpec,
    Item,
    class_items,
    read_prompts,
    subject_items,
)
from doodl.evaluation.guided.work import _loaded, _request
from doodl.recipes.presets import preset
from tests.photos import jpeg

MEASURES = ("pocket-judge", "pocket-referee")


class Silent:
    def __init__(self):
        self.rows, self.messages = [], []

    def start(self, total):
        self.total = total

    def row(self, row_id, status, detail):
        self.rows.append((row_id, status, detail))

    def message(self, text):
        self.messages.append(text)


ITEMS = (Item("a photo of roses"), Item("a photo of tulips"))


def spec(task="text", items=ITEMS, **options):
    name = {"text": "text", "classes": "classifier", "personalize": "personalize"}.get(task, task)
    config = preset(f"pocket-{name}")
    config = replace(
        config,
        sampler=replace(config.sampler, num_inference_steps=4),
        optimiser=replace(config.optimiser, num_optim_steps=2),
        num_crops=1,
    )
    defaults = {"seeds": 1, "size_px": 64, "validation": 2}
    return GuidedSpec(task=task, items=items, config=config, **{**defaults, **options})


SHORT = spec().config  # of fewer steps than optimise-at-15 leaves


def sources():
    return [Source(f"p{i}.jpg", label, partial(jpeg, i, (96, 96)))
            for i, label in enumerate(["roses", "roses", "tulips", "tulips"])]  # fmt: skip


def test_rows_are_of_every_item_seed_and_method_and_are_never_drawn_twice(tmp_path):
    torch.set_num_threads(1)
    first = run_guided(spec(), tmp_path, Silent())
    assert first.computed == 6
    assert [(r["item"], r["method"]) for r in first.rows] == [
        (item, method)
        for item in ("a photo of roses", "a photo of tulips")
        for method in ("original", "one-step", "doodl")
    ]
    again = run_guided(spec(), tmp_path, Silent())
    assert again.computed == 0
    assert again.rows == first.rows
    more = run_guided(spec(seeds=2), tmp_path, Silent())
    assert more.computed == 6


def test_rows_do_not_depend_on_the_batch(tmp_path):
    torch.set_num_threads(1)
    together = run_guided(spec(validation=0, methods=("doodl",)), tmp_path / "a", Silent()).rows
    alone = run_guided(
        spec(validation=0, methods=("doodl",), batch_size=1), tmp_path / "b", Silent()
    ).rows
    for a, b in zip(together, alone, strict=True):
        assert a["aim:pocket-judge"] == pytest.approx(b["aim:pocket-judge"], abs=1e-3)


def test_unguided_picture_is_the_original_of_the_same_seed(tmp_path):
    torch.set_num_threads(1)
    config = spec().config
    still = replace(config, optimiser=replace(config.optimiser, num_optim_steps=0))
    evaluation = run_guided(
        replace(spec(validation=0, methods=("original", "doodl")), config=still),
        tmp_path,
        Silent(),
    )
    by_method = {m: [r for r in evaluation.rows if r["method"] == m] for m in ("original", "doodl")}
    for plain, guided in zip(by_method["original"], by_method["doodl"], strict=True):
        assert guided["aim:pocket-judge"] == pytest.approx(plain["aim:pocket-judge"], abs=1e-5)
        assert guided["change"] == 0


@pytest.mark.parametrize("task", ["text", "classes", "personalize", "aesthetic"])
def test_task_writes_its_tables_rows_and_sheets(task, tmp_path):
    torch.set_num_threads(1)
    items = {
        "classes": class_items(["roses", "tulips"], "a photo of a flower"),
        "personalize": subject_items(sources()[::2], "a photo of a flower"),
    }.get(task, (Item("a photo of roses", "one"), Item("a photo of tulips", "two")))
    evaluation = run_guided(spec(task, items, seeds=2), tmp_path, Silent())
    assert set(evaluation.strengths) == {"one-step"}
    written = write_guided(evaluation, tmp_path, "the command", sources())
    titles = [table.title for table in written.tables]
    assert titles[:2] == [f"{task}: methods", f"{task}: picture by picture"]
    assert ("aesthetic: wins" in titles) == (task == "aesthetic")
    assert ("classes: distance to real photos" in titles) == (task == "classes")
    text = written.tables_path.read_text()
    assert "the command" in text
    assert all(measure in text for measure in MEASURES)
    assert all(path.is_file() for path in written.sheets)
    assert json.loads((tmp_path / "evaluation.json").read_text())["task"] == task
    assert f"](plots/{task}-methods.svg)" in text
    assert (tmp_path / "plots" / f"{task}-methods.svg").is_file()


def test_one_step_without_weight_is_the_plain_sample_and_with_it_lowers_the_loss():
    torch.set_num_threads(1)
    some = spec()
    generator = _loaded(some.model, some.config)
    requests = [_request(some, "one-step", draw) for draw in some.draws()]
    plain = sample_one_step(generator, requests, guidance=0.0)
    assert torch.allclose(plain.guided, plain.unguided, atol=1e-5)
    pushed = sample_one_step(generator, requests, guidance=4.0)
    assert torch.equal(pushed.unguided, plain.unguided)
    bound = generator.guidance(requests[0].guides).bind([r.guide_row for r in requests])
    assert (bound.value(pushed.guided) < bound.value(plain.guided)).all()


def test_hybrid_without_weight_is_the_plain_sample_and_with_it_lowers_the_loss():
    torch.set_num_threads(1)
    some = spec()
    generator = _loaded(some.model, some.config)
    requests = [_request(some, "hybrid", draw) for draw in some.draws()]
    plain = sample_one_step(generator, requests, guidance=0.0, whole_chain=True)
    assert torch.allclose(plain.guided, plain.unguided, atol=1e-5)
    pushed = sample_one_step(generator, requests, guidance=4.0, whole_chain=True)
    bound = generator.guidance(requests[0].guides).bind([r.guide_row for r in requests])
    assert (bound.value(pushed.guided) < bound.value(plain.guided)).all()
    one_step = sample_one_step(generator, requests, guidance=4.0)
    assert not torch.allclose(pushed.guided, one_step.guided, atol=1e-3)


def test_every_method_has_its_sampler_and_rivals_are_as_strong_as_doodl(tmp_path):
    torch.set_num_threads(1)
    methods = ("original", "original-belm", "one-step", "hybrid", "doodl", "doodl-belm")
    some = spec(items=ITEMS[:1], methods=methods, validation=1)
    evaluation = run_guided(some, tmp_path, Silent())
    assert [row["error"] for row in evaluation.rows if row["error"]] == []
    assert set(evaluation.strengths) == {"one-step", "hybrid", "doodl-belm"}
    assert len({found.target for found in evaluation.strengths.values()}) == 1
    for method, found in evaluation.strengths.items():
        assert {r["strength"] for r in evaluation.rows if r["method"] == method} == {found.value}
    written = write_guided(evaluation, tmp_path, "the command")
    table, *_, strengths = written.tables
    columns = dict(zip(table.columns, zip(*table.rows, strict=True), strict=True))
    assert columns["method"] == methods
    assert columns["sampler"] == ("edict", "belm", "ddim", "ddim", "edict", "belm")
    assert strengths.title == "text: equal strength"
    calls = {value["method"]: value["unet_calls"]["mean"] for value in table.values}
    assert calls["original-belm"] < 0.7 * calls["original"]
    assert calls["doodl-belm"] < 0.7 * calls["doodl"]
    assert run_guided(some, tmp_path, Silent()).computed == 0


def test_class_probability_is_the_softmax_over_the_classes_captions():
    torch.set_num_threads(1)
    labels = ("roses", "tulips", "daisy")
    measure = Measure("pocket-judge", labels)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = [measure("classes", Item("a photo", label=label), image, None) for label in labels]
    assert sum(f["aim"] for f in found) == pytest.approx(1, abs=1e-5)
    assert sum(f["right"] for f in found) == 1
    tower = measure.scorer.tower
    cosines = (tower(image) @ tower.embed_texts([f"a photo of {x}" for x in labels]).T)[0]
    assert int(np.argmax([f["aim"] for f in found])) == int(cosines.argmax())


def test_prompts_are_read_from_lines_and_from_drawbenchs_layout():
    assert [i.prompt for i in read_prompts("a red rose\n\n a tulip \n")] == [
        "a red rose",
        "a tulip",
    ]
    drawbench = 'Prompts,Category\n"A red car, parked",Colors\nA dog,Counting\n'
    assert [(i.prompt, i.category) for i in read_prompts(drawbench)] == [
        ("A red car, parked", "Colors"),
        ("A dog", "Counting"),
    ]
    assert [i.category for i in read_prompts("Category\tPrompts\nText\tA sign\n")] == ["Text"]
    with pytest.raises(DoodlError, match="no prompt"):
        read_prompts("\n")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"task": "speech"}, "must be one of"),
        ({"methods": ("magic",)}, "must be of"),
        ({"seeds": 0}, "at least 1"),
        ({"methods": ("optimise-at-15",), "config": SHORT}, "at most"),
        ({"items": ()}, "at least one"),
        ({"config": preset("pocket")}, "names no guide"),
    ],
)
def test_spec_that_makes_no_sense_is_refused(options, match):
    values = {"task": "text", "items": (Item("a"),), "config": preset("pocket-text"), **options}
    with pytest.raises(ValueError, match=match):
        GuidedSpec(**values)
