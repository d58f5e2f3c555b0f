"""How an iteration's cost grows: with steps, photos at once, resolution, and processes.

    python -m tests.benchmarks.scaling --quick
    python -m tests.benchmarks.scaling
    python -m tests.benchmarks.scaling --device cuda --dtype bf16 --size sd15 --batches 1 2 4 8 16

One axis moves at a time, from T = 20 (10 with --quick), one photo, the size's own resolution, one
process. Processes share the machine's cores, one thread each, so what counts there is wall
seconds, and only on a quiet machine. photos_per_hour is of iterations: 3600 / (wall seconds of
one iteration of all photos / photos); divide it by the iterations that a photo takes.
"""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import replace
from typing import Any

from tests.benchmarks.cases import Case, gradient_of, run
from tests.benchmarks.harness import finish, parser, prepare
from tests.benchmarks.limit import Calls
from tests.benchmarks.models import SIZES, Workload, workload

COLUMNS = [
    "axis", "method", "num_inference_steps", "batch", "latents", "workers", "seconds",
    "wall_seconds", "peak_mib", "photos_per_hour",
]  # fmt: skip


def at_resolution(load: Workload, side: int) -> Workload:
    return replace(load, shape=(load.shape[0], side, side))


def row_of(axis: str, case: Case, load: Workload, repeats: int) -> dict[str, Any]:
    row = run(case, load, repeats)
    del row["gradient"]
    rate = 3600 * case.batch / row["wall_seconds"]
    latents = f"{load.shape[1]}x{load.shape[2]}"
    return {"axis": axis, **row, "latents": latents, "workers": 1, "photos_per_hour": rate}


def _work(case: Case, load: Workload, start: Any, ended: Any) -> None:
    Calls(load, case.batch).forward_and_backward()
    gradient = gradient_of(case, load)
    start.wait()
    began = time.process_time()
    gradient()
    ended.put(time.process_time() - began)


def side_by_side(case: Case, load: Workload, workers: int) -> dict[str, Any]:
    """Return the row of `workers` processes making one iteration each, started together."""
    context = multiprocessing.get_context("fork")
    start, ended = context.Barrier(workers + 1), context.Queue()
    processes = [
        context.Process(target=_work, args=(case, load, start, ended)) for _ in range(workers)
    ]
    for process in processes:
        process.start()
    start.wait()
    began = time.perf_counter()
    cpu = [ended.get() for _ in processes]
    wall = time.perf_counter() - began
    for process in processes:
        process.join()
    return {
        "axis": "workers",
        "method": case.method,
        "num_inference_steps": case.num_inference_steps,
        "batch": case.batch,
        "latents": f"{load.shape[1]}x{load.shape[2]}",
        "workers": workers,
        "seconds": sum(cpu) / len(cpu) / case.batch,
        "wall_seconds": wall,
        "photos_per_hour": 3600 * workers * case.batch / wall,
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--size", choices=SIZES, default="pocket")
    options.add_argument("--steps", type=int, nargs="+")
    options.add_argument("--batches", type=int, nargs="+")
    options.add_argument("--sides", type=int, nargs="+", help="of the latents")
    options.add_argument("--workers", type=int, nargs="+")
    args = options.parse_args()
    device, dtype = prepare(args)
    load = workload(args.size, device, dtype)
    side = load.shape[1]
    quick = args.quick
    steps = args.steps or ((5, 10) if quick else (10, 20, 50, 100))
    batches = args.batches or ((1, 4) if quick else (1, 2, 4, 8, 16))
    sides = args.sides or ((side, 2 * side) if quick else (side, 2 * side, 3 * side))
    # Forked processes share the weights' memory; an accelerator's would not.
    workers = () if device.type == "cuda" else args.workers or (1, 2)
    rows = []
    for method in ("edict", "belm"):
        case = Case(method, "checkpoint", 10 if quick else 20)
        alone = (
            [("steps", replace(case, num_inference_steps=n), load) for n in steps]
            + [("batch", replace(case, batch=n), load) for n in batches]
            + [("resolution", case, at_resolution(load, n)) for n in sides]
        )
        rows += [row_of(*one, args.repeats) for one in alone]
        rows += [side_by_side(case, load, n) for n in workers]
    finish("scaling", rows, COLUMNS, args)


if __name__ == "__main__":
    main()
