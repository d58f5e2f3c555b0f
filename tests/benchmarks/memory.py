"""Peak of live tensors of an iteration at T and 2T: it grows by the stored latents alone.

    python -m tests.benchmarks.memory --quick
    python -m tests.benchmarks.memory                     # pocket, T = 50 and 100
    python -m tests.benchmarks.memory --size 60m --batch 1

Counted by the allocator's own record, to the byte, where the iteration benchmark's resident memory
holds the allocator's slack too. growth is the peak at 2T over that at T, the weights counted in as
a process holds them; own_growth leaves them out. `checkpoint` stores the input of every call, two
latents a step (EDICT) or one (O-BELM); `invert` stores nothing.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import torch

from tests.benchmarks.cases import Case, gradient_of
from tests.benchmarks.harness import finish, isolated, parser, prepare
from tests.benchmarks.models import SIZES, Workload, workload

COLUMNS = [
    "size", "method", "memory", "batch", "steps", "weights_mib", "peak_mib", "peak_at_2t_mib",
    "growth", "own_growth",
]  # fmt: skip

_TRIES = 6


def peak_live_bytes(case: Case, load: Workload) -> int:
    """Return the peak of bytes allocated and not yet freed while the gradient is made."""
    gradient = gradient_of(case, load)
    if load.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        gradient()
        return torch.cuda.max_memory_allocated() - before
    for _ in range(_TRIES):
        with torch.profiler.profile(profile_memory=True) as profile:
            gradient()
        live = peak = 0
        for event in profile.profiler.kineto_results.events():
            if event.name() == "[memory]":
                live += event.nbytes()
                peak = max(peak, live)
        # The profiler loses events now and then, and then the sum says so; a few small tensors
        # may stay.
        if abs(live) <= peak // 50:
            return peak
    raise RuntimeError(f"the profiler lost events {_TRIES} times on end; run it again.")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--size", choices=SIZES, default="pocket")
    options.add_argument("--batch", type=int, default=1)
    options.add_argument("--steps", type=int, help="T (default 50, 5 with --quick)")
    args = options.parse_args()
    device, dtype = prepare(args)
    load = workload(args.size, device, dtype)
    steps = args.steps or (5 if args.quick else 50)
    weights = sum(w.numel() * w.element_size() for w in load.unet.parameters())
    rows: list[dict[str, Any]] = []
    for method in ("edict", "belm"):
        for memory in ("checkpoint", "invert"):
            cases = [Case(method, memory, n, args.batch) for n in (steps, 2 * steps)]
            peaks = [isolated(partial(peak_live_bytes, case, load), device) for case in cases]
            print(cases[0], peaks, file=sys.stderr, flush=True)
            rows.append(
                {
                    "size": load.name,
                    "method": method,
                    "memory": memory,
                    "batch": args.batch,
                    "steps": steps,
                    "weights_mib": weights / 2**20,
                    "peak_mib": peaks[0] / 2**20,
                    "peak_at_2t_mib": peaks[1] / 2**20,
                    "growth": (peaks[1] + weights) / (peaks[0] + weights) - 1,
                    "own_growth": peaks[1] / peaks[0] - 1,
                }
            )
    finish("memory", rows, COLUMNS, args)


if __name__ == "__main__":
    main()
