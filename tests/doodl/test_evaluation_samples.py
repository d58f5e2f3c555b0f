"""Samples from captions: drawn by seed, told apart by class, compared like with like."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from doodl.backbones import load_backbone
from doodl.errors import DoodlError
from doodl.evaluation.cases import Source
from doodl.evaluation.generated import (
    CAPTIONS,
    SampleSpec,
    class_of,
    distance_table,
    draw_samples,
)
from doodl.evaluation.samplers import SamplersSpec, run_samplers, write_samplers
from doodl.evaluation.samples import run_samples, write_samples
from doodl.pocket import weights_dir
from doodl.pocket.training.captions import FLOWERS
from tests.photos import jpeg

SMALL = SampleSpec(captions=CAPTIONS[:2], number=2, num_inference_steps=4, size_px=64)


@pytest.fixture(scope="module")
def backbone():
    torch.set_num_threads(1)
    return load_backbone(weights_dir() / "pipeline")


def noise(backbone, seed=0):
    shape = (1, backbone.latent_channels, 8, 8)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sampler", ["ddim", "edict", "belm"])
def test_sample_follows_noise_caption_and_guidance_and_nothing_else(backbone, sampler):
    spec = replace(SMALL, sampler=sampler)

    def draw(caption=CAPTIONS[0], seed=0, **options):
        return draw_samples(backbone, [caption], noise(backbone, seed), replace(spec, **options))

    image = draw()
    assert image.shape == (1, 3, 64, 64)
    assert 0 <= image.min() <= image.max() <= 1
    assert torch.equal(image, draw())
    for other in (draw(CAPTIONS[3]), draw(seed=1), draw(guidance_scale=1.0)):
        assert (image - other).abs().mean() > 1e-3


def test_class_is_the_flower_that_a_caption_names():
    assert [class_of(caption) for caption in CAPTIONS] == list(FLOWERS)
    assert class_of("Sunflowers, at noon") == "sunflowers"
    assert class_of("a photo of a house") is None
    assert class_of("primroses") is None


def test_distance_has_a_floor_and_the_same_number_of_pictures_everywhere():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(60, 5))
    table = distance_table(
        real,
        real + 0.3,
        {"same": rng.normal(size=(200, 5)), "other": rng.normal(2.0, 1.0, size=(40, 5))},
        seed=0,
    )
    distances = {value["set"]: value["mean"] for value in table.values}
    floor, shifted = (distances[value["set"]] for value in table.values[:2])
    assert {value["count"] for value in table.values} == {30}
    assert distances["same"] == pytest.approx(floor, rel=0.5)
    # Two independent halves moved apart by 0.3 in each of five dimensions.
    assert shifted - floor == pytest.approx(5 * 0.09, rel=0.5)
    assert distances["other"] > 10 * floor


def test_too_few_photos_for_a_distance_is_an_error():
    with pytest.raises(DoodlError, match="at least 4 photos"):
        distance_table(np.zeros((3, 2)), np.zeros((3, 2)), {"a": np.zeros((9, 2))}, seed=0)


def test_samples_run_writes_tables_pictures_and_a_sheet(tmp_path):
    kinds = list(FLOWERS)
    photos = [Source(f"p{i}", kinds[i % 5], partial(jpeg, i)) for i in range(6)]
    photos.append(Source("bad.jpg", "", bytes))
    report = run_samples(photos, SMALL, lambda text: None)
    assert [name for name, _ in report.unreadable] == ["bad.jpg"]
    sheets = write_samples(report, tmp_path, "doodl-batch evaluate samples x")
    assert len(list((tmp_path / "samples").iterdir())) == 4
    assert [path.name for path in sheets] == ["samples-01.png"]
    text = (tmp_path / "samples.md").read_text()
    assert "zero-shot class" in text
    assert text.count("doodl-batch evaluate samples x") == len(report.tables) == 2
    shares = {value["class"]: value["samples"] for value in report.tables[1].values}
    assert shares["all"]["count"] == 4
    assert shares["tulips"] is None


@pytest.mark.parametrize(
    ("options", "word"), [({"size_px": 100}, "multiple of 16"), ({"num_inference_steps": 3}, "3")]
)
def test_what_the_model_cannot_draw_is_said_before_it_is_tried(options, word):
    with pytest.raises(DoodlError, match=word):
        run_samples([], replace(SMALL, **options), lambda text: None)


def test_samplers_are_compared_on_the_same_noise_with_edict_of_the_most_steps(tmp_path):
    photos = [Source(f"p{i}", "", partial(jpeg, i)) for i in range(6)]
    spec = SamplersSpec(replace(SMALL, number=1), ("belm", "edict"), (4, 8))
    report = run_samplers(photos, spec, lambda text: None)
    assert [one.name for one in report.drawn] == [
        "belm, 4 steps", "belm, 8 steps", "edict, 4 steps", "edict, 8 steps",
    ]  # fmt: skip
    values = {value["set"]: value for value in report.tables[0].values}
    assert values["other held-out photos"]["distance"]["mean"] > 0
    assert "cosine" not in values["edict, 8 steps"]
    rows = [r for r in report.rows if (r["sampler"], r["num_inference_steps"]) == ("belm", 8)]
    mean = sum(row["rms"] for row in rows) / len(rows)
    assert values["belm, 8 steps"]["rms"]["mean"] == pytest.approx(100 * mean)
    assert mean > 1e-3
    itself = [r for r in report.rows if (r["sampler"], r["num_inference_steps"]) == ("edict", 8)]
    assert max(row["rms"] for row in itself) == 0
    # Guidance by the caption doubles a step's calls; the last step leaves the latents as they are.
    calls = {name: value.get("unet_calls") for name, value in values.items()}
    assert calls["edict, 8 steps"] == 2 * calls["belm, 8 steps"] > calls["edict, 4 steps"]
    sheets = write_samplers(report, tmp_path, "the command")
    assert [path.name for path in sheets] == ["samplers-01.png"]
    assert len(list((tmp_path / "samples").iterdir())) == 8
    text = (tmp_path / "samples.md").read_text()
    assert "the command" in text
    assert report.revisions["model"] in text
    assert "](plots/samplers.svg)" in text


def test_reference_is_drawn_even_if_nobody_asked_for_it():
    spec = SamplersSpec(SMALL, ("ddim",), (4, 8))
    assert [(run.sampler, run.num_inference_steps) for run in spec.runs] == [
        ("ddim", 4), ("ddim", 8), ("edict", 8),
    ]  # fmt: skip


def test_sampler_must_be_known():
    with pytest.raises(ValueError, match="euler"):
        SampleSpec(sampler="euler")
