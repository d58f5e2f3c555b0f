"""With every fast option off, and whatever memory stores all: the plain algorithm, bit for bit."""

from dataclasses import replace

import pytest
import torch

from doodl import edict, moves
from doodl.backbones import load_backbone
from doodl.engine.sampling import denoise_to, generate
from doodl.optimise import Judgement, LatentState, optimise
from doodl.recipes.config import OptimiserConfig, SamplerConfig

PLAIN = OptimiserConfig(
    num_optim_steps=2, learning_rate=0.5, grad_clip_value=1e-3, decode_pair=False, patience=0,
    min_optim_steps=0, grad_blur_sigma=0.0, grad_mean_abs=None, tie_gradients=False,
    tie_latents=False, renormalise=False,
)  # fmt: skip
T = 10


@pytest.fixture(scope="module")
def backbone():
    torch.set_num_threads(1)
    return load_backbone("pocket")


def loss_of(images):
    return (images - 0.3).square().mean((1, 2, 3))


class Problem:
    def __init__(self, backbone, sampler):
        self.backbone, self.sampler = backbone, sampler
        self.predictor = backbone.predictor([""])
        self.schedule = backbone.schedule(T)

    def generate(self, x, y):
        return generate(self.predictor, x, y, self.schedule, self.sampler)

    def decode(self, latents):
        return self.backbone.decode(latents)

    def judge(self, images, generators):
        loss = loss_of(images)
        return Judgement(loss, loss.detach(), torch.zeros_like(loss, dtype=torch.bool))

    def keep(self, indices):
        assert list(indices) == [0]
        return self


def plainly(backbone, sampler, x, y):
    """The updates of DOODL's Algorithm 1 by autograd through the steps, and nothing else."""
    schedule, predictor = backbone.schedule(T), backbone.predictor([""])
    m_x, m_y = torch.zeros_like(x), torch.zeros_like(y)
    for _ in range(PLAIN.num_optim_steps):
        a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
        if sampler.kind == "edict":
            x_0, _ = edict.generate(predictor, a, b, schedule, mix_weight=sampler.p)
        else:
            x_0, _ = moves.generate(predictor, moves.belm(schedule), (a, b))
        g_x, g_y = torch.autograd.grad(loss_of(backbone.decode(x_0)).sum(), (a, b))
        m_x = PLAIN.momentum * m_x + g_x.clamp(-1e-3, 1e-3)
        m_y = PLAIN.momentum * m_y + g_y.clamp(-1e-3, 1e-3)
        x, y = x - PLAIN.learning_rate * m_x, y - PLAIN.learning_rate * m_y
    return x, y


@pytest.mark.parametrize("kind", ["edict", "belm"])
@pytest.mark.parametrize("memory", ["full", "checkpoint", "budget:64MiB"])
def test_fast_options_off_are_the_plain_algorithm(backbone, kind, memory):
    sampler = SamplerConfig(kind=kind, num_inference_steps=T, memory=memory)
    noise = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(3))
    x, y = denoise_to(backbone.predictor([""]), noise, backbone.schedule(T), 0, sampler)
    state = LatentState.start(x[0], y[0], seed=0)
    optimise([state], Problem(backbone, sampler), PLAIN)
    want_x, want_y = plainly(backbone, sampler, x, y)
    assert not torch.equal(state.x, x[0])
    if memory == "full":
        assert torch.equal(state.x, want_x[0])
        assert torch.equal(state.y, want_y[0])
    else:
        # The walk back adds the same terms in its own order; the walk down is the same to the bit.
        for got, want in ((state.x, want_x[0]), (state.y, want_y[0])):
            assert ((got - want).norm() / (want - x[0]).norm()).item() < 1e-5
    other = LatentState.start(x[0], y[0], seed=0)
    optimise([other], Problem(backbone, replace(sampler, memory="full")), PLAIN)
    assert state.loss_curve[0] == other.loss_curve[0]
