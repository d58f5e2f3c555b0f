import pytest
import torch

from doodl.schedule import Schedule, stable_diffusion_alphas_cumprod

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
