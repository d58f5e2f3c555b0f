"""Each move alone, lists of them, and a sampler that the library does not have."""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import pytest
import torch

from doodl import moves
from doodl.moves import Denoise, Mix, Move, Swap, TwoStep, generate, generate_with_grad, invert
from doodl.schedule import Schedule, stable_diffusion_alphas_cumprod
from tests.doodl.predictors import SmallNet, analytic, pair

ALPHAS = stable_diffusion_alphas_cumprod()
MODES = ["checkpoint", "invert", "full", "budget:1B", "budget:6KiB", "budget:1GiB"]
T = torch.tensor(500)
COUPLED = {
    "denoise x": Denoise(0, 1, 1.1, -0.3, T),
    "denoise y": Denoise(1, 0, 0.9, 0.4, T),
    "mix": Mix(0.8),
    "two steps": TwoStep(0.7, 0.4, -0.5, T),
    "swap": Swap(),
}
ALONE = {**COUPLED, "ddim": Denoise(0, 0, 1.1, -0.3, T)}


def relative_error(got, want):
    off = sum((g - w).square().sum() for g, w in zip(got, want, strict=True))
    return (off / sum(w.square().sum() for w in want)).sqrt().item()


def gradients(run, state):
    state = tuple(z.clone().requires_grad_() for z in state)
    # Different weights on the latents, so that swapping them would be seen.
    loss = sum((weight * z.sin()).sum() for weight, z in enumerate(run(state), 1))
    return torch.autograd.grad(loss, state)


@pytest.mark.parametrize("move", COUPLED.values(), ids=COUPLED)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_undo_is_the_inverse_of_do(move, dtype, bound):
    state = pair(dtype=dtype)
    for there, back in ((move.do, move.undo), (move.undo, move.do)):
        assert relative_error(back(there(state, analytic), analytic), state) < bound
        assert relative_error(there(state, analytic), state) > 0.01


@pytest.mark.parametrize("memory", MODES)
@pytest.mark.parametrize("move", ALONE.values(), ids=ALONE)
def test_back_is_plain_autograds_transpose(move, memory):
    net = SmallNet().double()
    got = gradients(lambda z: generate_with_grad(net, [move], z, memory=memory), pair())
    want = gradients(lambda z: move.do(z, net), pair())
    assert relative_error(got, want) < 1e-14


@pytest.mark.parametrize("memory", ["checkpoint", "invert"])
@pytest.mark.parametrize("move", ALONE.values(), ids=ALONE)
def test_gradcheck_of_each_move(move, memory):
    state = tuple(z[:1, :, :2, :2].clone().requires_grad_() for z in pair())
    assert torch.autograd.gradcheck(
        lambda *z: generate_with_grad(analytic, [move], z, memory=memory), state
    )


@pytest.mark.parametrize("num_steps", [5, 10])
def test_a_list_calls_the_network_as_often_as_it_says(num_steps):
    schedule = Schedule.ddim(ALPHAS, num_steps)
    calls = []

    def counted(z, t):
        calls.append(int(t))
        return analytic(z, t)

    for sampler, want in (
        (moves.edict(schedule, 0.93), 2 * (num_steps - 1)),  # the last step is the identity
        (moves.belm(schedule), num_steps - 2),  # and O-BELM's first is in the pair
        (moves.ddim(schedule), num_steps - 1),
    ):
        calls.clear()
        generate(counted, sampler, pair())
        assert len(calls) == sum(move.num_calls for move in sampler) == want
        assert calls == sorted(calls, reverse=True)


@pytest.mark.parametrize("sampler", ["edict", "belm"])
def test_a_flows_steps_are_moves_too(sampler):
    schedule = Schedule.flow(10, shift=3.0)
    steps = moves.belm(schedule) if sampler == "belm" else moves.edict(schedule, 0.8)
    net = SmallNet().double()
    assert relative_error(invert(net, steps, generate(net, steps, pair())), pair()) < 1e-10
    got = gradients(lambda z: generate_with_grad(net, steps, z, memory="invert"), pair())
    assert relative_error(got, gradients(lambda z: generate(net, steps, z), pair())) < 1e-10


