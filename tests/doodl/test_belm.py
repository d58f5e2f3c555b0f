import dataclasses
import itertools

import pytest
import torch

from doodl import moves
from doodl.engine.sampling import denoise_to, noise_first
from doodl.recipes.config import SamplerConfig
from doodl.schedule import Schedule, stable_diffusion_alphas_cumprod
from tests.doodl.predictors import SmallNet, analytic, pair

ALPHAS = stable_diffusion_alphas_cumprod()
MODES = ["checkpoint", "invert", "full", "budget:1B", "budget:6KiB", "budget:1GiB"]


def generate(predict_noise, x, y, schedule):
    return moves.generate(predict_noise, moves.belm(schedule), (x, y))


def generate_with_grad(predict_noise, x, y, schedule, memory="checkpoint"):
    return moves.generate_with_grad(predict_noise, moves.belm(schedule), (x, y), memory=memory)


def invert(predict_noise, x, y, schedule):
    return moves.invert(predict_noise, moves.belm(schedule), (x, y))


def invert_photo(predict_noise, latents, schedule, *, corrected=False):
    start = noise_first(predict_noise, latents, schedule, corrected=corrected)
    return invert(predict_noise, *start, schedule)


def denoise_first(predict_noise, noise, schedule):
    return denoise_to(predict_noise, noise, schedule, 0, SamplerConfig(kind="belm"))


def relative_error(got, want):
    return ((got - want).norm() / want.norm()).item()


def counting(predict_noise):
    calls = []

    def counted(latents, t):
        calls.append(int(t))
        return predict_noise(latents, t)

    return counted, calls


@pytest.mark.parametrize("depth", [0.3, 1.0])
@pytest.mark.parametrize("num_steps", [10, 20, 50])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-8), (torch.float32, 1e-4)])
def test_generate_undoes_the_inversion_of_a_photo(num_steps, depth, dtype, bound):
    latents = pair(dtype=dtype)[0]
    schedule = Schedule.ddim(ALPHAS, num_steps).part(depth)
    noise = invert_photo(analytic, latents, schedule)
    image = generate(analytic, *noise, schedule)
    start = noise_first(analytic, latents, schedule)
    for got, want in zip(image, start, strict=True):
        assert got.dtype == dtype
        assert relative_error(got, want) < bound
    assert torch.equal(start[0], latents)


@pytest.mark.parametrize("num_steps", [10, 50])
def test_invert_undoes_generate(num_steps):
    x, y = pair()
    schedule = Schedule.ddim(ALPHAS, num_steps)
    back = invert(analytic, *generate(analytic, x, y, schedule), schedule)
    for got, want in zip(back, (x, y), strict=True):
        assert relative_error(got, want) < 1e-10


def test_each_step_is_the_papers_equation():
    """O-BELM in the paper's letters: alpha = sqrt(alphas_cumprod), tau = sqrt(1 - .) / sqrt(.)."""
    schedule = Schedule.ddim(ALPHAS, 5)
    z = pair()[0]
    nodes = [*schedule.timesteps.tolist()]  # the last step stays at timestep 0's own alpha
    alpha = ALPHAS[nodes].sqrt()
    tau = (1 - ALPHAS[nodes]).sqrt() / alpha
    x, y = denoise_first(analytic, z, schedule)
    torch.testing.assert_close(
        y / alpha[1], z / alpha[0] + (tau[1] - tau[0]) * analytic(z, torch.tensor(nodes[0]))
    )
    got = generate(analytic, x, y, schedule)
    for p, t, s in zip(range(3), range(1, 4), range(2, 5), strict=True):
        d1, d2, d3 = tau[t] - tau[p], tau[s] - tau[t], tau[s] - tau[p]
        x, y = (
            y,
            (
                d2 * d3 * alpha[s] / d1 * analytic(y, torch.tensor(nodes[t]))
                + (d2 / d1) ** 2 * alpha[s] / alpha[p] * x
                + (d1 - d2) * d3 / d1**2 * alpha[s] / alpha[t] * y
            ),
        )
    torch.testing.assert_close(got, (y, x), rtol=1e-12, atol=1e-12)


