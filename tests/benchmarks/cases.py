"""The rows of the iteration benchmark: each method's gradient, and the network calls it makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from doodl.engine.network_call import activation_bytes
from doodl.engine.sampling import denoise_to, generate, sampler_of
from doodl.recipes.config import SamplerConfig, parse_memory
from tests.benchmarks.harness import isolated, measure
from tests.benchmarks.limit import Calls, seconds
from tests.benchmarks.models import Workload
from tests.benchmarks.released import MIX_WEIGHT, released_iteration

RELEASED, RELEASED_PLAIN = "released", "released, no CFG"
BASELINES = (RELEASED, RELEASED_PLAIN)


@dataclass(frozen=True)
class Case:
    """A row: which method, what it keeps, at how many steps, for how many photos at once."""

    method: str
    memory: str
    num_inference_steps: int
    batch: int = 1
    compiled: bool = False


@dataclass(frozen=True)
class Counts:
    """Network calls of one iteration, each of the whole batch; pull-backs with weights apart."""

    forward: int
    backward: int
    weights_backward: int = 0

    @property
    def forwards(self) -> int:
        """In units of a forward: a pull-back to the latents is one, with weights two."""
        return self.forward + self.backward + 2 * self.weights_backward


def config_of(case: Case) -> SamplerConfig:
    return SamplerConfig(kind=case.method, mix_weight=MIX_WEIGHT, memory=case.memory)


def gradient_of(case: Case, load: Workload) -> Callable[[], tuple[Tensor, ...]]:
    """Return what makes one gradient of the case; what a photo does once is done here."""
    steps = case.num_inference_steps
    if case.method in BASELINES:
        return lambda: released_iteration(load, steps, guided=case.method == RELEASED)
    predictor, schedule, noise = load.predictor(), load.schedule(steps), load.noise(case.batch)
    pair = denoise_to(predictor, noise, schedule, 0, config_of(case))

    def gradient() -> tuple[Tensor, ...]:
        x, y = (z.detach().clone().requires_grad_() for z in pair)
        z_0 = generate(predictor, x, y, schedule, config_of(case))[0]
        return torch.autograd.grad(load.loss(z_0).sum(), (x, y))

    return gradient


def stored_bytes(load: Workload, batch: int) -> int:
    """Return the activations of one call of `batch` photos."""
    calls = Calls(load, batch)
    return activation_bytes(calls.predict_noise, calls.latents, calls.t)


def counts_of(case: Case, load: Workload) -> Counts:
    schedule = load.schedule(case.num_inference_steps)
    if case.method in BASELINES:
        calls = len(schedule) * 2 * (2 if case.method == RELEASED else 1)
        return Counts(2 * calls, 0, calls)
    calls = sum(m.num_calls for m in sampler_of(schedule, config_of(case), torch.empty(0)))
    mode, budget = parse_memory(case.memory)
    kept = calls if mode == "full" else 0
    if mode == "budget":
        kept = min(calls, budget // max(stored_bytes(load, case.batch), 1))
    return Counts(calls + calls - kept, calls)


def run(case: Case, load: Workload, repeats: int) -> dict[str, Any]:
    """Return the case's row; `seconds` are one photo's, `gradient` is on the CPU."""

    def work() -> dict[str, Any]:
        Calls(load, case.batch).forward_and_backward()  # kernels chosen, caches warm
        gradient = gradient_of(case, load)
        if case.compiled:
            gradient()
        measured = measure(gradient, load.device, repeats)
        return {
            **asdict(case),
            "cpu_seconds": measured.cpu_seconds,
            "wall_seconds": measured.wall_seconds,
            "seconds": seconds(measured, load.device) / case.batch,
            "peak_mib": measured.peak_bytes / 2**20,
            "gradient": [z.double().cpu().numpy() for z in measured.value],
        }

    row = isolated(work, load.device)
    # Apart as well: a compiled network that has run here could not be forked for the next row.
    counts = isolated(lambda: counts_of(case, load), load.device)
    return {"size": load.name, **row, **asdict(counts), "forwards": counts.forwards}


def relative_error(got: list[Any], want: list[Any]) -> float:
    """Return the L2 error of both latents' gradients together."""
    off = sum(((g - w) ** 2).sum() for g, w in zip(got, want, strict=True))
    return float((off / sum((w**2).sum() for w in want)) ** 0.5)


def belm_error(load: Workload, memory: str) -> float:
    """Return O-BELM's gradient error against plain autograd, at T = 5."""
    got, want = (
        isolated(
            lambda case=Case("belm", mode, 5): [
                z.double().cpu().numpy() for z in gradient_of(case, load)()
            ],
            load.device,
        )
        for mode in (memory, "full")
    )
    return relative_error(got, want)
