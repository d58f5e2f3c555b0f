"""Photos to latents files and back: exact on the pocket model, and hostile files refused."""

import json
import pickle
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save

from doodl.editing.inverter import InvertRequest, load_inverter
from doodl.editing.latent_files import FORMAT, LatentPair, latents_from_bytes, latents_to_bytes
from doodl.errors import LatentsError
from doodl.images import decode_photo
from doodl.measures.fidelity import psnr_db
from doodl.recipes.presets import preset
from tests.photos import jpeg

SHORT = replace(preset("pocket"), sampler=replace(preset("pocket").sampler, num_inference_steps=10))


@pytest.fixture(scope="module")
def inverter():
    torch.set_num_threads(1)
    return load_inverter("pocket", SHORT)


@pytest.fixture(scope="module")
def inverted(inverter):
    photos = [decode_photo(jpeg(seed, size)) for seed, size in ((0, (128, 160)), (1, (90, 90)))]
    return inverter.invert([InvertRequest(photo, "a rose") for photo in photos])


def test_the_way_there_and_back_loses_nothing_but_the_autoencoders_share(inverted):
    for result in inverted:
        assert result.inversion_error < 1e-4
        # The autoencoder's loss is most of it: what the noise adds is in the float's last bits.
        assert result.psnr_db == pytest.approx(result.autoencoder_psnr_db, abs=0.1)
    assert (inverted[0].width_px, inverted[0].height_px) == (160, 128)


def test_the_file_alone_brings_the_photo_back(inverter, inverted):
    for result in inverted:
        (restored,) = inverter.restore([result.latents])
        again, before = decode_photo(restored.encoded), decode_photo(result.encoded)
        assert psnr_db(again.pixels, before.pixels) > 50
        assert (restored.width_px, restored.prompt) == (result.width_px, "a rose")


def test_the_file_says_how_it_was_made(inverter, inverted):
    pair = latents_from_bytes(inverted[1].latents)
    assert (pair.model, pair.model_revision) == ("pocket", inverter.backbone.revision)
    assert (pair.num_inference_steps, pair.depth) == (10, 0.5)
    assert pair.mix_weight == SHORT.sampler.p
    assert pair.x.dtype == torch.float32


def test_another_models_file_is_refused_by_name(inverter, inverted):
    pair = latents_from_bytes(inverted[0].latents)
    (error,) = inverter.restore([latents_to_bytes(replace(pair, model="m", model_revision="r"))])
    assert isinstance(error, LatentsError)
    assert "made with model m r" in str(error)


def test_files_that_do_not_fit_the_model_are_refused(inverter, inverted):
    pair = latents_from_bytes(inverted[0].latents)
    wrong = [
        replace(pair, width_px=pair.width_px + 16),
        replace(pair, width_px=pair.width_px + 1),
        replace(pair, x=pair.x[:2], y=pair.y[:2]),
        replace(pair, num_inference_steps=7),
    ]
    for error in inverter.restore([latents_to_bytes(each) for each in wrong]):
        assert isinstance(error, LatentsError)


def pair_of(**options):
    values = {
        "x": torch.zeros(2, 3, 4), "y": torch.zeros(2, 3, 4), "model": "m", "model_revision": "r",
        "num_inference_steps": 10, "depth": 1.0, "mix_weight": 0.9, "guidance_scale": 1.0,
        "prompt": "", "width_px": 32, "height_px": 24,
    }  # fmt: skip
    return LatentPair(**{**values, **options})


def told(**options):
    """A file whose metadata says what `options` say instead."""
    pair = pair_of()
    values = {
        name: getattr(pair, name) for name in LatentPair.__dataclass_fields__ if len(name) > 1
    }
    return save(
        {"x_T": pair.x, "y_T": pair.y},
        {"format": FORMAT, "inversion": json.dumps({**values, **options})},
    )


def test_a_pair_survives_its_file():
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    pair = pair_of(x=x, y=2 * x, prompt="grüße", depth=0.5)
    again = latents_from_bytes(latents_to_bytes(pair))
    assert torch.equal(again.x, x)
    assert torch.equal(again.y, 2 * x)
    assert (again.prompt, again.depth) == ("grüße", 0.5)


GOOD = latents_to_bytes(pair_of())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no latents file"),
        (GOOD[:40], "no latents file"),
        (GOOD[:-4], "cannot be read"),
        (b"\xff" * 64, "header has"),
        (pickle.dumps({"x_T": 1}), "latents file"),
        (save({"x_T": torch.zeros(1)}), "no latents file"),
        (save({"x_T": torch.zeros(1)}, {"format": "other", "inversion": "{}"}), "its format"),
        (save({"x_T": torch.zeros(1)}, {"format": FORMAT, "inversion": "[]"}), "no JSON object"),
        (latents_to_bytes(pair_of(x=torch.full((2, 3, 4), float("nan")))), "not finite"),
        (latents_to_bytes(pair_of(x=torch.zeros(2, 3, 5))), "one shape"),
        (latents_to_bytes(pair_of(x=torch.zeros(3), y=torch.zeros(3))), "one shape"),
        (told(num_inference_steps=0), "num_inference_steps"),
        (told(num_inference_steps="10"), "num_inference_steps"),
        (told(num_inference_steps=True), "num_inference_steps"),
        (told(depth=2), "depth"),
        (told(mix_weight=float("nan")), "mix_weight"),
        (told(width_px=10**9), "width_px"),
        (told(width_px=16_000, height_px=16_000), "too large"),
        (told(prompt="x" * 20_000), "prompt"),
        (told(model=None), "model"),
    ],
)
def test_a_file_that_is_not_ours_is_one_clear_line(data, words):
    with pytest.raises(LatentsError, match=words) as refused:
        latents_from_bytes(data)
    assert "\n" not in str(refused.value)