@pytest.mark.parametrize("num_steps", [10, 50])
def test_ddim_rebuilds_nothing_as_its_inverse_is_not_exact(num_steps):
    net, steps = SmallNet().double(), moves.ddim(Schedule.ddim(ALPHAS, num_steps))
    state = pair()[:1]
    assert relative_error(invert(net, steps, generate(net, steps, state)), state) > 1e-3
    got = gradients(lambda z: generate_with_grad(net, steps, z, memory="invert"), state)
    assert relative_error(got, gradients(lambda z: generate(net, steps, z), state)) < 1e-12


@pytest.mark.parametrize(("num_steps", "p"), [(50, 0.93), (100, 0.93), (200, 0.93**0.25)])
def test_what_invert_rebuilds_is_what_was(num_steps, p):
    """The network works in float32, the way back does not: un-mixing swells rounding by p^-2T,
    which is 2e6 at T = 100."""
    net, seen = SmallNet(), []

    def recorded(z, t):
        seen.append(z.detach())
        return net(z, t)

    steps = moves.edict(Schedule.ddim(ALPHAS, num_steps), p)
    gradients(
        lambda z: generate_with_grad(recorded, steps, z, memory="invert"),
        pair(dtype=torch.float32),
    )
    down, back = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert len(down) == len(back) == 2 * (num_steps - 1)
    # Half a float32's last digit is 6e-8. With epsilon in float32 on the way back: 1e-6 to 2e-3.
    for got, want in zip(back, reversed(down), strict=True):
        assert relative_error([got], [want]) < 6e-8


class BelowState:
    """A network in half precision."""

    dtype = torch.bfloat16

    def __init__(self):
        self.net = SmallNet().bfloat16()

    def __call__(self, z, t):
        return self.net(z.bfloat16(), t)


@pytest.mark.parametrize("sampler", ["edict", "belm"])
@pytest.mark.parametrize("num_steps", [20, 100])
def test_stored_inputs_are_exact_for_a_network_in_half_precision(sampler, num_steps):
    schedule, net = Schedule.ddim(ALPHAS, num_steps), BelowState()
    steps = moves.belm(schedule) if sampler == "belm" else moves.edict(schedule, 0.93)
    state = pair(dtype=torch.float32)
    got = gradients(lambda z: generate_with_grad(net, steps, z), state)
    want = gradients(lambda z: generate(net, steps, z), state)
    # The walk back adds the same terms in its own order.
    assert relative_error(got, want) < 1e-5


@pytest.mark.parametrize(
    "state",
    [
        pair()[0][:1].half().repeat(2, 1, 1, 1, 1).unbind(0),
        (pair()[0], pair()[1].float()),
        (pair()[0], pair()[1][:1]),
        (pair()[0][0], pair()[1][0]),
        (pair()[0].bfloat16(),),
    ],
    ids=["half", "two dtypes", "two shapes", "three dimensions", "bfloat16 alone"],
)
def test_state_that_loses_digits_or_does_not_fit_is_refused(state):
    for fold in (generate, invert, generate_with_grad):
        with pytest.raises(ValueError, match="latents"):
            fold(analytic, [Swap()], tuple(state))


