"""Both samplers behind one set of functions, and O-BELM in edits, inversions and generation."""

from dataclasses import replace

import pytest
import torch

from doodl import adjoint, edict, moves
from doodl.editing.editor import PhotoEditor, load_editor
from doodl.editing.inverter import InvertRequest, PhotoInverter
from doodl.editing.latent_files import latents_from_bytes, latents_to_bytes
from doodl.editing.objective import Aim
from doodl.editing.requests import EditRequest
from doodl.engine.sampling import check_sampler, denoise_to, generate, round_trip
from doodl.generation import GenerateRequest, ImageGenerator
from doodl.guidance.guidance import GuideRow, load_guidance
from doodl.guidance.spec import parse_guides
from doodl.images import decode_photo
from doodl.recipes.config import EditConfig, OptimiserConfig, SamplerConfig
from doodl.recipes.presets import preset, sampler_overrides
from doodl.schedule import Schedule, stable_diffusion_alphas_cumprod
from pipeline.spec import make_spec
from tests.doodl.predictors import SmallNet, analytic, pair
from tests.photos import jpeg

SCHEDULE = Schedule.ddim(stable_diffusion_alphas_cumprod(), 10)
EDICT = SamplerConfig(num_inference_steps=10)
BELM = replace(EDICT, kind="belm")


def belm_config(config, **optimiser):
    untied = {"tie_latents": False, "decode_pair": False, **optimiser}
    return replace(
        config,
        sampler=replace(config.sampler, kind="belm"),
        optimiser=replace(config.optimiser, **untied),
    )


@pytest.fixture(scope="module")
def editor():
    torch.set_num_threads(1)
    config = replace(preset("pocket"), working_px=64, num_crops=1, stop_score=None)
    return load_editor("pocket", belm_config(config, num_optim_steps=2))


def with_config(editor, config):
    return PhotoEditor(editor.backbone, editor.guide, editor.judge, config)


def request(seed):
    return EditRequest(decode_photo(jpeg(seed, (96, 96))), Aim("up"), seed=seed)


def relative_error(got, want):
    return ((got - want).norm() / want.norm()).item()


def test_edict_is_what_its_own_functions_compute_bit_for_bit():
    latents, p = pair(dtype=torch.float32)[0], EDICT.p
    trip = round_trip(analytic, latents, SCHEDULE, EDICT)
    noise = edict.invert(analytic, latents, latents, SCHEDULE, mix_weight=p)
    assert all(map(torch.equal, (trip.x, trip.y), noise))
    back = edict.generate(analytic, *noise, SCHEDULE, mix_weight=p)
    assert torch.equal(trip.x_0, back[0])
    assert all(map(torch.equal, generate(analytic, *noise, SCHEDULE, EDICT), back))
    x, y = (z.clone().requires_grad_() for z in noise)
    grads = [
        torch.autograd.grad(sum(z.square().sum() for z in images), (x, y))
        for images in (
            generate(analytic, x, y, SCHEDULE, EDICT),
            adjoint.generate_with_grad(analytic, x, y, SCHEDULE, mix_weight=p),
        )
    ]
    assert all(map(torch.equal, *grads))


@pytest.mark.parametrize("depth", [0.5, 1.0])
def test_a_photos_round_trip_by_belm_is_exact(depth):
    latents = pair()[0]
    trip = round_trip(analytic, latents, SCHEDULE.part(depth), BELM)
    assert max(trip.errors) <= 1e-8
    assert relative_error(trip.x_0, latents) <= 1e-8
    assert relative_error(trip.x, latents) > 0.1  # it did go somewhere


def test_belms_gradient_is_plain_autograds():
    net = SmallNet().double()
    noise = denoise_to(net, pair()[0], SCHEDULE, 0, BELM)

    def gradient(run):
        x, y = (z.clone().requires_grad_() for z in noise)
        return torch.autograd.grad(run(x, y)[0].sin().sum(), (x, y))

    got = gradient(lambda x, y: generate(net, x, y, SCHEDULE, BELM))
    want = gradient(lambda x, y: moves.generate(net, moves.belm(SCHEDULE), (x, y)))
    for one, other in zip(got, want, strict=True):
        assert relative_error(one, other) < 1e-10


