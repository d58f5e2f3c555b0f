"""Seconds and memory of one optimisation iteration's gradient, beside the released code's.

    python -m tests.benchmarks.iteration --quick
    python -m tests.benchmarks.iteration --size pocket --repeats 3
    python -m tests.benchmarks.iteration --size 60m
    python -m tests.benchmarks.iteration --device cuda --dtype bf16 --size sd15 --compile \\
        --max-batch 32 --profile
    python -m tests.benchmarks.iteration --size sd15-reduced --quick      # that path on a CPU

What is timed: x_T to the loss of the image's latents and back (through the decoder and two vision
towers for the sd15 sizes, the same for every method). Two baselines: `released` computes
classifier-free guidance though the prompt is empty, as the released code does; `released, no CFG`
leaves that out and no more. Ours is unconditional. `forwards` is the arithmetic: network calls in
units of one forward, a pull-back counting one and one with weights two.

gradient_error is relative (L2, of both latents), EDICT's against the baseline's at the same T,
O-BELM's against plain autograd through its plain `generate` at T = 5.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import Any

import torch

from doodl.recipes.config import parse_memory
from tests.benchmarks.cases import (
    BASELINES,
    RELEASED,
    RELEASED_PLAIN,
    Case,
    belm_error,
    counts_of,
    gradient_of,
    relative_error,
    run,
    stored_bytes,
)
from tests.benchmarks.harness import finish, isolated, parser, prepare, table
from tests.benchmarks.limit import Calls, loss_flops, matrix_rate
from tests.benchmarks.models import SIZES, Workload, workload

COLUMNS = [
    "method", "memory", "num_inference_steps", "batch", "compiled", "seconds", "wall_seconds",
    "peak_mib", "forwards", "x_released", "x_released_arithmetic", "x_no_cfg",
    "x_no_cfg_arithmetic", "gradient_error", "fraction",
]  # fmt: skip


def cases(args: argparse.Namespace, load: Workload) -> list[Case]:
    """Return the rows of one size, the baselines of each T before ours."""
    long, short, longer = (10, 5, 20) if args.quick else (50, 20, 100)
    made = []
    room = parse_memory(f"budget:{args.stored}")[1]
    per_call = stored_bytes(load, 1)
    for steps, memories in (
        (long, ("checkpoint", "invert", f"budget:{args.budget}", "full")),
        (short, ("checkpoint", "full")),
    ):
        made += [Case(method, "checkpoint", steps) for method in BASELINES]
        for case in (Case(m, memory, steps) for m in ("edict", "belm") for memory in memories):
            if case.memory != "full" or per_call * counts_of(case, load).backward <= room:
                made.append(case)
    # For the memory alone: it must not grow with T.
    return made + [
        Case(method, memory, longer)
        for method in ("edict", "belm")
        for memory in ("checkpoint", "invert")
    ]


def larger_batches(case: Case, load: Workload, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows of doubling batches, until seconds per photo stop falling or memory ends."""
    rows: list[dict[str, Any]] = []
    batch = 2
    while batch <= args.max_batch:
        try:
            rows.append(run(replace(case, batch=batch), load, args.repeats))
        except torch.OutOfMemoryError:
            break
        if len(rows) > 1 and rows[-1]["seconds"] > 0.97 * rows[-2]["seconds"]:
            break
        batch *= 2
    return rows


def compare(rows: list[dict[str, Any]], load: Workload) -> None:
    """Add to each row how it stands beside the baselines of its T, and its gradient's error."""
    bases = {(r["method"], r["num_inference_steps"]): r for r in rows if r["method"] in BASELINES}
    errors: dict[str, float] = {}
    for row in rows:
        for name, column in ((RELEASED, "x_released"), (RELEASED_PLAIN, "x_no_cfg")):
            base = bases.get((name, row["num_inference_steps"]))
            if base is not None:
                row[column] = base["seconds"] / row["seconds"]
                row[f"{column}_arithmetic"] = base["forwards"] / row["forwards"]
        base = bases.get((RELEASED, row["num_inference_steps"]))
        memory = row["memory"]
        if row["method"] == "belm" and row["batch"] == 1 and not row["compiled"]:
            if memory not in errors:
                errors[memory] = belm_error(load, memory)
            row["gradient_error"] = errors[memory]
        elif base is not None and base is not row and row["batch"] == 1:
            row["gradient_error"] = relative_error(row["gradient"], base["gradient"])


def add_fractions(
    rows: list[dict[str, Any]], flops: dict[int, dict[str, int]], rate: float
) -> None:
    """Add to each row its FLOPs and the share of the matrix rate they were done at."""
    for row in rows:
        count = flops[row["batch"]]
        total = sum(row.get(kind, 0) * each for kind, each in count.items() if kind != "loss")
        total += count["loss"]
        row["gflop"] = total / 1e9
        row["fraction"] = total / (row["seconds"] * row["batch"]) / rate


def profile(load: Workload) -> str:
    """Return the ten operations that one O-BELM iteration at T = 10 spends most on."""
    on_gpu = load.device.type == "cuda"
    gradient = gradient_of(Case("belm", "checkpoint", 10), load)
    gradient()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if on_gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiled:
        gradient()
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    spent = {event.key: (getattr(event, key), event.count) for event in profiled.key_averages()}
    total = sum(time for time, _ in spent.values())
    rows = [
        {"operation": name, "calls": count, "share": time / total}
        for name, (time, count) in sorted(spent.items(), key=lambda item: -item[1][0])[:10]
    ]
    return table(rows, list(rows[0]))


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--size", choices=SIZES, default="pocket")
    options.add_argument("--budget", default="1GiB", help="of the budget rows")
    options.add_argument("--stored", default="6GiB", help="largest activations of a `full` row")
    options.add_argument("--compile", action="store_true", help="ours again, compiled")
    options.add_argument("--max-batch", type=int, default=1, help="doubling batches up to this")
    options.add_argument("--profile", action="store_true", help="name the top operations")
    args = options.parse_args()
    device, dtype = prepare(args)
    load = workload(args.size, device, dtype)
    notes = [f"{load.num_parameters() / 1e6:.1f} M parameters in the UNet, latents {load.shape}."]
    rate = isolated(lambda: matrix_rate(device, dtype), device)
    flops, batch = {}, 1
    while batch <= args.max_batch:  # before anything is compiled: the counter sees no further
        flops[batch] = isolated(
            lambda b=batch: {**Calls(load, b).flops(), "loss": loss_flops(load, b)}, device
        )
        batch *= 2
    rows = []

    def add(case: Case) -> None:
        rows.append(run(case, load, args.repeats))
        print(f"{case}: {rows[-1]['seconds']:.3g} s", file=sys.stderr, flush=True)

    made = cases(args, load)
    for case in made:
        add(case)
    ours = [Case(m, "checkpoint", made[0].num_inference_steps) for m in ("edict", "belm")]
    for case in ours:
        rows += larger_batches(case, load, args)
    if args.profile:
        notes.append(isolated(lambda: profile(load), device))
    if args.compile:
        load.unet.compile()
        for case in (replace(case, compiled=True) for case in ours):
            add(case)
            rows += larger_batches(case, load, args)
    compare(rows, load)
    add_fractions(rows, flops, rate)
    for row in rows:
        del row["gradient"]
    if device.type != "cuda":
        notes.append("Seconds are CPU seconds of one photo. The accelerator's column is open.")
    notes.append(f"Matrix rate in this run: {rate / 1e9:.1f} GFLOP/s in {args.dtype}.")
    finish("iteration", rows, COLUMNS, args, notes)


if __name__ == "__main__":
    main()
