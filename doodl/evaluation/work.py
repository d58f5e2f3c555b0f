"""What one worker does: edit a batch of cases by a method, and take their figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from doodl.editing.editor import load_editor
from doodl.evaluation.cases import Case, Draw, Prepared, prepare
from doodl.evaluation.methods import (
    DEFAULT_METHODS,
    METHODS,
    Cost,
    Edited,
    counted,
    make_request,
    run_method,
)
from doodl.evaluation.referee import load_referee
from doodl.evaluation.rows import (
    Measured,
    Models,
    Run,
    fingerprint,
    measure,
    recipe_values,
)
from doodl.evaluation.strengths import Strength, match_strength
from doodl.guidance.revisions import all_revisions
from doodl.guidance.spec import parse_guides
from doodl.images import decode_photo
from doodl.measures.metrics import rms_change
from doodl.models.hub import find_model
from doodl.models.revisions import folder_revision
from doodl.pocket import weights_dir
from doodl.recipes.config import EditConfig


@dataclass(frozen=True)
class EvaluationSpec:
    """What is evaluated.

    Attributes:
        referee: folder of the scorer that judges the edits and had no part in them.
        model: `pocket` or a diffusers pipeline folder. config: the preset under test.
        batch_size: photos edited together.
        equal_strength: whether rivals are tuned to change photos as much as the edit.
        on_validation: edit the photos kept apart, and none of the tables': for choosing values.
    """

    referee: str
    draw: Draw
    config: EditConfig
    model: str = "pocket"
    methods: tuple[str, ...] = DEFAULT_METHODS
    directions: tuple[str, ...] = ("up", "down")
    batch_size: int = 6
    equal_strength: bool = True
    on_validation: bool = False

    def __post_init__(self) -> None:
        for what, values, known in (
            ("methods", self.methods, tuple(METHODS)),
            ("directions", self.directions, ("up", "down")),
        ):
            wrong = [value for value in values if value not in known]
            if wrong or not values:
                raise ValueError(f"{what} (={', '.join(values)}) must be of {', '.join(known)}.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size (={self.batch_size}) must be at least 1.")

    @property
    def runs(self) -> tuple[tuple[str, str], ...]:
        """Every (method, direction) that is computed."""
        return tuple(
            (method, direction)
            for direction in self.directions
            for method in self.methods
            if direction in METHODS[method].directions
        )

    def revisions(self) -> dict[str, str]:
        """Return the revision of each model that has a part in the figures. Raises: ModelError."""
        folders = {
            "model": find_model(self.model),
            "guide": weights_dir() / "tower",
            "judge": weights_dir() / "judge",
            "referee": Path(self.referee),
        }
        found = {name: folder_revision(folder) for name, folder in folders.items()}
        return found | all_revisions(parse_guides(self.config.guides))

    def run(self, method: str, direction: str, strength: float, revisions: dict[str, str]) -> Run:
        """Return the run with the fingerprint of all its figures depend on, but for the case."""
        values = {
            "method": method,
            "direction": direction,
            "strength": strength,
            "config": recipe_values(self.config),
            "max_px": self.draw.max_px,
            "revisions": revisions,
        }
        return Run(method, direction, strength, fingerprint(values))


@dataclass(frozen=True)
class EditTask:
    """Cases to edit together by one method."""

    cases: tuple[Case, ...]
    run: Run


@dataclass(frozen=True)
class TuneTask:
    """A method's strength to find, or, with no target, the change it makes as it is."""

    cases: tuple[Case, ...]
    method: str
    direction: str
    target: float | None


@lru_cache(maxsize=1)
def load_models(model: str, config: EditConfig, referee: str) -> Models:
    """Load what a worker needs, once per process. Raises: ModelError."""
    return Models(counted(load_editor(model, config)), load_referee(referee))


def models_of(spec: EvaluationSpec) -> Models:
    return load_models(spec.model, spec.config, spec.referee)


def run_edit(spec: EvaluationSpec, task: EditTask) -> list[Measured]:
    """Edit the task's cases and return their rows; a case that fails has a row that says so."""
    models, run = models_of(spec), task.run
    return [
        measure(models, run, case, prepared, outcome, cost)
        for case, prepared, outcome, cost in _edited(models, spec, task.cases, run)
    ]


def run_tune(spec: EvaluationSpec, task: TuneTask) -> Strength:
    """Return the strength at which the method changes the cases by the target, on average."""
    models, method = models_of(spec), METHODS[task.method]

    def change(strength: float) -> float:
        """Mean RMS change of the edited files; an edit that failed changed nothing."""
        changes = [
            0.0
            if isinstance(outcome, Exception)
            else rms_change(prepared.photo.pixels, decode_photo(outcome.encoded).pixels)
            for _, prepared, outcome, _ in _edited(
                models, spec, task.cases, Run(method.name, task.direction, strength, "")
            )
        ]
        return float(np.mean(changes))

    if method.knob is None or task.target is None:
        made = change(method.start)
        return Strength(method.start, made, task.target or made, ((method.start, made),))
    return match_strength(change, task.target, start=method.start)


Outcome = tuple[Case, Prepared, Edited | Exception, Cost]


def _edited(models: Models, spec: EvaluationSpec, cases: Sequence[Case], run: Run) -> list[Outcome]:
    prepared = [(case, prepare(case, spec.draw.max_px)) for case in cases]
    return [
        outcome
        for start in range(0, len(prepared), spec.batch_size)
        for outcome in _batch(models, run, prepared[start : start + spec.batch_size])
    ]


def _batch(models: Models, run: Run, prepared: Sequence[tuple[Case, Prepared]]) -> list[Outcome]:
    requests = [make_request(p.photo, run.direction, case.seed) for case, p in prepared]
    try:
        edited, cost = run_method(METHODS[run.method], models.editor, requests, run.strength)
    except Exception as error:  # the row boundary
        if len(prepared) == 1:
            return [(*prepared[0], error, Cost(0.0, 0.0))]
        # One photo's fault must not fail the others of its batch: learn whose it is.
        return [outcome for pair in prepared for outcome in _batch(models, run, [pair])]
    return [(case, p, e, cost) for (case, p), e in zip(prepared, edited, strict=True)]
