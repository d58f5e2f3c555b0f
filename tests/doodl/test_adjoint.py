import gc
import weakref

import pytest
import torch
from torch import nn

from doodl import moves
from doodl.adjoint import generate_with_grad
from doodl.edict import generate
from doodl.engine.network_call import _measured, activation_bytes
from doodl.engine.tape import Tape
from doodl.recipes.config import default_mix_weight, parse_memory
from doodl.schedule import Schedule, stable_diffusion_alphas_cumprod
from tests.doodl.predictors import SmallNet, analytic, pair

ALPHAS = stable_diffusion_alphas_cumprod()
MODES = ["checkpoint", "invert", "full", "budget:1B", "budget:6KiB", "budget:1GiB"]


def belm_with_grad(predict_noise, x, y, schedule, memory="checkpoint"):
    return moves.generate_with_grad(predict_noise, moves.belm(schedule), (x, y), memory=memory)


def loss_and_grads(run, x, y):
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    x_0, y_0 = run(x, y)
    # Different weights on the halves, so that swapping them would be seen.
    loss = (x_0.sin() * 2).sum() + (y_0**2).sum()
    return loss.detach(), torch.autograd.grad(loss, (x, y))


@pytest.mark.parametrize("memory", MODES)
@pytest.mark.parametrize("num_steps", [5, 10, 50])
@pytest.mark.parametrize("predictor", [analytic, SmallNet().double()], ids=["analytic", "net"])
def test_gradient_is_plain_autograds(memory, num_steps, predictor):
    x, y = pair()
    schedule = Schedule.ddim(ALPHAS, num_steps)
    value, grads = loss_and_grads(
        lambda x, y: generate_with_grad(predictor, x, y, schedule, memory=memory), x, y
    )
    want, want_grads = loss_and_grads(lambda x, y: generate(predictor, x, y, schedule), x, y)
    torch.testing.assert_close(value, want, rtol=1e-12, atol=1e-12)
    for got, expected in zip(grads, want_grads, strict=True):
        assert ((got - expected).norm() / expected.norm()).item() < 1e-10


@pytest.mark.parametrize("memory", ["checkpoint", "invert"])
@pytest.mark.parametrize("depth", [0.4, 0.5])
def test_gradient_of_a_part_way_schedule_in_single_precision(memory, depth):
    x, y = pair(dtype=torch.float32)
    schedule = Schedule.ddim(ALPHAS, 10).part(depth)
    grads = loss_and_grads(
        lambda x, y: generate_with_grad(analytic, x, y, schedule, memory=memory), x, y
    )[1]
    want = loss_and_grads(lambda x, y: generate(analytic, x, y, schedule), x, y)[1]
    for got, expected in zip(grads, want, strict=True):
        assert ((got - expected).norm() / expected.norm()).item() < 1e-4


