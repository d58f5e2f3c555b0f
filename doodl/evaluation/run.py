"""An evaluation from photos to finished rows: drawn, tuned, edited by workers, resumable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from doodl.errors import DoodlError
from doodl.evaluation.cases import Case, Drawn, Source, draw_cases, prepare
from doodl.evaluation.methods import METHODS
from doodl.evaluation.referee import check_referee
from doodl.evaluation.rows import Row, Run, case_id, fingerprint
from doodl.evaluation.store import Store, picture_name
from doodl.evaluation.strengths import Strength
from doodl.evaluation.work import EditTask, EvaluationSpec, TuneTask, run_edit, run_tune
from doodl.evaluation.workers import Submit, completed, finished, result_of, workers_of
from doodl.images import view_size_px
from doodl.images.thumbnails import thumbnail


class Observer(Protocol):
    """Who is told how far it is."""

    def start(self, total: int) -> None:
        """So many rows are to be computed."""

    def row(self, row_id: str, status: str, detail: str | None) -> None:
        """One row is finished."""

    def message(self, text: str) -> None:
        """One line about what is going on."""


@dataclass
class Evaluation:
    """What an evaluation found.

    Attributes:
        drawn: the cases, and what could not be used. rows: one per case, method and direction.
        strengths: by (method, direction), where the method has a knob; empty without photos to
            tune on. revisions: of every model.
        referee_check: the referee's own, if it could be made.
        computed: rows that this run computed; the others were there.
    """

    spec: EvaluationSpec
    drawn: Drawn
    rows: list[Row]
    strengths: dict[tuple[str, str], Strength]
    revisions: dict[str, str]
    referee_check: dict[str, Any] | None
    computed: int

    @property
    def cases(self) -> list[Case]:
        return self.drawn.cases


def run_evaluation(
    sources: Sequence[Source],
    spec: EvaluationSpec,
    out: Path,
    observer: Observer,
    *,
    workers: int = 1,
    redo: bool = False,
) -> Evaluation:
    """Compute what the folder does not hold yet, and return all of it.

    Args:
        workers: processes of one thread each; 1 works in this process.
        redo: compute every row again.
    Raises: DoodlError if no photo can be used, ModelError for a missing model, WorkerDiedError.
    """
    revisions = spec.revisions()
    store = Store(out)
    drawn = draw_cases(sources, spec.draw)
    if spec.on_validation:
        drawn.cases, drawn.validation = drawn.validation, []
    if not drawn.cases:
        raise DoodlError(
            "no photo can be used"
            + (f": {drawn.unreadable[0][0]}: {drawn.unreadable[0][1]}" if drawn.unreadable else ".")
        )
    batches = _batches(drawn.cases, spec, store)
    with workers_of(workers) as submit:
        strengths = _tuned(spec, drawn.validation, revisions, store, submit, observer, redo=redo)
        runs = []
        for method, direction in spec.runs:
            found = strengths.get((method, direction))
            value = METHODS[method].start if found is None else found.value
            runs.append(spec.run(method, direction, value, revisions))
        done = {} if redo else store.rows()
        tasks = _tasks(batches, runs, done)
        observer.start(sum(len(task.cases) for task in tasks))
        checking = _start_check(spec, drawn.cases, revisions, store, submit)
        for batch in finished([submit(run_edit, spec, task) for task in tasks]):
            store.add(batch)
            for measured in batch:
                row = measured.row
                name = f"{row['photo']} ({row['method']}, {row['direction']})"
                observer.row(name, row["status"], row["error"])
        check = checking()
    done = store.rows()
    rows = [done[case_id(case), run.recipe] for case in drawn.cases for run in runs]
    computed = sum(len(task.cases) for task in tasks)
    return Evaluation(spec, drawn, rows, strengths, revisions, check, computed)


def _batches(cases: Sequence[Case], spec: EvaluationSpec, store: Store) -> list[tuple[Case, ...]]:
    """Return the cases in batches of like frames, and keep what the sheets show of them."""
    frames: dict[tuple[int, int], list[Case]] = {}
    for case in cases:
        prepared = prepare(case, spec.draw.max_px)
        name = case_id(case)
        for what, data in (("source", prepared.data), ("clean", prepared.clean)):
            if data is not None and not store.picture(picture_name(name, what)).is_file():
                store.put_picture(picture_name(name, what), thumbnail(data))
        # A hint only: the editor itself keeps apart frames that its model tells apart.
        frames.setdefault(view_size_px(prepared.photo, spec.config.working_px, 16), []).append(case)
    size = spec.batch_size
    return [
        tuple(alike[start : start + size])
        for alike in frames.values()
        for start in range(0, len(alike), size)
    ]


def _tasks(
    batches: Sequence[tuple[Case, ...]], runs: Sequence[Run], done: dict[tuple[str, str], Row]
) -> list[EditTask]:
    """Return what is to be computed: a batch by every method, then the next one."""
    tasks = []
    for batch in batches:
        for run in runs:
            missing = tuple(c for c in batch if (case_id(c), run.recipe) not in done)
            if missing:
                tasks.append(EditTask(missing, run))
    return tasks


def _tuned(
    spec: EvaluationSpec,
    cases: Sequence[Case],
    revisions: dict[str, str],
    store: Store,
    submit: Submit,
    observer: Observer,
    *,
    redo: bool,
) -> dict[tuple[str, str], Strength]:
    """Return the strength of each method with a knob at which it changes photos as the edit does.

    Without photos to tune on there is none, and every method runs at its own start.
    """
    if not cases or not spec.equal_strength:
        return {}
    cases = tuple(cases)
    # Two passes: the rivals' target is what the edit itself comes to.
    found: dict[tuple[str, str], Strength] = {}
    targets: dict[str, float] = {}
    wanted = {direction for method, direction in spec.runs if METHODS[method].knob}
    passes = (
        [("edit", direction) for direction in sorted(wanted)],
        [(method, direction) for method, direction in spec.runs if METHODS[method].knob],
    )
    for runs in passes:
        waiting: dict[Future[Strength], tuple[tuple[str, str], str]] = {}
        for method, direction in runs:
            run = spec.run(method, direction, 0.0, revisions)
            key = fingerprint([run.recipe, targets.get(direction), [case_id(c) for c in cases]])
            kept = store.strength(key)
            if kept is not None and not redo:
                found[method, direction] = kept
                continue
            observer.message(f"tuning {method} {direction} on {len(cases)} photos kept apart")
            task = TuneTask(cases, method, direction, targets.get(direction))
            waiting[submit(run_tune, spec, task)] = ((method, direction), key)
        for future in completed(waiting):
            pair, key = waiting[future]
            found[pair] = result_of(future)
            store.put_strength(key, found[pair])
        targets = {d: s.change for (method, d), s in found.items() if method == "edit"}
        if not all(target > 0 for target in targets.values()):
            observer.message("the edit changed no photo kept apart: strengths are not tuned")
            return {}
    return found


def _start_check(
    spec: EvaluationSpec,
    cases: Sequence[Case],
    revisions: dict[str, str],
    store: Store,
    submit: Submit,
) -> Callable[[], dict[str, Any] | None]:
    """Start the referee's own check on the photos, and return what waits for its result."""
    if not spec.equal_strength:  # ablations are compared with each other: the main tables have it
        return lambda: None
    sources = list({case.source.name: case.source for case in cases}.values())
    key = fingerprint([revisions["referee"], [source.name for source in sources]])
    kept = store.note("referee_check")
    if kept is not None and kept["key"] == key:
        return lambda: kept["check"]
    future = submit(check_referee, spec.referee, sources)

    def result() -> dict[str, Any] | None:
        check = next(finished([future]))
        store.put_note("referee_check", {"key": key, "check": check})
        return check

    return result
