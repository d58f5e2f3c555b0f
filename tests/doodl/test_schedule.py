import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from doodl.backbones.process import noise_process
from doodl.schedule import FLOW_TIME_UNITS, Schedule, stable_diffusion_alphas_cumprod

ALPHAS = stable_diffusion_alphas_cumprod()


def test_fifty_steps_are_the_released_codes_timesteps():
    schedule = Schedule.ddim(ALPHAS, 50)
    assert schedule.timesteps.tolist() == list(range(980, -1, -20))
    assert schedule.timesteps.dtype == torch.int64
    assert schedule.a.dtype == schedule.b.dtype == torch.float64


def test_step_equals_ddims_own_formula():
    schedule = Schedule.ddim(ALPHAS, 50)
    z, eps = torch.randn(2, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for i in range(50):
        alpha_t, alpha_s = schedule.alphas[i], schedule.alphas_next[i]
        denoised = (z - (1 - alpha_t).sqrt() * eps) / alpha_t.sqrt()
        expected = alpha_s.sqrt() * denoised + (1 - alpha_s).sqrt() * eps
        torch.testing.assert_close(schedule.a[i] * z + schedule.b[i] * eps, expected)


def test_last_step_is_the_identity_and_needs_no_call():
    schedule = Schedule.ddim(ALPHAS, 50)
    assert schedule.a[-1] == 1
    assert schedule.b[-1] == 0
    assert schedule.noise_calls.tolist() == [True] * 49 + [False]


def test_final_alpha_of_one_makes_the_last_step_act():
    assert Schedule.ddim(ALPHAS, 50, final_alpha_cumprod=1.0).noise_calls.all()


def test_steps_that_do_not_divide_name_the_nearest_that_do():
    with pytest.raises(ValueError, match=r"num_inference_steps \(=30\).*try 25 or 40"):
        Schedule.ddim(ALPHAS, 30)


def test_offset_beyond_the_training_steps_is_refused():
    assert Schedule.ddim(ALPHAS, 50, steps_offset=1).timesteps[-1] == 1
    with pytest.raises(ValueError, match="steps_offset"):
        Schedule.ddim(ALPHAS, 50, steps_offset=20)


@pytest.mark.parametrize(("depth", "kept"), [(1.0, 10), (0.5, 5), (0.3, 3), (0.31, 4), (0.01, 1)])
def test_part_keeps_the_last_steps_and_their_absolute_index(depth, kept):
    whole = Schedule.ddim(ALPHAS, 10)
    part = whole.part(depth)
    assert len(part) == kept
    assert part.first_index == 10 - kept
    assert part.timesteps.tolist() == whole.timesteps[-kept:].tolist()


def test_part_of_a_part_keeps_the_index_in_the_whole():
    part = Schedule.ddim(ALPHAS, 10).part(0.5).part(0.4)
    assert part.first_index == 8
    assert part.timesteps.tolist() == [100, 0]


@pytest.mark.parametrize("final", [0.0, -0.5, 1.1, float("nan"), torch.ones(2)])
def test_final_alpha_outside_zero_one_is_refused(final):
    with pytest.raises(ValueError, match="final_alpha_cumprod"):
        Schedule.ddim(ALPHAS, 50, final_alpha_cumprod=final)


def test_final_alpha_is_taken_as_a_double_without_its_graph():
    final = torch.tensor(0.9995, requires_grad=True)
    schedule = Schedule.ddim(ALPHAS, 50, final_alpha_cumprod=final)
    assert schedule.alphas_next.dtype == torch.float64
    assert not schedule.alphas_next.requires_grad
    assert Schedule.ddim(ALPHAS, 50, final_alpha_cumprod=0.9995).alphas_next[-1] == 0.9995


@pytest.mark.parametrize("steps", [50.0, "50", True, None])
def test_steps_that_are_no_int_are_refused(steps):
    with pytest.raises(ValueError, match=r"num_inference_steps .* must be an int"):
        Schedule.ddim(ALPHAS, steps)


def test_alphas_that_ascend_are_refused():
    with pytest.raises(ValueError, match="descend"):
        Schedule.ddim(ALPHAS.flip(0), 50)


def test_schedules_can_be_compared_and_hashed():
    first, second = Schedule.ddim(ALPHAS, 50), Schedule.ddim(ALPHAS, 50)
    assert first == first
    assert first != second  # by identity: tensors have no single truth value
    assert len({first, second}) == 2


@pytest.mark.parametrize("depth", [0, -0.1, 1.01])
def test_depth_outside_zero_one_is_refused(depth):
    with pytest.raises(ValueError, match="depth"):
        Schedule.ddim(ALPHAS, 10).part(depth)


def test_trailing_steps_start_at_the_last_training_step():
    schedule = Schedule.ddim(ALPHAS, 4, timestep_spacing="trailing", final_alpha_cumprod=1.0)
    assert schedule.timesteps.tolist() == [999, 749, 499, 249]
    assert schedule.noise_calls.all()
    with pytest.raises(ValueError, match="leading or trailing"):
        Schedule.ddim(ALPHAS, 4, timestep_spacing="linspace")
    with pytest.raises(ValueError, match=r"use 0\.\.0"):
        Schedule.ddim(ALPHAS, 4, timestep_spacing="trailing", steps_offset=1)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_flow_along_a_known_velocity_ends_on_the_image(shift):
    image, noise = torch.randn(2, 10, dtype=torch.float64)
    schedule = Schedule.flow(7, shift=shift)
    z = noise
    for a, b, t in zip(schedule.a, schedule.b, schedule.timesteps, strict=True):
        sigma = t.double() / FLOW_TIME_UNITS
        torch.testing.assert_close(z, (1 - sigma) * image + sigma * noise)
        z = a * z + b * (noise - image)
    torch.testing.assert_close(z, image)


@pytest.mark.parametrize("num_steps", [1, 4, 28])
@pytest.mark.parametrize("num_patches", [64, 1024, 4096])
def test_flow_sigmas_are_the_reference_schedulers(num_steps, num_patches):
    """SD3 shifts by a constant, FLUX by the image's size; both against diffusers."""
    sd3 = FlowMatchEulerDiscreteScheduler(shift=3.0)
    sd3.set_timesteps(num_steps)
    flux = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    flux.set_timesteps(
        sigmas=torch.linspace(1, 1 / num_steps, num_steps).tolist(),
        mu=calculate_shift(num_patches),
    )
    for kind, reference in (("sd3", sd3), ("flux", flux)):
        config = {"_class_name": "FlowMatchEulerDiscreteScheduler", **reference.config}
        schedule = noise_process(config, kind).schedule(num_steps, num_patches)
        sigmas = schedule.timesteps / FLOW_TIME_UNITS
        torch.testing.assert_close(sigmas, reference.sigmas[:-1], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(
            schedule.b, reference.sigmas.diff().double(), rtol=1e-5, atol=1e-6
        )


def test_flow_keeps_its_absolute_index_and_needs_every_call():
    schedule = Schedule.flow(10, shift=3.0)
    assert schedule.part(0.3).first_index == 7
    assert schedule.noise_calls.all()
    assert (schedule.alphas.diff() > 0).all()


@pytest.mark.parametrize(
    ("steps", "options"),
    [
        (0, {}),
        (2.0, {}),
        (True, {}),
        (4, {"shift": 0}),
        (4, {"shift": float("inf")}),
        (4, {"last_sigma": 1.0}),
        (4, {"last_sigma": 0.0}),
        (8, {"shift": 1e12}),
    ],
)
def test_flow_of_no_sense_is_refused(steps, options):
    with pytest.raises(ValueError, match=r"num_inference_steps|shift|last_sigma"):
        Schedule.flow(steps, **options)
