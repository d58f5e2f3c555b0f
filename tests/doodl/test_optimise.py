"""Algorithm 1 against a plain reading of it, and what a batch may not change."""

from dataclasses import dataclass, replace

import pytest
import torch
from safetensors.torch import save

from doodl.adjoint import generate_with_grad
from doodl.engine.checkpoints import state_from_bytes, state_to_bytes
from doodl.errors import OptimisationError
from doodl.optimise import (
    Judgement,
    LatentState,
    blur_latents,
    optimise,
    shape_gradient,
)
from doodl.recipes.config import OptimiserConfig
from doodl.schedule import Schedule, stable_diffusion_alphas_cumprod
from tests.doodl.predictors import analytic, pair

SCHEDULE = Schedule.ddim(stable_diffusion_alphas_cumprod(), 5)


@dataclass
class Toy:
    """Bring the first channel of each photo's x_0 to that photo's own goal."""

    goals: torch.Tensor
    noisy: bool = False
    good_below: float = -1.0
    contrary: bool = False  # what the gradient lowers makes the stated value rise

    def generate(self, x, y):
        return generate_with_grad(analytic, x, y, SCHEDULE)

    def decode(self, latents):
        return latents

    def judge(self, images, generators):
        loss = (images[:, 0] - self.goals.view(-1, 1, 1)).square().mean((1, 2))
        value = -loss if self.contrary else loss
        if self.noisy:
            loss = loss * torch.stack([torch.rand((), generator=g) + 0.5 for g in generators])
        return Judgement(loss, value.detach(), value.detach() < self.good_below)

    def keep(self, indices):
        return replace(self, goals=self.goals[list(indices)])


def states(batch=3, seed=0):
    x, y = pair(batch=batch, seed=seed)
    return [LatentState.start(x[i], y[i], seed=100 + i) for i in range(batch)]


GOALS = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
PLAIN = OptimiserConfig(num_optim_steps=4, learning_rate=0.7, grad_clip_value=2e-3)


