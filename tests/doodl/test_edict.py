import pytest
import torch

from doodl.edict import generate, invert
from doodl.moves import Mix
from doodl.recipes.config import default_mix_weight
from doodl.schedule import Schedule, stable_diffusion_alphas_cumprod
from tests.doodl.predictors import analytic, pair

ALPHAS = stable_diffusion_alphas_cumprod()


def relative_error(got, want):
    return ((got - want).norm() / want.norm()).item()


def test_unmix_undoes_mix():
    mix, z = Mix(0.93), pair()
    for got, want in zip(mix.undo(mix.do(z, analytic), analytic), z, strict=True):
        assert relative_error(got, want) < 1e-14


@pytest.mark.parametrize("num_steps", [10, 25, 50])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_generate_undoes_invert(num_steps, dtype, bound):
    z = pair(dtype=dtype)[0]
    schedule = Schedule.ddim(ALPHAS, num_steps)
    p = default_mix_weight(num_steps)
    x_0, y_0 = generate(
        analytic, *invert(analytic, z, z, schedule, mix_weight=p), schedule, mix_weight=p
    )
    assert x_0.dtype == dtype
    assert relative_error(x_0, z) < bound
    assert relative_error(y_0, z) < bound


@pytest.mark.parametrize("num_steps", [10, 50])
def test_invert_undoes_generate(num_steps):
    x, y = pair()
    schedule = Schedule.ddim(ALPHAS, num_steps)
    back = invert(analytic, *generate(analytic, x, y, schedule), schedule)
    # Un-mixing multiplies rounding by p^-2 a step, 1,400 over 50: 1e-16 becomes 1e-13.
    assert max(relative_error(got, want) for got, want in zip(back, (x, y), strict=True)) < 1e-10


@pytest.mark.parametrize("index", [3, 4])
def test_part_way_schedule_continues_in_its_own_leapfrog_phase(index):
    """Whole = first part then second part, only if the second keeps its absolute phase."""
    whole = Schedule.ddim(ALPHAS, 10)
    x, y = pair()
    second = whole.from_step(index)
    first = Schedule.from_alphas(
        whole.timesteps[:index], whole.alphas[:index], whole.alphas_next[:index]
    )
    split = generate(analytic, *generate(analytic, x, y, first), second)
    for got, want in zip(split, generate(analytic, x, y, whole), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_each_step_is_the_papers_equations():
    schedule = Schedule.ddim(ALPHAS, 5)
    x, y = pair()
    got = generate(analytic, x, y, schedule, mix_weight=0.9)
    for i, t in enumerate(schedule.timesteps):
        a, b = schedule.a[i], schedule.b[i]
        if i % 2 == 0:
            x = a * x + b * analytic(y, t)
            y = a * y + b * analytic(x, t)
        else:
            y = a * y + b * analytic(x, t)
            x = a * x + b * analytic(y, t)
        x = 0.9 * x + 0.1 * y
        y = 0.9 * y + 0.1 * x
    torch.testing.assert_close(got, (x, y), rtol=1e-13, atol=1e-13)


def test_identity_step_makes_no_call():
    calls = []

    def counted(z, t):
        calls.append(int(t))
        return analytic(z, t)

    schedule = Schedule.ddim(ALPHAS, 10)
    x, y = pair()
    invert(counted, *generate(counted, x, y, schedule), schedule)
    assert len(calls) == 2 * 2 * 9
    assert 0 not in calls


def test_predictor_in_half_precision_leaves_the_state_in_single():
    x, y = pair(dtype=torch.float32)
    schedule = Schedule.ddim(ALPHAS, 10)

    def half(z, t):
        return analytic(z.bfloat16(), t)

    got = generate(half, *invert(half, x, x, schedule), schedule)[0]
    assert got.dtype == torch.float32
    # The inverse sees the very inputs of the generation, so even a coarse predictor cancels.
    assert relative_error(got, x) < 1e-2
    del y


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_state_is_refused(dtype):
    x, y = pair(dtype=torch.float32)
    with pytest.raises(ValueError, match="float32 or float64"):
        generate(analytic, x.to(dtype), y.to(dtype), Schedule.ddim(ALPHAS, 10))


@pytest.mark.parametrize("p", [0, -0.5, 1.5])
def test_mix_weight_outside_zero_one_is_refused(p):
    x, y = pair()
    with pytest.raises(ValueError, match="mix_weight"):
        invert(analytic, x, y, Schedule.ddim(ALPHAS, 10), mix_weight=p)


def test_default_mix_weight_is_the_papers_at_fifty_steps():
    assert default_mix_weight(50) == pytest.approx(0.93)
    assert default_mix_weight(10) == pytest.approx(0.93**5)