class GaussianData:
    """Data N(mean, std^2) per latent: its exact noise prediction and its exact trajectory.

    With zbar = z / alpha the ODE is d zbar / d tau = tau (zbar - mean) / (std^2 + tau^2), along
    which (zbar - mean) / sqrt(std^2 + tau^2) does not change.
    """

    mean, std = 0.5, 0.6

    def __init__(self, alphas_cumprod):
        self.alphas_cumprod = alphas_cumprod

    def __call__(self, latents, t):
        alpha = self.alphas_cumprod[t]
        tau = ((1 - alpha) / alpha).sqrt()
        return tau * (latents / alpha.sqrt() - self.mean) / (self.std**2 + tau**2)

    def carry(self, latents, start, end):
        """Return the exact latents at `end` (a cumulative alpha) of those at `start`."""
        spread = [(self.std**2 + (1 - alpha) / alpha).sqrt() for alpha in (start, end)]
        return end.sqrt() * (
            self.mean + (latents / start.sqrt() - self.mean) / spread[0] * spread[1]
        )


def orders(errors):
    return [(a / b).log2().item() for a, b in itertools.pairwise(errors)]


def test_generation_and_inversion_converge_with_second_order():
    """Halving the step must quarter the error; DDIM's, of first order, halves beside it."""
    alphas = torch.sigmoid(torch.linspace(6, -4, 16000, dtype=torch.float64))
    predict_noise = GaussianData(alphas)
    noise = pair(batch=1)[0]
    errors = {"generate": [], "invert": [], "ddim": []}
    for num_steps in (80, 160, 320):
        schedule = Schedule.ddim(alphas, num_steps)
        image = predict_noise.carry(noise, schedule.alphas[0], schedule.alphas_next[-1])
        start = denoise_first(predict_noise, noise, schedule)
        got = generate(predict_noise, *start, schedule)[0]
        errors["generate"].append((got - image).norm())
        back = invert_photo(predict_noise, image, schedule)[0]
        errors["invert"].append((back - noise).norm())
        z = noise
        for a, b, t in zip(schedule.a, schedule.b, schedule.timesteps, strict=True):
            z = a * z + b * predict_noise(z, t)
        errors["ddim"].append((z - image).norm())
    # Observed 1.998 to 2.001 and 0.990 to 0.998; the orders differ by one.
    assert orders(errors["generate"]) == pytest.approx([2, 2], abs=0.02)
    assert orders(errors["invert"]) == pytest.approx([2, 2], abs=0.02)
    assert orders(errors["ddim"]) == pytest.approx([1, 1], abs=0.05)


@pytest.mark.parametrize("num_steps", [10, 20, 50])
def test_a_corrected_start_inverts_nearer_the_trajectory(num_steps):
    predict_noise, schedule = GaussianData(ALPHAS), Schedule.ddim(ALPHAS, num_steps)
    latents = pair(batch=1)[0]
    want = predict_noise.carry(latents, schedule.alphas_next[-1], schedule.alphas[0])
    plain, corrected = (
        (invert_photo(predict_noise, latents, schedule, corrected=on)[0] - want).norm()
        for on in (False, True)
    )
    # Observed 8.7, 150 and 31 times nearer.
    assert corrected < plain / 4
    noise = invert_photo(predict_noise, latents, schedule, corrected=True)
    back = generate(predict_noise, *noise, schedule)[0]
    assert relative_error(back, latents) < 1e-8


def flow_schedule(num_steps):
    """Flow matching over sigma = 1 .. 0.01: a = 1, b = sigma' - sigma, uneven steps."""
    sigma = torch.linspace(1, 0.1, num_steps + 1, dtype=torch.float64) ** 2
    plain = Schedule.from_alphas(torch.arange(num_steps), 1 - sigma[:-1] / 2, 1 - sigma[1:] / 2)
    return sigma, dataclasses.replace(plain, a=torch.ones(num_steps).double(), b=sigma.diff())