@pytest.mark.parametrize("ties", [False, True])
def test_updates_are_algorithm_one(ties):
    config = replace(PLAIN, tie_latents=ties, renormalise=ties, tie_gradients=ties, loss_scale=3.0)
    state = states(1)[0]
    x, y = state.x.clone(), state.y.clone()
    m_x, m_y, norm_x, norm_y = 0, 0, x.norm(), y.norm()
    optimise([state], Toy(GOALS[:1]), config)
    for _ in range(config.num_optim_steps):
        x, y = x.requires_grad_(), y.requires_grad_()
        x_0, y_0 = generate_with_grad(analytic, x[None], y[None], SCHEDULE, memory="full")
        total = sum((z[:, 0] - GOALS[0]).square().mean() for z in (x_0, y_0))
        g_x, g_y = torch.autograd.grad(3.0 * total, (x, y))
        g_x, g_y = g_x / 2, g_y / 2
        if ties:
            g_x = g_y = (g_x + g_y) / 2
        g_x, g_y = g_x.clamp(-2e-3, 2e-3), g_y.clamp(-2e-3, 2e-3)
        m_x, m_y = 0.9 * m_x + g_x, 0.9 * m_y + g_y
        x, y = (x - 0.7 * m_x).detach(), (y - 0.7 * m_y).detach()
        if ties:
            x = y = (x + y) / 2
            x, y = x * (norm_x / x.norm()), y * (norm_y / y.norm())
    torch.testing.assert_close(state.x, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(state.y, y, rtol=1e-9, atol=1e-9)


def test_last_update_is_rendered_and_the_best_iterate_kept():
    batch = states()
    optimise(batch, Toy(GOALS), PLAIN)
    for state in batch:
        assert state.iteration == 4
        assert len(state.loss_curve) == 5
        assert state.stop_reason == "steps"
        assert state.best_iteration == 4  # the loss still falls, so the last update is the best
        assert state.best_value <= min(state.loss_curve)
        assert state.best_x is state.x


def test_best_iterate_in_the_middle_is_kept_with_its_own_latents():
    # Steps far too long for the goal: the loss falls, then the momentum carries past it.
    config = replace(
        PLAIN, num_optim_steps=12, grad_clip_value=None, grad_mean_abs=0.3, decode_pair=False
    )
    state = states(1)[0]
    pairs = [(state.x, state.y)]
    optimise(
        [state],
        Toy(GOALS[:1]),
        config,
        on_iteration=lambda running: pairs.append((running[0].x, running[0].y)),
    )
    best = min(range(13), key=lambda i: state.loss_curve[i])
    assert 0 < best < 12
    assert state.best_iteration == best
    assert state.best_value == state.loss_curve[best]
    torch.testing.assert_close((state.best_x, state.best_y), pairs[best], rtol=0, atol=0)


@dataclass
class Scripted:
    """Judges its one photo by a script: the value, and whether it is good, of each iterate."""

    values: list[float]
    good: int | None = None
    place: int = -1

    def generate(self, x, y):
        return x, y

    def decode(self, latents):
        return latents

    def judge(self, images, generators):
        self.place += 1
        loss = images.mean((1, 2, 3)) * 0 + self.values[self.place]
        return Judgement(loss, loss.detach(), torch.tensor([self.place == self.good]))


ONE_DECODE = replace(PLAIN, decode_pair=False)


def test_good_photo_stops_only_after_the_least_number_of_updates():
    config = replace(ONE_DECODE, num_optim_steps=5, min_optim_steps=2)

    class Good(Scripted):
        def judge(self, images, generators):
            judgement = super().judge(images, generators)
            return replace(judgement, good_enough=torch.tensor([True]))

    state = states(1)[0]
    optimise([state], Good([3.0, 2.5, 2.0, 1.0]), config)
    assert (state.stop_reason, state.iteration, state.best_iteration) == ("good_enough", 2, 2)


def test_iterate_that_is_good_enough_is_the_one_delivered():
    state = states(1)[0]
    optimise([state], Scripted([3.0, 1.0, 2.0], good=2), ONE_DECODE)
    assert state.stop_reason == "good_enough"
    assert (state.best_iteration, state.best_value) == (2, 2.0)
    assert state.best_x is state.x


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_divergence_keeps_the_best_finite_iterate(bad):
    state = states(1)[0]
    optimise([state], Scripted([3.0, 1.0, bad]), ONE_DECODE)
    assert state.stop_reason == "diverged"
    assert (state.best_iteration, state.best_value) == (1, 1.0)


def test_states_that_have_stopped_before_are_left_alone():
    batch = states()
    batch[1].stop_reason = "plateau"
    stopped = batch[1].x
    optimise(batch, Toy(GOALS), PLAIN)
    assert batch[1].x is stopped
    assert batch[1].loss_curve == []
    for i in (0, 2):
        alone = states()[i]
        optimise([alone], Toy(GOALS[i : i + 1]), PLAIN)
        torch.testing.assert_close(batch[i].x, alone.x, rtol=1e-9, atol=1e-9)


def test_loss_falls():
    batch = states()
    optimise(
        batch,
        Toy(GOALS),
        replace(PLAIN, num_optim_steps=20, grad_clip_value=None, grad_mean_abs=2e-2),
    )
    for state in batch:
        assert state.best_value < 0.7 * state.loss_curve[0]


@pytest.mark.parametrize("noise_scale", [0.0, 1e-2])
def test_a_photo_does_not_depend_on_its_batch(noise_scale):
    config = replace(PLAIN, noise_scale=noise_scale, grad_mean_abs=1e-2, grad_blur_sigma=1.0)
    together = states()
    optimise(together, Toy(GOALS, noisy=True), config)
    for i, alone in enumerate(states()):
        optimise([alone], Toy(GOALS[i : i + 1], noisy=True), config)
        torch.testing.assert_close(alone.x, together[i].x, rtol=1e-9, atol=1e-9)


def test_photos_that_are_good_enough_leave_and_the_others_go_on():
    batch = states()
    start = [
        float((Toy(GOALS).generate(s.x[None], s.y[None])[0][:, 0] - g).square().mean())
        for s, g in zip(batch, GOALS, strict=True)
    ]
    toy = Toy(GOALS, good_below=sorted(start)[0] + 1e-6)
    optimise(batch, toy, replace(PLAIN, num_optim_steps=3))
    reasons = sorted(str(s.stop_reason) for s in batch)
    assert reasons == ["good_enough", "steps", "steps"]
    assert min(s.iteration for s in batch) == 0


def test_plateau_stops_after_patience():
    state = states(1)[0]
    toy = Toy(GOALS[:1], contrary=True, good_below=-1e9)
    optimise([state], toy, replace(PLAIN, num_optim_steps=50, patience=3))
    assert state.stop_reason == "plateau"
    assert state.iteration == 3
    assert state.best_iteration == 0


def test_resumed_run_ends_where_the_uninterrupted_one_does():
    config = replace(PLAIN, noise_scale=1e-2, num_optim_steps=6)
    straight = states()
    optimise(straight, Toy(GOALS, noisy=True), config)
    saved = {}

    def save_third(running):
        for i, state in enumerate(running):
            if state.iteration == 3:
                saved[i] = state_to_bytes(state)

    optimise(states(), Toy(GOALS, noisy=True), config, on_iteration=save_third)
    resumed = [state_from_bytes(saved[i]) for i in range(3)]
    assert [state.iteration for state in resumed] == [3, 3, 3]
    optimise(resumed, Toy(GOALS, noisy=True), config)
    for got, want in zip(resumed, straight, strict=True):
        torch.testing.assert_close(got.x, want.x, rtol=0, atol=0)
        assert got.loss_curve == want.loss_curve
        assert got.best_iteration == want.best_iteration


def test_checkpoint_holds_the_reason_for_the_stop():
    state = states(1)[0]
    optimise([state], Toy(GOALS[:1]), PLAIN)
    assert state_from_bytes(state_to_bytes(state)).stop_reason == "steps"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not safetensors",
        save({"x": torch.zeros(3)}),
        save({"values": torch.zeros(3)}),
        state_to_bytes(states(1)[0])[:-40],
    ],
    ids=["empty", "text", "other", "floats", "cut"],
)
def test_foreign_checkpoint_is_refused(data):
    with pytest.raises(OptimisationError, match="cannot be resumed"):
        state_from_bytes(data)


