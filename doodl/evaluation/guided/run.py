"""An evaluation of guided generation, from items to finished rows: by workers, resumable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from doodl.errors import DoodlError
from doodl.evaluation.guided.measures import Measure
from doodl.evaluation.guided.methods import GUIDED_METHODS
from doodl.evaluation.guided.spec import GuidedSpec
from doodl.evaluation.guided.work import (
    DrawTask,
    doodl_change,
    run_draws,
    subject_of,
    tune,
)
from doodl.evaluation.rows import Row, fingerprint
from doodl.evaluation.run import Observer
from doodl.evaluation.store import Store
from doodl.evaluation.strengths import Strength
from doodl.evaluation.workers import Submit, finished, result_of, workers_of
from doodl.guidance.revisions import guide_revisions, tower_revisions
from doodl.guidance.spec import GuideSpec
from doodl.models.hub import find_model
from doodl.models.revisions import folder_revision
from doodl.pocket import weights_dir
from doodl.scores import POCKET_SCORERS

SUFFIX = ".png"


@dataclass
class GuidedEvaluation:
    """What was drawn and found.

    Attributes:
        rows: one per draw and method. strengths: of the methods that were tuned to change
            pictures as much as DOODL.
        computed: rows that this run made; the others were there.
    """

    spec: GuidedSpec
    rows: list[Row]
    strengths: dict[str, Strength]
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
        tuned = _tuned(spec, revisions, store, submit, observer, redo=redo)
        strengths = {
            name: tuned[name].value if name in tuned else GUIDED_METHODS[name].start
            for name in spec.methods
        }
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
    return GuidedEvaluation(spec, rows, tuned, revisions, computed)


def _tuned(
    spec: GuidedSpec,
    revisions: dict[str, str],
    store: Store,
    submit: Submit,
    observer: Observer,
    *,
    redo: bool,
) -> dict[str, Strength]:
    """Return the strength of each method with a knob at which it changes pictures as DOODL does.

    There is none without DOODL among the methods, or without pictures to tune on.
    """
    names = [name for name in spec.methods if GUIDED_METHODS[name].knob]
    if "doodl" not in spec.methods or not spec.validation or spec.on_validation:
        return {}
    cases = [draw.case for draw in spec.validation_draws()]
    doodl = spec.recipe("doodl", 1.0, revisions)
    # One-step was the only one at first, and its key had no name.
    keys = {
        name: fingerprint([doodl, cases, *([] if name == "one-step" else [name])])
        for name in names
    }  # fmt: skip
    found = {n: kept for n, key in keys.items() if not redo and (kept := store.strength(key))}
    missing = [name for name in names if name not in found]
    if not missing:
        return found
    observer.message(f"tuning {', '.join(missing)} on {spec.validation} pictures of other seeds")
    known = next((strength.target for strength in found.values()), None)
    target = next(finished([submit(doodl_change, spec)])) if known is None else known
    if target <= 0:
        observer.message("DOODL changed no picture of those: strengths are not tuned")
        return {}
    for name, future in [(name, submit(tune, spec, name, target)) for name in missing]:
        found[name] = result_of(future)
        store.put_strength(keys[name], found[name])
    return found


def _revisions(spec: GuidedSpec) -> dict[str, str]:
    folders = {"model": find_model(spec.model)}
    # By place and last name: two files of one name are told apart, and no path is shown.
    measures = {
        f"measure {i} {Path(name).name}{part}": revision
        for i, name in enumerate((n for n in spec.measures if n not in POCKET_SCORERS), 1)
        for guide in [[GuideSpec("aesthetic", name)]]
        for part, found in (("", guide_revisions(guide)), (" tower", tower_revisions(guide)))
        for revision in found.values()
    }
    names: Sequence[str] = [name for name in spec.measures if name in POCKET_SCORERS]
    folders |= {name: weights_dir() / POCKET_SCORERS[name] for name in names}
    if spec.model == "pocket":
        folders |= {"guide": weights_dir() / "tower"}
        if (weights_dir() / "classifier").is_dir():
            folders["classifier"] = weights_dir() / "classifier"
    found = {n: folder_revision(f) for n, f in folders.items()}
    return found | measures | dict(spec.guide_revisions)