@dataclass(frozen=True, eq=False)
class Bdia(Move):
    """BDIA (arXiv:2307.10829): z_{i-1} = gamma z_{i+1} + (DDIM's step from z_i to t_{i-1})
    - gamma (DDIM's step from z_i back to t_{i+1}), on (x, y) = (z_{i+1}, z_i).

    a, b: of the step to t_{i-1}. A, B: of the step from t_{i+1} to t_i, that is gone back.
    """

    gamma: float
    a: float
    b: float
    A: float
    B: float
    t: torch.Tensor

    def do(self, z, epsilon):
        x, y = z
        noise_pred = epsilon(y, self.t)
        onward = self.a * y + self.b * noise_pred
        backward = (y - self.B * noise_pred) / self.A
        return y, self.gamma * x + onward - self.gamma * backward

    def undo(self, z, epsilon):
        y, after = z
        noise_pred = epsilon(y, self.t)
        onward = self.a * y + self.b * noise_pred
        backward = (y - self.B * noise_pred) / self.A
        return (after - onward + self.gamma * backward) / self.gamma, y

    def back(self, g, pull_back):
        g_y, g_after = g
        pulled = pull_back((self.b + self.gamma * self.B / self.A) * g_after)
        return self.gamma * g_after, g_y + (self.a - self.gamma / self.A) * g_after + pulled


def bdia(schedule, gamma):
    """From (z_T, z_{T-1}) to (z_0, z_1)."""
    steps = moves.ddim(schedule)
    made = [Bdia(gamma, s.a, s.b, before.a, before.b, s.t) for before, s in pairwise(steps)]
    return [*made, Swap()]


@pytest.mark.parametrize("gamma", [0.5, 1.0])
@pytest.mark.parametrize("num_steps", [5, 20])
class TestAnotherExactSampler:
    """BDIA, of one dataclass and one list."""

    def test_is_the_papers_equation(self, num_steps, gamma):
        schedule = Schedule.ddim(ALPHAS, num_steps)
        x, y = pair()
        got = generate(analytic, bdia(schedule, gamma), (x, y))
        alphas = [*schedule.alphas.tolist()]

        def ddim_step(z, t, start, end):  # the paper's Delta, and z: between any two alphas
            noise_pred = analytic(z, t)
            clean = (z - (1 - start) ** 0.5 * noise_pred) / start**0.5
            return end**0.5 * clean + (1 - end) ** 0.5 * noise_pred

        for i in range(1, num_steps - 1):
            before, here, after = alphas[i - 1 : i + 2]
            t = schedule.timesteps[i]
            to_next = ddim_step(y, t, here, after) - y
            to_last = ddim_step(y, t, here, before) - y
            x, y = y, x - (1 - gamma) * (x - y) - gamma * to_last + to_next
        assert relative_error(got, (y, x)) < 1e-12

    def test_is_undone_exactly(self, num_steps, gamma):
        steps = bdia(Schedule.ddim(ALPHAS, num_steps), gamma)
        assert relative_error(
            invert(analytic, steps, generate(analytic, steps, pair())), pair()
        ) < (1e-8)

    @pytest.mark.parametrize("memory", MODES)
    def test_gradient_is_plain_autograds(self, num_steps, gamma, memory):
        steps, net = bdia(Schedule.ddim(ALPHAS, num_steps), gamma), SmallNet().double()
        got = gradients(lambda z: generate_with_grad(net, steps, z, memory=memory), pair())
        assert relative_error(got, gradients(lambda z: generate(net, steps, z), pair())) < 1e-8


@dataclass(frozen=True)
class Scale(Move):
    """z_0 <- s z_0: a move of one latent alone that calls nobody is exact."""

    s: float
    num_calls: ClassVar[int] = 0

    def do(self, z, _):
        return (self.s * z[0], *z[1:])

    def undo(self, z, _):
        return (z[0] / self.s, *z[1:])

    def back(self, g, _):
        return (self.s * g[0], *g[1:])


@pytest.mark.parametrize("memory", MODES)
def test_lists_of_any_moves_can_be_joined(memory):
    steps = [*COUPLED.values(), Scale(1.5), *reversed(COUPLED.values()), Scale(0.5)]
    net = SmallNet().double()
    got = gradients(lambda z: generate_with_grad(net, steps, z, memory=memory), pair())
    assert relative_error(got, gradients(lambda z: generate(net, steps, z), pair())) < 1e-12
    assert relative_error(invert(net, steps, generate(net, steps, pair())), pair()) < 1e-12
