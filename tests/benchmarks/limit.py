"""How near the networks run to the machine's own matrix rate.

    python -m tests.benchmarks.limit --quick
    python -m tests.benchmarks.limit                                   # pocket and 60m, batches
    python -m tests.benchmarks.limit --device cuda --dtype bf16 --size sd15

The limit is a large matrix product's FLOP/s, measured in the same run on the same threads; the
FLOPs of a network call are counted by torch.utils.flop_counter (products and convolutions: what is
left out, norms and activations, is the point of measuring). Seconds are CPU seconds on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from doodl import moves
from doodl.engine.sampling import denoise_to
from doodl.recipes.config import SamplerConfig
from tests.benchmarks.harness import Measured, finish, isolated, measure, parser, prepare
from tests.benchmarks.models import SIZES, Workload, workload

COLUMNS = [
    "size", "batch", "part", "gflop", "seconds", "gflop_per_second", "fraction", "peak_mib",
]  # fmt: skip


def seconds(measured: Measured, device: torch.device) -> float:
    """Return the seconds that count on this device."""
    return measured.wall_seconds if device.type == "cuda" else measured.cpu_seconds


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s of the best of several large matrix products."""
    size = 8192 if device.type == "cuda" else 1536
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    products = 20 if device.type == "cuda" else 1

    def work() -> None:
        for _ in range(products):
            left @ right

    work()
    return products * 2 * size**3 / seconds(measure(work, device, repeats=8), device)


def _flops(work: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


class Calls:
    """One network call and its pull-backs, at a batch size: to be counted and to be timed."""

    def __init__(self, load: Workload, batch: int) -> None:
        self.predict_noise, self.load = load.predictor(), load
        self.latents = load.noise(batch)
        self.t = load.schedule(10).timesteps[5].to(load.device)

    @torch.no_grad()
    def forward(self) -> Tensor:
        return self.predict_noise(self.latents, self.t)

    def forward_with_graph(self) -> tuple[Tensor, Tensor]:
        leaf = self.latents.clone().requires_grad_()
        return leaf, self.predict_noise(leaf, self.t)

    def forward_and_backward(self) -> Tensor:
        leaf, noise_pred = self.forward_with_graph()
        return torch.autograd.grad(noise_pred, leaf, torch.ones_like(noise_pred))[0]

    def flops(self) -> dict[str, int]:
        """Return FLOPs: forward, backward to the latents, backward to latents and weights."""
        leaf, noise_pred = self.forward_with_graph()
        backward = _pull_back_flops(noise_pred, [leaf])
        self.load.unet.requires_grad_(True)
        leaf, noise_pred = self.forward_with_graph()
        with_weights = _pull_back_flops(noise_pred, [leaf, *self.load.unet.parameters()])
        self.load.unet.requires_grad_(False)
        return {
            "forward": _flops(self.forward),
            "backward": backward,
            "weights_backward": with_weights,
        }


def _pull_back_flops(output: Tensor, inputs: list[Tensor]) -> int:
    # The counter's own hooks break a backward whose forward it saw: it is shown one half at a time.
    return _flops(lambda: torch.autograd.grad(output, inputs, torch.ones_like(output)))


def loss_flops(load: Workload, batch: int) -> int:
    """Return the FLOPs of the loss of the image's latents, there and back."""
    leaf = load.noise(batch).requires_grad_()
    loss = load.loss(leaf)
    return _flops(lambda: load.loss(leaf)) + _pull_back_flops(loss, [leaf])


def _rows(load: Workload, batch: int, steps: int, repeats: int) -> list[dict[str, Any]]:
    calls, device = Calls(load, batch), load.device
    flops = calls.flops()
    both = flops["forward"] + flops["backward"]
    schedule = load.schedule(steps)
    sampler = moves.belm(schedule.on(device))
    pair = denoise_to(
        calls.predict_noise, load.noise(batch), schedule, 0, SamplerConfig(kind="belm")
    )

    def iteration() -> None:
        x, y = (z.detach().requires_grad_() for z in pair)
        z_0 = moves.generate_with_grad(calls.predict_noise, sampler, (x, y))[0]
        torch.autograd.grad(load.loss(z_0).sum(), (x, y))

    num_calls = sum(move.num_calls for move in sampler)
    parts: dict[str, tuple[Callable[[], Any], int]] = {
        "forward": (calls.forward, flops["forward"]),
        "forward and backward": (calls.forward_and_backward, both),
        f"O-BELM iteration, checkpoint, T = {steps}": (
            iteration,
            num_calls * (flops["forward"] + both) + loss_flops(load, batch),
        ),
    }
    rows = []
    for part, (work, count) in parts.items():
        work()
        measured = measure(work, device, repeats)
        rows.append(
            {
                "size": load.name,
                "batch": batch,
                "part": part,
                "gflop": count / 1e9,
                "seconds": seconds(measured, device),
                "gflop_per_second": count / 1e9 / seconds(measured, device),
                "peak_mib": measured.peak_bytes / 2**20,
            }
        )
    return rows


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--size", choices=SIZES, action="append")
    options.add_argument("--batch", type=int, action="append")
    args = options.parse_args()
    device, dtype = prepare(args)
    sizes = args.size or (["pocket"] if args.quick else ["pocket", "60m"])
    batches = args.batch or ([1] if args.quick else [1, 4])
    rate = isolated(lambda: matrix_rate(device, dtype), device)
    rows = []
    for size in sizes:
        load = workload(size, device, dtype)
        for batch in batches:
            repeats = max(args.repeats, 3)
            rows += isolated(
                lambda load=load, batch=batch, n=repeats: _rows(load, batch, 5, n), device
            )
    for row in rows:
        row["matrix_gflop_per_second"] = rate / 1e9
        row["fraction"] = row["gflop_per_second"] * 1e9 / rate
    notes = [f"Matrix rate in this run: {rate / 1e9:.1f} GFLOP/s in {args.dtype}."]
    finish("limit", rows, COLUMNS, args, notes)


if __name__ == "__main__":
    main()
