"""Which CPU settings pay: threads, memory format, inference mode, batch.

    python -m tests.benchmarks.settings --quick
    python -m tests.benchmarks.settings --size 60m

Each row is one network call, or one gradient-free generation, with the setting off and on; what
counts is CPU seconds, and wall seconds for the threads. ratio is the plain setting's seconds over
the row's: above one, the setting pays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from doodl import edict
from tests.benchmarks.harness import finish, isolated, measure, parser, prepare
from tests.benchmarks.limit import Calls
from tests.benchmarks.models import SIZES, Workload, workload

PARTS = ("forward", "forward and backward")


def _calls(load: Workload, batch: int, repeats: int, **setting: Any) -> dict[str, Any]:
    """Return {part: Measured} of one call, under threads= and channels_last=."""

    def work() -> dict[str, Any]:
        torch.set_num_threads(setting.get("threads", 1))
        calls = Calls(load, batch)
        if setting.get("channels_last"):
            load.unet.to(memory_format=torch.channels_last)
            calls.latents = calls.latents.contiguous(memory_format=torch.channels_last)
        calls.forward_and_backward()
        parts: dict[str, Callable[[], Any]] = {
            "forward": calls.forward,
            "forward and backward": calls.forward_and_backward,
        }
        # Numbers alone come back from the process.
        return {
            part: replace(measure(run, load.device, repeats), value=None)
            for part, run in parts.items()
        }

    return isolated(work, load.device)


def _generations(load: Workload, batch: int, steps: int, repeats: int) -> dict[str, Any]:
    """Return {mode: Measured} of a generation without a gradient."""
    predictor, schedule, noise = load.predictor(), load.schedule(steps), load.noise(batch)

    def work() -> dict[str, Any]:
        made = {}
        for mode in (torch.no_grad, torch.inference_mode):

            def generation(mode: Any = mode) -> None:
                with mode():
                    edict.generate(predictor, noise, noise, schedule)

            generation()
            made[mode.__name__] = measure(generation, load.device, repeats)
        return made

    return isolated(work, load.device)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--size", choices=SIZES, default="pocket")
    options.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    args = options.parse_args()
    device, dtype = prepare(args)
    load = workload(args.size, device, dtype)
    repeats = max(args.repeats, 5 if args.quick else 20)
    rows = []

    def add(setting: str, part: str, batch: int, measured: Any, plain: Any) -> None:
        rows.append(
            {
                "size": load.name,
                "batch": batch,
                "part": part,
                "setting": setting,
                "cpu_seconds": measured.cpu_seconds,
                "wall_seconds": measured.wall_seconds,
                "cpu_ratio": plain.cpu_seconds / measured.cpu_seconds,
                "wall_ratio": plain.wall_seconds / measured.wall_seconds,
            }
        )

    settings: dict[str, dict[str, Any]] = {
        "plain": {},
        "channels last": {"channels_last": True},
        "2 threads": {"threads": 2},
    }
    for batch in args.batches:
        measured = {name: _calls(load, batch, repeats, **on) for name, on in settings.items()}
        for part in PARTS:
            for name in settings:
                add(name, part, batch, measured[name][part], measured["plain"][part])
        modes = _generations(load, batch, 5, max(3, repeats // 5))
        for name, one in modes.items():
            add(name, "generation, T = 5", batch, one, modes["no_grad"])
    finish("settings", rows, list(rows[0]), args)


if __name__ == "__main__":
    main()
