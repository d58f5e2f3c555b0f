"""One row again, from the parameters it was made with: how far does it come out the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from doodl.errors import DoodlError
from doodl.guidance.revisions import current_revision
from doodl.recipes.config import EditConfig
from doodl.recipes.presets import preset
from manifests.commits import MANIFEST_FILE, OutputFolder
from manifests.parts import read_part
from manifests.rows import ManifestRow, ResultRow, manifest_rows
from pipeline.collection import OutputView
from pipeline.errors import PipelineError
from pipeline.models import resolve_device
from pipeline.outcomes import WorkItem
from pipeline.spec import FROM_PROMPTS, JobSpec, loader_of, model_revision, version
from pipeline.tasks import stages_of

SCORES = ("score_before", "score_after", "judge_before", "judge_after")


class ReplayError(PipelineError):
    """A row cannot be made again: what it was made from is not there any more."""

    exit_code = 2


@dataclass(frozen=True)
class Replayed:
    """A row made again, against what was delivered then.

    Attributes:
        identical: every pixel is the same. same_file: every byte is.
        max_difference: largest difference of a pixel's channel, in levels. changed_share: share of
            the pixels that differ. psnr_db: of the two pictures; None if they are identical.
        scores: for each score that both have, (then, now).
        notes: what is not as it was then: software, model, device.
        encoded: the file made now.
    """

    row_id: str
    status: str
    identical: bool
    same_file: bool
    max_difference: int | None
    changed_share: float | None
    psnr_db: float | None
    scores: Mapping[str, tuple[float, float]]
    notes: tuple[str, ...]
    encoded: bytes | None


class Replayer:
    """Makes rows of an output folder again; the models load once for rows of the same job.

    Args:
        out: the output folder; it is only read.
        device: cpu | cuda | auto; None: what each row was made on.
        editor: as JobSpec's; None: the task's own.
    Raises: ManifestError if `out` is no output folder.
    """

    def __init__(self, out: str, *, device: str | None = None, editor: str | None = None) -> None:
        self._folder: OutputFolder = OutputView(out).folder
        self._device, self._editor = device, editor
        self._loaded: tuple[tuple[Any, ...], Any, Any] | None = None

    def __call__(self, row_id: str) -> Replayed:
        """Return one row made again.

        Raises: ReplayError if there is no such row, it delivered nothing, or what it was made from
            has changed; DoodlError, OSError if it cannot be made.
        """
        row = self._folder.rows([row_id]).get(row_id)
        if row is None:
            raise ReplayError(f"no row {row_id!r} in {self._folder.uri}; see its results.")
        if row.status != "ok":
            raise ReplayError(f"row {row_id!r} is {row.status}: nothing of it was delivered.")
        if row.latents_uri is not None:
            raise ReplayError(f"row {row_id!r} is an inversion; pictures alone are compared.")
        spec = self._spec(row)
        item = WorkItem(self._manifest_row(row), row.input_key, row.work_key, self._image_hash(row))
        read_stage, work = self._stages(spec)
        read = read_stage(item)
        (result,) = work([item], [read], load_checkpoint=_no_checkpoint, save_checkpoint=_keep_none)
        if isinstance(result, DoodlError):
            raise result
        done = work.finished(item, read, result)
        return self._compared(row, spec, done)

    def _spec(self, row: ResultRow) -> JobSpec:
        """Return the job as it was when the row was made, for one process."""
        try:
            recorded = self._folder.read_params(str(row.params_fingerprint))
            return spec_of_params(
                recorded,
                out=self._folder.uri,
                device=resolve_device(self._device or row.device or "auto"),
                editor=self._editor,
            )
        except FileNotFoundError:
            raise ReplayError(
                f"the parameters of row {row.row_id!r} ({row.params_fingerprint}) are not in "
                f"{self._folder.uri}/_state/params any more."
            ) from None
        except (KeyError, TypeError, ValueError) as error:
            raise ReplayError(
                f"the recorded parameters of row {row.row_id!r} are not those of a job that this "
                f"version knows ({error})."
            ) from error

    def _stages(self, spec: JobSpec) -> tuple[Any, Any]:
        key = (spec.task, spec.model, spec.device, str(spec.params()))
        if self._loaded is None or self._loaded[0] != key:
            read, work = stages_of(spec)
            work.setup()
            self._loaded = (key, read, work)
        return self._loaded[1], self._loaded[2]

    def _manifest_row(self, row: ResultRow) -> ManifestRow:
        """Return the row as it was planned, or as its result tells it if it has changed since."""
        found = self._recorded(row)
        if found is not None:
            return next(iter(manifest_rows(found)))
        if row.task in FROM_PROMPTS:
            raise ReplayError(
                f"row {row.row_id!r} is not in the last manifest, or has changed in it since; "
                "its guides and subjects are not known any more."
            )
        return ManifestRow(
            row.row_id, row.image_uri, prompt=row.prompt, direction=row.direction,
            target=row.target, seed=row.seed, strength=row.strength, extra=row.extra,
        )  # fmt: skip

    def _image_hash(self, row: ResultRow) -> str | None:
        found = self._recorded(row)
        return None if found is None else found["image_hash"][0].as_py()

    def _recorded(self, row: ResultRow) -> Any:
        """Return the manifest's row of the same name and input as a table; None if it has none."""
        if not self._folder.storage.exists(MANIFEST_FILE):
            return None
        table = read_part(self._folder.storage, MANIFEST_FILE)
        same = pc.and_(
            pc.equal(table["row_id"], row.row_id), pc.equal(table["input_key"], row.input_key)
        )
        found = table.filter(pc.fill_null(same, False))
        return found if found.num_rows else None

    def _compared(self, row: ResultRow, spec: JobSpec, done: Any) -> Replayed:
        delivered = self._folder.read_photo(row)
        if delivered is None:
            raise ReplayError(f"the delivered file of row {row.row_id!r} is gone: see verify.")
        scores = {
            name: (float(then), float(now))
            for name in SCORES
            if (then := getattr(row, name)) is not None
            and (now := done.values.get(name)) is not None
        }
        notes = _notes(row, spec)
        if done.status != "ok" or done.image is None:
            notes += (f"it was delivered then and is {done.status} now",)
            return Replayed(
                row.row_id, done.status, False, False, None, None, None, scores, notes, None
            )
        difference = compare_pictures(delivered, done.image, max_pixels=spec.max_pixels)
        if difference is None:
            notes += ("the two pictures differ in size or depth",)
        largest, share, psnr = difference or (None, None, None)
        return Replayed(
            row.row_id, done.status, largest == 0, delivered == done.image, largest, share, psnr,
            scores, notes, done.image,
        )  # fmt: skip


