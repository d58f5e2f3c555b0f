"""Generation on the pocket model itself: exactness, independence of the batch, resume, errors."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from doodl.edict import generate
from doodl.engine.checkpoints import state_to_bytes
from doodl.errors import ModelError, RequestError
from doodl.generation import GenerateRequest, ImageGenerator, load_generator
from doodl.generation.pictures import encode_picture, viewed
from doodl.generation.safety import SafetyCheck, load_safety
from doodl.guidance.guidance import GuideRow
from doodl.guidance.spec import parse_guides
from doodl.images import decode_photo
from doodl.recipes.presets import preset

PRESET = preset("pocket-text")
SHORT = replace(
    PRESET,
    sampler=replace(PRESET.sampler, num_inference_steps=2, guidance_scale=1.0),
    optimiser=replace(PRESET.optimiser, num_optim_steps=2),
    num_crops=1,
)
SIZE = 64


@pytest.fixture(scope="module")
def generator():
    torch.set_num_threads(1)
    return load_generator("pocket", SHORT)


def with_config(generator, **sampler):
    """The same models under another sampler."""
    config = replace(SHORT, sampler=replace(SHORT.sampler, **sampler))
    return ImageGenerator(
        generator.backbone, config, generator.guidance, judge=generator.judge, safety=None
    )


def request(seed, guides="symmetry=1", prompt="a photo of a rose", **options):
    row = GuideRow(prompt=prompt, label=options.pop("label", None))
    return GenerateRequest(
        prompt, seed, SIZE, SIZE, guides=parse_guides(guides.split()), guide_row=row, **options
    )


def pixels(data):
    return decode_photo(data).pixels.astype(int)


def test_the_guides_value_rises_and_the_last_update_was_rendered(generator):
    (result,) = generator.generate([request(0, "text=1")])
    assert result.status == "ok"
    assert result.num_optim_steps == 2
    assert len(result.loss_curve) == 3
    assert result.guide_values_after["text"] > result.guide_values_before["text"]
    assert result.score_after == result.guide_values_after["text"]
    assert (result.width_px, result.height_px) == (SIZE, SIZE)
    assert (pixels(result.encoded) != pixels(result.unguided)).any()


def test_the_delivered_picture_has_the_value_that_the_table_tells(generator):
    asked = request(1, "text=1")
    (result,) = generator.generate([asked])
    bound = generator.guidance(asked.guides).bind([asked.guide_row])
    for data, told in (
        (result.unguided, result.guide_values_before["text"]),
        (result.encoded, result.guide_values_after["text"]),
    ):
        # Eight bits and clipping stand between the model's frame and the file.
        assert float(bound.values(viewed(data, torch.device("cpu")))["text"]) == pytest.approx(
            told, abs=0.02
        )


def test_a_picture_does_not_depend_on_its_batch(generator):
    requests = [request(0), request(7, prompt="a tulip"), request(9, negative_prompt="grey")]
    together = generator.generate(requests)
    (alone,) = generator.generate(requests[1:2])
    assert abs(pixels(together[1].encoded) - pixels(alone.encoded)).max() <= 1
    assert together[1].loss_curve == pytest.approx(alone.loss_curve, rel=1e-4)
    assert (pixels(together[0].encoded) != pixels(together[1].encoded)).any()


def test_the_first_noise_is_the_seeds_own_on_every_device(generator):
    predictor = generator.backbone.predictor(["x"])
    start = generator._start([request(3), request(4)], predictor)
    shape = (generator.backbone.latent_channels, 8, 8)
    want = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    assert torch.equal(start.x[1], want)
    assert torch.equal(start.x, start.y)
    # What follows does not repeat the noise.
    following = torch.randn(shape, generator=start.generators[1])
    assert not torch.equal(following, want)


def test_plain_steps_before_the_optimised_ones_change_nothing(generator):
    backbone, predictor = generator.backbone, generator.backbone.predictor(["a tulip"])
    late = with_config(generator, num_inference_steps=4, optimise_at=1)
    whole, optimised = late.schedules()
    assert (len(whole), len(optimised), optimised.first_index) == (4, 1, 3)
    start = late._start([request(5)], predictor)
    noise = torch.randn(start.x.shape[1:], generator=torch.Generator().manual_seed(5))[None]
    whole = backbone.schedule(4)
    with torch.no_grad():
        x_0, _ = generate(predictor, noise, noise, whole, mix_weight=late.config.sampler.p)
        # The very steps of the whole schedule, in its own leapfrog phase.
        assert torch.equal(backbone.decode(x_0), start.images)
    (result,) = late.generate([request(5)])
    assert result.num_optim_steps == 2


def test_an_interrupted_picture_goes_on_from_its_checkpoint_bit_for_bit(generator):
    saved = {}

    def save(index, state):
        saved.setdefault(state.iteration, state_to_bytes(state))

    (whole,) = generator.generate([request(2, "text=1")], on_iteration=save)
    iterations = []
    again = replace(request(2, "text=1"), checkpoint=saved[1])
    (resumed,) = generator.generate(
        [again], on_iteration=lambda _, state: iterations.append(state.iteration)
    )
    assert iterations == [2, 2]
    assert resumed.loss_curve == whole.loss_curve
    assert resumed.encoded == whole.encoded
    assert resumed.unguided == whole.unguided


def test_a_checkpoint_that_does_not_fit_starts_again(generator, caplog):
    (result,) = generator.generate([replace(request(2), checkpoint=b"garbage")])
    assert result.status == "ok"
    assert "starts again" in caplog.text


def test_without_guides_the_plain_sample_is_delivered(generator):
    (result,) = generator.generate([request(0, guides="")])
    assert (result.status, result.stop_reason) == ("ok", "no guide")
    assert result.unguided is None
    assert result.loss_curve == []


def test_no_better_iterate_means_no_picture_delivered(generator):
    config = replace(SHORT, optimiser=replace(SHORT.optimiser, num_optim_steps=0))
    still = ImageGenerator(generator.backbone, config, generator.guidance)
    (result,) = still.generate([request(0)])
    assert result.status == "rejected"
    assert "no iterate was better" in result.rejection


def test_a_request_that_its_guides_do_not_fit_fails_alone(generator):
    def of_class(specs):
        class Picky:
            def bind(self, rows, sources=None):
                if any(row.label == "cactus" for row in rows):
                    raise ValueError("no class cactus")
                return real.bind(rows, sources)

        real = generator.guidance(specs)
        return Picky()

    picky = ImageGenerator(generator.backbone, SHORT, of_class)
    good, bad = picky.generate([request(0), request(1, label="cactus")])
    assert good.status == "ok"
    assert isinstance(bad, RequestError)
    assert "no class cactus" in str(bad)


def test_guides_that_cannot_be_loaded_are_their_own_requests_error(generator):
    def load(specs):
        if "missing" in specs[0].name:
            raise ModelError("no such head")
        return generator.guidance(specs)

    picky = ImageGenerator(generator.backbone, SHORT, load)
    good, bad = picky.generate([request(0), request(0, "aesthetic:missing=1")])
    assert good.status == "ok"
    assert isinstance(bad, ModelError)


def test_a_size_that_the_model_cannot_make_is_refused_with_one_that_it_can(generator):
    with pytest.raises(RequestError, match=r"100x64 must be multiples of 16 px .* try 96x64"):
        generator.check_size(100, 64)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_the_file_says_that_a_model_made_it(format):
    data = encode_picture(torch.zeros(3, 32, 32), format, software="doodl-batch 1", note="seed 3")
    image = Image.open(io.BytesIO(data))
    assert image.format == format
    assert image.getexif()[0x0131] == "doodl-batch 1"
    xmp = decode_photo(data).xmp.decode()
    assert xmp.count("DigitalSourceType=") == 1
    assert "digitalsourcetype/trainedAlgorithmicMedia" in xmp
    assert "seed 3" in xmp
    assert abs(pixels(data) - 128).max() <= 2


def test_files_tell_no_path_of_the_machine(generator):
    elsewhere = replace(generator.backbone, name="/home/me/models/mine")
    (result,) = ImageGenerator(elsewhere, SHORT, generator.guidance).generate([request(0, "")])
    xmp = decode_photo(result.encoded).xmp.decode()
    assert "model mine" in xmp
    assert "/home" not in xmp


def test_a_flagged_picture_is_rejected_and_its_unguided_one_kept_only_if_it_is_not(generator):
    flags = iter([[True, True], [False, True]])
    checker = SafetyCheck(lambda images: next(flags))
    careful = ImageGenerator(generator.backbone, SHORT, generator.guidance, safety=checker)
    for kept in (False, True):
        (result,) = careful.generate([request(0)])
        assert (result.status, result.safety, result.stop_reason) == (
            "rejected", "flagged", "flagged",
        )  # fmt: skip
        assert (result.unguided is not None) == kept
        assert "safety checker" in result.rejection


def test_a_plain_sample_is_checked_too(generator):
    careful = ImageGenerator(
        generator.backbone, SHORT, generator.guidance, safety=SafetyCheck(lambda images: [True])
    )
    (result,) = careful.generate([request(0, guides="")])
    assert (result.status, result.safety) == ("rejected", "flagged")


def test_the_safety_word_says_why_nothing_was_checked(tmp_path):
    assert load_safety(tmp_path, "off").word(False) == "off"
    with pytest.raises(ValueError, match="safety_checker"):
        load_safety(tmp_path, "maybe")


def test_fidelity_measures_from_the_unguided_picture(generator):
    (result,) = generator.generate([request(0, "text=1 fidelity=1")])
    assert result.guide_values_before["fidelity"] == pytest.approx(0.0, abs=1e-6)
    assert result.score_before is None  # two guides have no one score


def test_the_judge_measures_what_guides_aim_at_by_another_network(generator):
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    judge = generator.judge
    row = GuideRow(prompt="a rose", subjects=(image[0],))
    score = judge(parse_guides(["aesthetic=1"]), row, image)
    assert score == pytest.approx(float(judge.scorer(image)))
    assert judge(parse_guides(["subject=1"]), row, image) == pytest.approx(1.0, abs=1e-5)
    assert -1 <= judge(parse_guides(["symmetry=1", "text=1"]), row, image) <= 1
    assert judge(parse_guides(["symmetry=1"]), row, image) is None
    assert np.isfinite(score)