@pytest.mark.parametrize("memory", ["checkpoint", "invert", "budget:6KiB"])
@pytest.mark.parametrize(("num_steps", "p"), [(10, default_mix_weight(10)), (50, 0.93)])
def test_gradient_through_a_network_in_single_precision(memory, num_steps, p):
    """A pair rebuilt in float32 misses this: un-mixing multiplies its rounding by p^-2T = 1,400."""
    x, y = pair(dtype=torch.float32)
    net, schedule = SmallNet(), Schedule.ddim(ALPHAS, num_steps)

    def run(x, y):
        return generate_with_grad(net, x, y, schedule, mix_weight=p, memory=memory)

    grads = loss_and_grads(run, x, y)[1]
    want = loss_and_grads(lambda x, y: generate(net, x, y, schedule, mix_weight=p), x, y)[1]
    for got, expected in zip(grads, want, strict=True):
        assert got.dtype == torch.float32
        assert ((got - expected).norm() / expected.norm()).item() < 1e-4
    values = run(x.requires_grad_(), y)
    for got, expected in zip(values, generate(net, x, y, schedule, mix_weight=p), strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("memory", ["checkpoint", "invert", "budget:1GiB"])
def test_change_of_the_inputs_in_place_leaves_the_gradient(memory):
    schedule = Schedule.ddim(ALPHAS, 10)
    x, y = pair()
    want = loss_and_grads(lambda x, y: generate(analytic, x, y, schedule), x, y)[1]
    x, y = x.requires_grad_(), y.requires_grad_()
    x_0, y_0 = generate_with_grad(analytic, x, y, schedule, memory=memory)
    with torch.no_grad():
        x.zero_()
        y.zero_()
    got = torch.autograd.grad((x_0.sin() * 2).sum() + (y_0**2).sum(), (x, y))
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("memory", ["checkpoint", "invert", "budget:1GiB"])
def test_without_a_gradient_to_take_it_is_plain_generate(memory):
    calls = []

    def counted(z, t):
        calls.append(t)
        return net(z, t)

    net = SmallNet().double().requires_grad_(True)  # weights alone ask for no graph
    schedule = Schedule.ddim(ALPHAS, 10)
    x, y = pair()
    with torch.no_grad():
        want = generate(net, x, y, schedule)
        quiet = generate_with_grad(counted, x.clone().requires_grad_(), y, schedule, memory=memory)
    plain = generate_with_grad(counted, x, y, schedule, memory=memory)
    assert len(calls) == 2 * 18
    for got in (quiet, plain):
        assert not any(z.requires_grad for z in got)
        torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.parametrize("memory", ["checkpoint", "invert"])
def test_gradcheck(memory):
    x, y = (z[:1, :, :2, :2].clone().requires_grad_() for z in pair())
    schedule = Schedule.ddim(ALPHAS, 4)
    assert torch.autograd.gradcheck(
        lambda x, y: generate_with_grad(analytic, x, y, schedule, memory=memory), (x, y)
    )


def peak_live_bytes(memory, num_steps):
    """Peak bytes of live tensors over the walk there and back, as the CPU allocator records."""
    net = SmallNet(width=64)
    x, y = (z.requires_grad_() for z in pair(batch=1, size=16, dtype=torch.float32))
    schedule = Schedule.ddim(ALPHAS, num_steps)
    with torch.profiler.profile(profile_memory=True) as profile:
        x_0, y_0 = generate_with_grad(net, x, y, schedule, memory=memory)
        torch.autograd.grad((x_0 * y_0).sum(), (x, y))
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def test_memory_does_not_grow_with_steps_beyond_the_stored_latents():
    latent_bytes = 4 * 16 * 16 * 4
    peaks = {
        mode: [peak_live_bytes(mode, steps) for steps in (10, 20, 40)]
        for mode in ("checkpoint", "invert", "full")
    }
    # invert holds nothing per step; a few latents of slack for the order of frees.
    assert max(peaks["invert"]) - min(peaks["invert"]) <= 4 * latent_bytes
    # checkpoint holds two latents a step (the inputs of its two calls), and nothing else.
    for less, more, steps in ((0, 1, 10), (1, 2, 20)):
        growth = peaks["checkpoint"][more] - peaks["checkpoint"][less]
        assert growth <= (2 * steps + 4) * latent_bytes
    # What the two save: plain autograd's activations do grow.
    assert peaks["full"][2] - peaks["full"][0] > 30 * 64 * 16 * 16 * 4


@pytest.mark.parametrize(("run", "per_step"), [(generate_with_grad, 2), (belm_with_grad, 1)])
@pytest.mark.parametrize("memory", ["checkpoint", "invert"])
def test_every_calls_input_is_stored_and_no_more(run, per_step, memory, monkeypatch):
    tapes = []
    turned = Tape.turned
    monkeypatch.setattr(Tape, "turned", lambda tape: tapes.append(tape) or turned(tape))
    for steps in (10, 50, 100):
        schedule = Schedule.ddim(ALPHAS, steps, final_alpha_cumprod=1.0)
        loss_and_grads(lambda x, y: run(analytic, x, y, schedule, memory=memory), *pair())  # noqa: B023
        stored = sum(call.latents.nbytes for call in tapes.pop().calls)
        calls = steps * per_step - (per_step == 1)  # the first is in O-BELM's pair already
        assert stored == (calls if memory == "checkpoint" else 0) * pair()[0].nbytes


@pytest.mark.parametrize("p", [0.6, 0.93, 1.0])
@pytest.mark.parametrize("num_steps", [40, 100])
def test_stored_inputs_give_plain_autograds_gradient_to_the_bit(num_steps, p):
    x, y = pair(dtype=torch.float32)
    net, schedule = SmallNet(), Schedule.ddim(ALPHAS, num_steps)
    value, grads = loss_and_grads(
        lambda x, y: generate_with_grad(net, x, y, schedule, mix_weight=p), x, y
    )
    want, want_grads = loss_and_grads(
        lambda x, y: generate(net, x, y, schedule, mix_weight=p), x, y
    )
    assert torch.equal(value, want)
    for got, expected in zip(grads, want_grads, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("memory", ["checkpoint", "invert", "budget:1GiB"])
@pytest.mark.parametrize("run", [generate_with_grad, belm_with_grad])
@pytest.mark.parametrize("num_steps", [10, 40])
def test_change_of_the_outputs_in_place_leaves_the_gradient(run, memory, num_steps):
    schedule = Schedule.ddim(ALPHAS, num_steps)
    grads = []
    for change in (False, True):
        x, y = (z.requires_grad_() for z in pair())
        x_0, y_0 = run(analytic, x, y, schedule, memory=memory)
        loss = (x_0 * 2 + y_0).sum()
        if change:
            with torch.no_grad():
                x_0.zero_()
                y_0.zero_()
        grads.append(torch.autograd.grad(loss, (x, y)))
    torch.testing.assert_close(*grads, rtol=0, atol=0)


@pytest.mark.parametrize("memory", ["checkpoint", "invert", "budget:1GiB"])
@pytest.mark.parametrize("run", [generate_with_grad, belm_with_grad])
def test_a_walk_is_freed_with_its_last_name(run, memory, monkeypatch):
    tapes = []
    turned = Tape.turned
    monkeypatch.setattr(
        Tape, "turned", lambda tape: tapes.append(weakref.ref(tape)) or turned(tape)
    )
    schedule = Schedule.ddim(ALPHAS, 40)
    gc.collect()
    gc.disable()
    try:
        loss_and_grads(lambda x, y: run(analytic, x, y, schedule, memory=memory), *pair())
        assert [tape() for tape in tapes] == [None]
    finally:
        gc.enable()


def count_calls(memory):
    calls = 0

    def counted(z, t):
        nonlocal calls
        calls += 1
        return analytic(z, t)

    x, y = pair()
    loss_and_grads(
        lambda x, y: generate_with_grad(counted, x, y, Schedule.ddim(ALPHAS, 10), memory=memory),
        x,
        y,
    )
    return calls


def test_calls_are_recomputed_once_and_kept_ones_never():
    acting_calls = 2 * 9  # the last step is the identity
    assert count_calls("checkpoint") == count_calls("invert") == 2 * acting_calls
    assert count_calls("full") == acting_calls
    assert count_calls("budget:1GiB") == acting_calls + 1  # and one to measure


def test_budget_keeps_as_many_calls_as_fit():
    x = pair()[0]
    per_call = activation_bytes(analytic, x, torch.tensor(500))
    assert per_call > 0
    kept = 5
    assert count_calls(f"budget:{kept * per_call}") == 2 * 18 - kept + 1


def test_a_budget_measures_once_for_a_predictor_and_a_shape():
    calls = []

    class Counted:
        def __call__(self, z, t):
            calls.append(z.shape)
            return analytic(z, t)

    schedule, predictor = Schedule.ddim(ALPHAS, 10), Counted()

    def run(x, y):
        return generate_with_grad(predictor, x, y, schedule, memory="budget:1GiB")

    counts, grads = [], []
    for batch in (2, 2, 1, 2):
        calls.clear()
        grads.append(loss_and_grads(run, *pair(batch))[1])
        counts.append(len(calls))
    assert counts == [19, 18, 19, 18]
    for first, again in zip(grads[0], grads[1], strict=True):
        assert torch.equal(first, again)


def test_a_measured_size_goes_with_its_predictor():
    class Predictor:
        def __call__(self, z, t):
            return analytic(z, t)

    before = len(_measured)

    def run(x, y, predictor):
        return generate_with_grad(predictor, x, y, Schedule.ddim(ALPHAS, 10), memory="budget:1GiB")

    predictors = [Predictor()]
    loss_and_grads(lambda x, y: run(x, y, predictors[0]), *pair())
    assert len(_measured) == before + 1
    predictors.clear()
    gc.collect()
    assert len(_measured) == before


def test_a_predictor_that_cannot_be_remembered_is_measured_each_time():
    class Unhashable:
        __hash__ = None

        def __call__(self, z, t):
            return analytic(z, t)

    schedule, predictor = Schedule.ddim(ALPHAS, 10), Unhashable()
    got = loss_and_grads(
        lambda x, y: generate_with_grad(predictor, x, y, schedule, memory="budget:1GiB"), *pair()
    )[1]
    want = loss_and_grads(lambda x, y: generate(analytic, x, y, schedule), *pair())[1]
    torch.testing.assert_close(got, want)


class Dense(nn.Module):
    """A linear layer over the channels, which autograd remembers by a view of its weight."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 256)
        self.outer = nn.Linear(256, 4)
        self.requires_grad_(False)

    def forward(self, latents, t):
        hidden = torch.tanh(self.inner(latents.movedim(1, -1)))
        return self.outer(hidden).movedim(-1, 1)


class Prompted:
    """Holds its network as `unet`, as the denoiser does."""

    def __init__(self, unet):
        self.unet = unet

    def __call__(self, latents, t):
        return self.unet(latents, t)


@pytest.mark.parametrize("wrap", [lambda net: net, Prompted], ids=["module", "holder"])
def test_activation_bytes_leave_out_weights_saved_as_views(wrap):
    net, latents, t = Dense(), pair(batch=1, dtype=torch.float32)[0], torch.tensor(500)
    # Autograd needs tanh's output (256 channels of 6 x 6), and not the input of a frozen layer.
    assert activation_bytes(wrap(net), latents, t) == 256 * 6 * 6 * 4


def test_second_backward_over_a_retained_graph_agrees():
    x, y = (z.requires_grad_() for z in pair())
    x_0, y_0 = generate_with_grad(analytic, x, y, Schedule.ddim(ALPHAS, 10), memory="budget:1GiB")
    loss = (x_0 * y_0).sum()
    first = torch.autograd.grad(loss, (x, y), retain_graph=True)
    second = torch.autograd.grad(loss, (x, y))
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)


def test_predictor_that_ignores_its_latents_still_has_a_gradient():
    def constant(z, t):
        return torch.ones_like(z) * t / 1000

    x, y = pair()
    schedule = Schedule.ddim(ALPHAS, 10)
    got = loss_and_grads(lambda x, y: generate_with_grad(constant, x, y, schedule), x, y)[1]
    want = loss_and_grads(lambda x, y: generate(constant, x, y, schedule), x, y)[1]
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    ("text", "mode", "size"),
    [
        ("checkpoint", "checkpoint", 0),
        ("budget:8GiB", "budget", 8 * 2**30),
        ("budget:500", "budget", 500),
    ],
)
def test_memory_words_are_read(text, mode, size):
    assert parse_memory(text) == (mode, size)


@pytest.mark.parametrize("text", ["", "budget", "budget:lots", "Checkpoint"])
def test_unknown_memory_is_refused_with_the_choices(text):
    with pytest.raises(ValueError, match="checkpoint, invert, full or budget:SIZE"):
        parse_memory(text)