@pytest.mark.parametrize("sampler", [EDICT, BELM], ids=["edict", "belm"])
@pytest.mark.parametrize("plain", [0, 1, 4])
def test_steps_denoised_plainly_lead_to_the_same_image(sampler, plain):
    noise = pair()[0]
    whole = generate(
        analytic, *denoise_to(analytic, noise, SCHEDULE, 0, sampler), SCHEDULE, sampler
    )
    start = denoise_to(analytic, noise, SCHEDULE, plain, sampler)
    late = generate(analytic, *start, SCHEDULE.from_step(plain), sampler)
    for got, want in zip(late, whole, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_an_edit_by_belm_improves_its_loss_in_about_half_the_calls(editor, monkeypatch):
    calls = []

    def edited(config):
        calls.clear()
        return with_config(editor, config).edit([request(3)])[0], len(calls)

    unet = editor.backbone.unet
    forward = unet.forward
    monkeypatch.setattr(unet, "forward", lambda *a, **k: (calls.append(1), forward(*a, **k))[1])
    result, by_belm = edited(editor.config)
    assert result.inversion_error < 1e-4
    assert result.loss_curve[-1] < result.loss_curve[0]
    assert result.score_after > result.score_before
    plain = replace(editor.config, sampler=replace(editor.config.sampler, kind="edict"))
    assert by_belm < 0.65 * edited(plain)[1]


def test_photos_inverted_by_belm_come_back_from_their_files(editor):
    inverter = PhotoInverter(editor.backbone, editor.config)
    (result,) = inverter.invert([InvertRequest(decode_photo(jpeg(1, (96, 96))))])
    assert result.inversion_error < 1e-4
    read = latents_from_bytes(result.latents)
    assert read.sampler == "belm"
    (restored,) = inverter.restore([result.latents])
    assert restored.encoded == result.encoded
    # By the sampler it was made with, whatever the reader's own recipe says.
    (wrong,) = inverter.restore([latents_to_bytes(replace(read, sampler="edict"))])
    assert wrong.encoded != result.encoded


def test_pictures_are_made_and_optimised_by_belm(editor):
    config = replace(preset("pocket-text"), num_crops=1)
    config = belm_config(config, num_optim_steps=2)
    config = replace(config, sampler=replace(config.sampler, num_inference_steps=4))
    generator = ImageGenerator(
        editor.backbone, config, lambda specs: load_guidance(specs, model="pocket")
    )
    guides = parse_guides(["text=1"])
    row = GuideRow(prompt="a photo of a rose")
    (result,) = generator.generate(
        [GenerateRequest("a photo of a rose", 0, 64, 64, guides=guides, guide_row=row)]
    )
    assert result.loss_curve[-1] < result.loss_curve[0]


@pytest.mark.parametrize("name", ["tie_latents", "decode_pair"])
def test_what_takes_the_pair_for_edicts_is_refused(name):
    values = {"tie_latents": False, "decode_pair": False, name: True}
    with pytest.raises(ValueError, match=name):
        EditConfig(sampler=BELM, optimiser=OptimiserConfig(**values))
    EditConfig(optimiser=OptimiserConfig(**values))


def test_unknown_sampler_is_refused():
    with pytest.raises(ValueError, match="edict or belm"):
        SamplerConfig(kind="ddim")


def test_belm_through_a_single_step_is_refused(editor):
    check_sampler(SCHEDULE.part(0.1), EDICT)
    with pytest.raises(ValueError, match="two steps"):
        check_sampler(SCHEDULE.part(0.2), BELM)  # of its two steps the last changes nothing
    short = replace(editor.config, sampler=replace(editor.config.sampler, depth=0.1))
    with pytest.raises(ValueError, match="two steps"):
        with_config(editor, short)


def test_overrides_of_a_sampler_make_any_preset_run_on_it(tmp_path):
    assert sampler_overrides("edict") == {}
    with pytest.raises(ValueError, match="edict or belm"):
        sampler_overrides("bdia")
    for name in ("pocket", "paper-aesthetic", "paper-text", "pocket-personalize"):
        spec = make_spec(
            tmp_path, tmp_path / "out", preset=name, overrides=sampler_overrides("belm")
        )
        assert spec.edit_config.sampler.kind == "belm"
        assert spec.params()["recipe"]["sampler"]["kind"] == "belm"


def test_recipes_that_leave_the_sampler_alone_keep_their_fingerprint(tmp_path):
    assert "kind" not in make_spec(tmp_path, tmp_path / "out").params()["recipe"]["sampler"]