def test_flow_matching_steps_are_taken_with_second_order_and_undone():
    """The formula knows only a and b. Data N(1/2, 0.36), z = (1 - sigma) data + sigma noise."""
    errors = []
    for num_steps in (20, 40, 80):
        sigma, schedule = flow_schedule(num_steps)
        spread = (0.36 * (1 - sigma) ** 2 + sigma**2).sqrt()

        def velocity(z, t, sigma=sigma, spread=spread):
            slope = (sigma[t] - 0.36 * (1 - sigma[t])) / spread[t] ** 2
            return slope * (z - (1 - sigma[t]) / 2) - 0.5

        noise = pair(batch=1)[0]
        want = (1 - sigma[-1]) / 2 + noise * spread[-1] / spread[0]
        image = generate(velocity, *denoise_first(velocity, noise, schedule), schedule)
        errors.append((image[0] - want).norm())
        back = invert(velocity, *image, schedule)
        assert relative_error(back[0], noise) < 1e-10
    assert orders(errors) == pytest.approx([2, 2], abs=0.1)


def test_steps_that_leave_alpha_are_left_out_wherever_they_are():
    whole = Schedule.ddim(ALPHAS, 10)
    again = [0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 8, 9]  # index 1 and 8 stay for one more step
    alphas = whole.alphas[again]
    timesteps = whole.timesteps[again]
    schedule = Schedule.from_alphas(timesteps, alphas, torch.cat([alphas[1:], alphas[-1:]]))
    x, y = pair()
    counted, calls = counting(analytic)
    got = generate(counted, x, y, schedule)
    assert calls == whole.timesteps[1:-1].tolist()
    for z, want in zip(got, generate(analytic, x, y, whole), strict=True):
        torch.testing.assert_close(z, want, rtol=1e-12, atol=1e-12)
    back = invert(analytic, *got, schedule)
    assert relative_error(back[0], x) < 1e-10


def test_one_call_a_step():
    schedule = Schedule.ddim(ALPHAS, 10)  # nine steps act
    counted, calls = counting(analytic)
    latents = pair()[0]
    noise = invert_photo(counted, latents, schedule)
    assert calls == sorted(schedule.timesteps.tolist())[:9]
    calls.clear()
    generate(counted, *noise, schedule)
    assert calls == schedule.timesteps[1:9].tolist()
    calls.clear()
    denoise_first(counted, latents, schedule)
    assert calls == schedule.timesteps[:1].tolist()


def test_image_without_a_timestep_of_its_own_is_noised_at_its_neighbours():
    schedule = Schedule.ddim(ALPHAS, 10, final_alpha_cumprod=1.0)
    counted, calls = counting(analytic)
    noise_first(counted, pair()[0], schedule)
    assert calls == [0]


def test_a_schedule_of_one_step_is_ddims():
    schedule = Schedule.ddim(ALPHAS, 10).from_step(8)  # one step that acts, one that does not
    z = pair()[0]
    x, y = denoise_first(analytic, z, schedule)
    got = generate(analytic, x, y, schedule)
    assert torch.equal(got[0], y)
    assert torch.equal(got[1], z)
    torch.testing.assert_close(
        y, schedule.a[0] * z + schedule.b[0] * analytic(z, schedule.timesteps[0])
    )


def test_schedule_in_which_nothing_acts_is_refused():
    schedule = Schedule.ddim(ALPHAS, 10).from_step(9)
    with pytest.raises(ValueError, match="changes alpha"):
        generate(analytic, *pair(), schedule)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_state_is_refused(dtype):
    x, y = pair(dtype=torch.float32)
    with pytest.raises(ValueError, match="float32 or float64"):
        generate(analytic, x.to(dtype), y.to(dtype), Schedule.ddim(ALPHAS, 10))


def loss_and_grads(run, x, y):
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    x_0, y_0 = run(x, y)
    # Different weights on the two, so that swapping them would be seen.
    loss = (x_0.sin() * 2).sum() + (y_0**2).sum()
    return loss.detach(), torch.autograd.grad(loss, (x, y))


