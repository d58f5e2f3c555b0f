"""Photos per hour at equal referee gain: what each quality and each fast option earns and costs.

    python -m tests.benchmarks.photos FOLDER_OR_PARQUET... --number 3 --variants fast balanced
    python -m tests.benchmarks.photos FOLDER_OR_PARQUET... --number 50 --variants quality
    python -m tests.benchmarks.photos FOLDER_OR_PARQUET... --number 30 --variants paper curves

Photos are drawn and dulled as `doodl-batch evaluate enhance` does it, edited upward one by one by
each variant of the pocket preset, and judged by the referee, which guides, stops and rejects
nothing. An edit that is not delivered gains 0. Seconds are processor seconds of the edit, from the
decoded photo to the delivered file's bytes and scores; calls are forward passes of the UNet.

A row is appended to WORK for each photo and variant as it ends, photo after photo: the same command
goes on where a kill or --limit-seconds left it, and one recipe is never measured twice. Shares are
of `paper`'s, over the photos that both have.

`released, reckoned` was not run on photos: it is the seconds of one iteration of the released
code's method (`tests.benchmarks.released`, T = 50, its guidance, memcnn; the sampler alone, without
decoder and guide) times the iterations that `paper` took.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from doodl.editing.editor import PhotoEditor, load_editor
from doodl.evaluation.cases import Case, Draw, Prepared, draw_cases, prepare
from doodl.evaluation.methods import METHODS, Cost, counted, make_request, run_method
from doodl.evaluation.referee import default_referee, load_referee
from doodl.evaluation.rows import Measured, Models, Row, Run, case_id, measure
from doodl.evaluation.store import Store
from doodl.evaluation.work import EvaluationSpec
from doodl.evaluation.workers import completed, result_of, workers_of
from doodl.recipes.config import EditConfig
from doodl.recipes.presets import preset
from pipeline.evaluation import read_sources
from tests.benchmarks.cases import RELEASED
from tests.benchmarks.cases import Case as IterationCase
from tests.benchmarks.cases import run as run_iteration
from tests.benchmarks.harness import finish, parser
from tests.benchmarks.harness import prepare as prepare_torch
from tests.benchmarks.models import workload
from tests.benchmarks.variants import (
    PRESET,
    REFERENCE,
    VARIANTS,
    Variant,
    chosen_variants,
    summary,
)

COLUMNS = [
    "variant", "changes", "photos", "referee_gain", "gain_low", "gain_high", "gain_share",
    "share_low", "share_high", "delivered", "iterations", "cpu_seconds", "time_share",
    "unet_calls", "photos_per_hour",
]  # fmt: skip
RECKONED = "released, reckoned"


@dataclass(frozen=True)
class Task:
    """One photo to edit by one variant; sent to worker processes."""

    case: Case
    config: EditConfig
    run: Run
    variant: str
    referee: str
    max_px: int


@lru_cache(maxsize=1)
def _loaded(referee: str) -> Models:
    """Load the models once per process, and run them once: the first call is slower."""
    editor = counted(load_editor(PRESET, preset(PRESET)))
    models = Models(editor, load_referee(referee))
    with torch.no_grad():
        frame = torch.zeros(1, 3, editor.config.working_px, editor.config.working_px)
        latents = editor.backbone.encode(frame)
        t = editor.backbone.schedule(10).timesteps[5]
        editor.backbone.predictor([""])(latents, t)
        editor.backbone.decode(latents)
        for scorer in (editor.guide, editor.judge, models.referee):
            scorer(frame)
    return models


@lru_cache(maxsize=2)
def _prepared(case: Case, max_px: int) -> Prepared:
    return prepare(case, max_px)


def edit_one(task: Task) -> Measured:
    """Return the finished row of a task; an edit that fails has a row that says so."""
    loaded = _loaded(task.referee)
    shipped = loaded.editor
    editor = PhotoEditor(shipped.backbone, shipped.guide, shipped.judge, task.config)
    prepared = _prepared(task.case, task.max_px)
    request = make_request(prepared.photo, task.run.direction, task.case.seed)
    began = time.perf_counter()
    outcome: Any
    try:
        (outcome,), cost = run_method(METHODS["edit"], editor, [request], 1.0)
    except Exception as error:  # the row boundary
        outcome, cost = error, Cost(0.0, 0.0)
    wall = time.perf_counter() - began
    measured = measure(Models(editor, loaded.referee), task.run, task.case, prepared, outcome, cost)
    return Measured({**measured.row, "wall_seconds": wall, "variant": task.variant}, b"")


def tasks_of(cases: Sequence[Case], variants: Sequence[Variant], referee: str) -> list[Task]:
    """Return every photo's tasks, photo after photo; of variants with one recipe, the first's."""
    draw = Draw()
    base = EvaluationSpec(referee, draw, preset(PRESET), methods=("edit",), directions=("up",))
    revisions = base.revisions()
    recipes: dict[str, tuple[Variant, Run]] = {}
    for variant in variants:
        spec = EvaluationSpec(referee, draw, variant.config, methods=("edit",), directions=("up",))
        run = spec.run("edit", "up", 1.0, revisions)
        recipes.setdefault(run.recipe, (variant, run))
    return [
        Task(case, variant.config, run, variant.name, referee, draw.max_px)
        for case in cases
        for variant, run in recipes.values()
    ]


def run_tasks(
    tasks: Sequence[Task], store: Store, *, workers: int, limit_seconds: float
) -> Iterator[Row]:
    """Work through what the store has not finished; yield each row once it is kept."""
    done = store.rows()
    left = [task for task in tasks if (case_id(task.case), task.run.recipe) not in done]
    began, running = time.monotonic(), list[Future[Measured]]()
    with workers_of(workers) as submit:
        while True:
            in_time = not limit_seconds or time.monotonic() - began < limit_seconds
            while left and in_time and len(running) < workers:
                running.append(submit(edit_one, left.pop(0)))
            if not running:
                return
            future = next(completed(running))
            running.remove(future)
            measured = result_of(future)
            store.add([measured])
            yield measured.row


def rows_by_variant(
    variants: Sequence[Variant], tasks: Sequence[Task], finished: dict[tuple[str, str], Row]
) -> dict[str, dict[str, Row]]:
    """Return each variant's finished rows by case; variants of one recipe share theirs."""
    cases = list(dict.fromkeys(case_id(task.case) for task in tasks))
    recipe_of = {task.config: task.run.recipe for task in tasks}
    return {
        variant.name: {
            case: finished[case, recipe]
            for case in cases
            for recipe in [recipe_of[variant.config]]
            if (case, recipe) in finished
        }
        for variant in variants
    }