def _no_checkpoint(work_key: str) -> bytes | None:  # noqa: ARG001
    return None


def _keep_none(work_key: str, data: bytes) -> None: ...


def spec_of_params(
    recorded: Mapping[str, Any], *, out: str, device: str = "cpu", editor: str | None = None
) -> JobSpec:
    """Return the spec of a job's recorded parameters, as `OutputFolder.read_params` gives them.

    Raises: KeyError, TypeError, ValueError if they are not those of a job.
    """
    params = dict(recorded["params"])
    task, recipe = str(params.pop("task")), params.pop("recipe")
    shipped = params.pop("shipped_model_revision", None)
    revision = params.pop("model_revision", shipped)
    params.pop("algorithm_version", None)
    base = EditConfig().to_dict()
    # A matter of speed and memory, and so not recorded: as the recipe has it.
    base["sampler"]["memory"] = preset(params["preset"]).sampler.memory
    return JobSpec(
        photos="", out=out, task=task, model_revision=str(revision), device=device,
        editor=editor or loader_of(task), runner="inline", checkpoint_every=0,
        config=_merged(base, recipe), **params,
    )  # fmt: skip


def _merged(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `over`, nested ones one by one."""
    merged = dict(base)
    for name, value in over.items():
        inner = merged.get(name)
        merged[name] = _merged(inner, value) if isinstance(inner, dict) else value
    return merged


def _notes(row: ResultRow, spec: JobSpec) -> tuple[str, ...]:
    """Return what is not as it was when the row was made."""
    here = model_revision(spec.model)
    pairs = (
        ("doodl-batch", row.doodl_version, version()),
        (f"model {spec.model}", row.model_revision, here),
        ("device", row.device, spec.device),
        *(
            (f"guide {name}", then, current_revision(name) or "not there")
            for name, then in spec.guide_revisions.items()
        ),
    )
    return tuple(f"{what} was {then}, is {now}" for what, then, now in pairs if then != now)


def compare_pictures(
    first: bytes, second: bytes, *, max_pixels: int
) -> tuple[int, float, float | None] | None:
    """Return (largest difference, share of pixels that differ, PSNR in dB) of two files.

    PSNR is None if they are equal. None if the two pictures differ in size or depth.
    Raises: DoodlError if one cannot be decoded.
    """
    import numpy as np

    from doodl.images import decode_photo
    from doodl.measures.fidelity import psnr_db

    a, b = (decode_photo(data, max_pixels=max_pixels).pixels for data in (first, second))
    if a.shape != b.shape or a.dtype != b.dtype:
        return None
    largest, changed = 0, 0
    for rows in _strips(len(a)):
        difference = np.abs(a[rows].astype(np.int32) - b[rows])
        largest = max(largest, int(difference.max(initial=0)))
        changed += int(np.count_nonzero(difference.reshape(len(difference), -1, 3).max(-1)))
    share = changed / max(1, a.shape[0] * a.shape[1])
    return largest, share, None if largest == 0 else psnr_db(a, b)


def _strips(height: int, rows: int = 256) -> list[slice]:
    return [slice(top, top + rows) for top in range(0, height, rows)]