@pytest.mark.parametrize("memory", MODES)
@pytest.mark.parametrize(("num_steps", "depth"), [(5, 1.0), (10, 0.5), (50, 1.0)])
@pytest.mark.parametrize("predictor", [analytic, SmallNet().double()], ids=["analytic", "net"])
def test_gradient_is_plain_autograds(memory, num_steps, depth, predictor):
    x, y = pair()
    schedule = Schedule.ddim(ALPHAS, num_steps).part(depth)
    value, grads = loss_and_grads(
        lambda x, y: generate_with_grad(predictor, x, y, schedule, memory=memory), x, y
    )
    want, want_grads = loss_and_grads(lambda x, y: generate(predictor, x, y, schedule), x, y)
    torch.testing.assert_close(value, want, rtol=1e-12, atol=1e-12)
    for got, expected in zip(grads, want_grads, strict=True):
        assert relative_error(got, expected) < 1e-10


@pytest.mark.parametrize("memory", ["checkpoint", "invert", "budget:6KiB"])
@pytest.mark.parametrize("num_steps", [10, 50, 100])
def test_gradient_through_a_network_in_single_precision(memory, num_steps):
    x, y = pair(dtype=torch.float32)
    net, schedule = SmallNet(), Schedule.ddim(ALPHAS, num_steps)

    def run(x, y):
        return generate_with_grad(net, x, y, schedule, memory=memory)

    grads = loss_and_grads(run, x, y)[1]
    want = loss_and_grads(lambda x, y: generate(net, x, y, schedule), x, y)[1]
    for got, expected in zip(grads, want, strict=True):
        assert got.dtype == torch.float32
        assert relative_error(got, expected) < (1e-5 if memory == "checkpoint" else 1e-4)


@pytest.mark.parametrize("memory", ["checkpoint", "invert"])
def test_gradcheck(memory):
    x, y = (z[:1, :, :2, :2].clone().requires_grad_() for z in pair())
    schedule = Schedule.ddim(ALPHAS, 5)
    assert torch.autograd.gradcheck(
        lambda x, y: generate_with_grad(analytic, x, y, schedule, memory=memory), (x, y)
    )


def test_calls_are_recomputed_once_and_kept_ones_never():
    schedule = Schedule.ddim(ALPHAS, 10)
    counts = {}
    for memory in ("checkpoint", "invert", "full", "budget:1GiB"):
        counted, calls = counting(analytic)
        loss_and_grads(
            lambda x, y, counted=counted, memory=memory: generate_with_grad(
                counted, x, y, schedule, memory=memory
            ),
            *pair(),
        )
        counts[memory] = len(calls)
    # Nine steps act and the first is in the pair already; a budget measures one call.
    assert counts == {"checkpoint": 16, "invert": 16, "full": 8, "budget:1GiB": 9}


@pytest.mark.parametrize("memory", ["checkpoint", "invert", "budget:1GiB"])
def test_without_a_gradient_to_take_it_is_plain_generate(memory):
    schedule = Schedule.ddim(ALPHAS, 10)
    x, y = pair()
    counted, calls = counting(analytic)
    got = generate_with_grad(counted, x, y, schedule, memory=memory)
    assert len(calls) == 8
    for z, want in zip(got, generate(analytic, x, y, schedule), strict=True):
        assert torch.equal(z, want)


@pytest.mark.parametrize("memory", ["checkpoint", "budget:1GiB"])
def test_change_of_the_inputs_in_place_leaves_the_gradient(memory):
    schedule = Schedule.ddim(ALPHAS, 10)
    want = loss_and_grads(lambda x, y: generate(analytic, x, y, schedule), *pair())[1]
    x, y = (z.requires_grad_() for z in pair())
    x_0, y_0 = generate_with_grad(analytic, x, y, schedule, memory=memory)
    with torch.no_grad():
        x.zero_()
        y.zero_()
    got = torch.autograd.grad((x_0.sin() * 2).sum() + (y_0**2).sum(), (x, y))
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