def released_line(seconds: float, paper: dict[str, Any], size: str, steps: int) -> dict[str, Any]:
    """Return the reckoned line of the released code's method: `paper`'s iterations, its seconds."""
    total = seconds * paper["iterations"]
    return {
        "variant": RECKONED,
        "changes": f"{seconds:.3g} s an iteration, {size}, T = {steps}, x paper's iterations",
        "iterations": paper["iterations"],
        "cpu_seconds": total,
        "time_share": total / paper["cpu_seconds"],
        "photos_per_hour": 3600 / total,
    }


def _released(args: argparse.Namespace, paper: dict[str, Any]) -> dict[str, Any]:
    device, dtype = prepare_torch(args)
    steps = 5 if args.quick else 50
    row = run_iteration(
        IterationCase(RELEASED, "checkpoint", steps), workload("pocket", device, dtype),
        args.repeats,
    )  # fmt: skip
    return released_line(row["seconds"], paper, "pocket", steps)


def _say(row: Row) -> None:
    print(
        f"{row['photo']}, {row['variant']}: {row['status']}, {row['cpu_seconds']:.1f} s",
        file=sys.stderr,
        flush=True,
    )


def measured_lines(
    args: argparse.Namespace, tell: Callable[[Row], None] = _say
) -> tuple[list[dict[str, Any]], list[str]]:
    """Run what is left to run; return the lines of the table and the notes under it."""
    variants = chosen_variants(args.variants)
    sources = read_sources(args.photos, args.work)
    # The photos that tuning may look at are drawn as an evaluation draws them, and left out.
    drawn = draw_cases(sources, Draw(num_dulled=args.number, num_untouched=0))
    cases = [case for case in drawn.cases if case.set == "dulled"]
    if len(cases) < args.number:
        print(f"only {len(cases)} photos there can be dulled", file=sys.stderr)
    store = Store(args.work)
    tasks = tasks_of(cases, variants, args.referee)
    for row in run_tasks(tasks, store, workers=args.workers, limit_seconds=args.limit_seconds):
        tell(row)
    by_variant = rows_by_variant(variants, tasks, store.rows())
    reference = by_variant.get(REFERENCE, {})
    lines = [summary(v, by_variant[v.name], reference) for v in variants]
    left = len(cases) * len(variants) - sum(map(len, by_variant.values()))
    notes = [
        f"{len(cases)} dulled photos of {len(sources)}; not delivered counts as a gain of 0; "
        f"intervals are 95 % bootstrap, shares are of {REFERENCE}'s on the same photos."
    ]
    if left:
        notes.append(f"{left} edits are not done yet; the same command goes on.")
    failed = sum(line.get("failed", 0) for line in lines)
    if failed:
        notes.append(f"{failed} edits failed; their gain is 0. The rows in {args.work} say why.")
    return lines, notes


def main() -> None:
    options = parser(__doc__)
    options.add_argument("photos", type=Path, nargs="+", help="folders, manifests, Parquet files")
    options.add_argument("--number", type=int, default=50, help="dulled photos (default 50)")
    options.add_argument(
        "--variants", nargs="+", default=["quality"], metavar="NAME",
        help=f"quality, curves, or names: {', '.join(VARIANTS)} (default quality)",
    )  # fmt: skip
    options.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    options.add_argument(
        "--limit-seconds", type=float, default=0, help="begin nothing after so many"
    )
    options.add_argument(
        "--work", type=Path, default=Path("runs/benchmarks/photos"), help="finished rows lie here"
    )
    options.add_argument("--referee", default=str(default_referee()))
    options.add_argument("--no-released", action="store_true", help="leave out the reckoned row")
    args = options.parse_args()
    if args.device != "cpu" or args.threads != 1 or args.dtype != "float32":
        options.error("photos are measured on the CPU, in float32, by processes of one thread.")
    lines, notes = measured_lines(args)
    paper = next((n for n in lines if n["variant"] == REFERENCE and n["photos"]), None)
    if paper is not None and not args.no_released:
        if importlib.util.find_spec("memcnn") is None:
            notes.append(f"{RECKONED} needs memcnn: pip install '.[bench]'.")
        else:
            lines.append(_released(args, paper))
    finish("photos", lines, COLUMNS, args, notes)


if __name__ == "__main__":
    main()
