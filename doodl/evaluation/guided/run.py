"""An evaluation of guided generation, from items to finished rows: by workers, resumable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from doodl.errors import DoodlError
from doodl.evaluation.guided.measures import Measure
from doodl.evaluation.guided.spec import GuidedSpec
from doodl.evaluation.guided.work import (
    ONE_STEP_START,
    DrawTask,
    doodl_change,
    run_draws,
    subject_of,
    tune_one_step,
)
from doodl.evaluation.rows import Row, fingerprint
from doodl.evaluation.run import Observer
from doodl.evaluation.store import Store
from doodl.evaluation.strengths import Strength
from doodl.evaluation.workers import Submit, finished, workers_of
from doodl.hub import find_model
from doodl.pocket import weights_dir
from doodl.revisions import folder_revision
from doodl.scores import POCKET_SCORERS

SUFFIX = ".png"


@dataclass
class GuidedEvaluation:
    """What was drawn and found.

    Attributes:
        rows: one per draw and method. strength: of the rival; None if it was not tuned.
        computed: rows that this run made; the others were there.
    """

    spec: GuidedSpec
    rows: list[Row]
    strength: Strength | None
    revisions: dict[str, str]
    computed: int


def run_guided(
    spec: GuidedSpec, out: Path, observer: Observer, *, workers: int = 1, redo: bool = False
) -> GuidedEvaluation:
    """Compute what the folder does not hold yet, and return all of it.

    Raises: ModelError for a missing model or measure, DoodlError for a subject that cannot be
    read, WorkerDiedError.
    """
    revisions = _revisions(spec)
    for name in spec.measures:  # now, and not in the first row
        Measure(name)
    draws = spec.draws()
    for draw in draws[: len(spec.items)]:
        subject_of(spec, draw)
    store = Store(out, SUFFIX)
    with workers_of(workers) as submit:
        strength = _tuned(spec, revisions, store, submit, observer, redo=redo)
        strengths = dict.fromkeys(spec.methods, 1.0)
        strengths["one-step"] = ONE_STEP_START if strength is None else strength.value
        recipes = {m: spec.recipe(m, strengths[m], revisions) for m in spec.methods}
        done = {} if redo else store.rows()
        tasks = []
        size = spec.batch_size
        for start in range(0, len(draws), size):
            for method, recipe in recipes.items():
                batch = draws[start : start + size]
                missing = tuple(d for d in batch if (d.case, recipe) not in done)
                if missing:
                    tasks.append(DrawTask(missing, method, strengths[method], recipe))
        computed = sum(len(task.draws) for task in tasks)
        observer.start(computed)
        for measured in finished([submit(run_draws, spec, task) for task in tasks]):
            store.add(measured)
            for row in (m.row for m in measured):
                name = f"{row['item']}, seed {row['seed']} ({row['method']})"
                observer.row(name, row["status"], row["error"])
    done = store.rows()
    rows = [done[draw.case, recipe] for draw in draws for recipe in recipes.values()]
    if all(row["status"] == "failed" for row in rows):
        raise DoodlError(f"every picture failed; the first: {rows[0]['error']}")
    return GuidedEvaluation(spec, rows, strength, revisions, computed)


def _tuned(
    spec: GuidedSpec,
    revisions: dict[str, str],
    store: Store,
    submit: Submit,
    observer: Observer,
    *,
    redo: bool,
) -> Strength | None:
    """Return the rival's weight at which it changes pictures as DOODL does; None without both."""
    if not {"one-step", "doodl"} <= set(spec.methods) or not spec.validation:
        return None
    cases = [draw.case for draw in spec.validation_draws()]
    key = fingerprint([spec.recipe("doodl", 1.0, revisions), cases])
    kept = store.strength(key)
    if kept is not None and not redo:
        return kept
    observer.message(f"tuning one-step on {spec.validation} pictures of other seeds")
    target = next(finished([submit(doodl_change, spec)]))
    if target <= 0:
        observer.message("DOODL changed no picture of those: one-step is not tuned")
        return None
    found = next(finished([submit(tune_one_step, spec, target)]))
    store.put_strength(key, found)
    return found


def _revisions(spec: GuidedSpec) -> dict[str, str]:
    folders = {"model": find_model(spec.model)}
    names: Sequence[str] = [name for name in spec.measures if name in POCKET_SCORERS]
    folders |= {name: weights_dir() / POCKET_SCORERS[name] for name in names}
    if spec.model == "pocket":
        folders |= {"guide": weights_dir() / "tower"}
        if (weights_dir() / "classifier").is_dir():
            folders["classifier"] = weights_dir() / "classifier"
    return {name: folder_revision(folder) for name, folder in folders.items()}