@pytest.mark.parametrize(
    "like",
    [torch.zeros(4, 6, 8, dtype=torch.float64), torch.zeros(4, 6, 6)],
    ids=["shape", "dtype"],
)
def test_checkpoint_of_other_latents_is_refused(like):
    with pytest.raises(OptimisationError, match="the photo's latents are"):
        state_from_bytes(state_to_bytes(states(1)[0]), like=like)


def test_gradient_shaping_acts_on_each_photo_alone():
    gradient = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    gradient[1] *= 1000
    config = OptimiserConfig(grad_mean_abs=5e-3, grad_clip_value=None)
    g_x, _ = shape_gradient(gradient, gradient, config)
    torch.testing.assert_close(g_x.abs().mean((1, 2, 3)), torch.tensor([5e-3, 5e-3]))
    flat = torch.zeros(1, 4, 8, 8)
    assert (shape_gradient(flat, flat, config)[0] == 0).all()


def test_clip_is_elementwise_and_after_tying():
    g_x = torch.full((1, 1, 2, 2), 4.0)
    g_y = torch.full((1, 1, 2, 2), -2.0)
    config = OptimiserConfig(tie_gradients=True, grad_clip_value=0.5)
    for shaped in shape_gradient(g_x, g_y, config):
        assert (shaped == 0.5).all()


@pytest.mark.parametrize("size", [(16, 24), (2, 3)])
def test_blur_keeps_constants_and_smooths_the_rest(size):
    constant = torch.full((1, 2, *size), 3.0)
    torch.testing.assert_close(blur_latents(constant, 2.0), constant)
    noise = torch.randn(1, 2, *size, generator=torch.Generator().manual_seed(0))
    assert blur_latents(noise, 2.0).std() < noise.std()
    assert blur_latents(noise, 0.0) is noise


def test_numbers_that_are_not_finite_stop_the_photo_alone():
    batch = states(2)
    batch[1].x = batch[1].x * float("nan")
    optimise(batch, Toy(GOALS[:2]), PLAIN)
    assert batch[0].stop_reason == "steps"
    assert batch[1].stop_reason == "diverged"
