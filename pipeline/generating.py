"""The stages of `generate` and `personalize`: subject photos in, pictures out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doodl.errors import DoodlError, PhotoError, RequestError
from doodl.guidance.spec import join_guides
from manifests.addresses import said
from manifests.hashes import subject_named
from manifests.identity import row_seed
from pipeline.metrics import WorkerMeter
from pipeline.outcomes import WorkItem
from pipeline.spec import JobSpec, row_guides
from pipeline.tasks import (
    SUFFIXES,
    Finished,
    checkpointing,
    load_tool,
    read_unchanged,
    relpath_of,
    row_aim,
)

if TYPE_CHECKING:
    from torch import Tensor

    from doodl.generation import GenerateRequest, GenerateResult, ImageGenerator

MAX_SUBJECTS = 64
_SUBJECTS_KEPT = 16


class ReadSubjects:
    """Read a row's subject photos: `(WorkItem) -> images (3, h, w)`; none for rows without."""

    def __init__(self, spec: JobSpec) -> None:
        self.spec = spec
        # Rows of one subject follow each other, a row for each seed.
        self._image = lru_cache(maxsize=_SUBJECTS_KEPT)(self._read)

    def __call__(self, item: WorkItem) -> tuple[Tensor, ...]:
        uris = item.row.subject_uris
        if len(uris) > MAX_SUBJECTS:
            raise RequestError(f"{len(uris)} subject photos; give at most {MAX_SUBJECTS}.")
        hashes = item.subject_hashes or (None,) * len(uris)
        return tuple(self._image(uri, known) for uri, known in zip(uris, hashes, strict=True))

    def _read(self, uri: str, image_hash: str | None) -> Tensor:
        from doodl.generation.pictures import subject_image

        try:
            data = read_unchanged(uri, image_hash, "subject photo")
            side = self.spec.edit_config.working_px
            return subject_image(data, side_px=side, max_pixels=self.spec.max_pixels)
        except PhotoError as error:
            raise RequestError(f"subject photo {uri!r}: {error}") from error
        except OSError as error:
            text = f"{subject_named(uri, error)} cannot be read: {said(error)}"
            known = () if error.errno is None else (error.errno,)
            raise type(error)(*known, text) from error


class MakePictures:
    """Make pictures of rows together; the models load in `setup`."""

    def __init__(self, spec: JobSpec) -> None:
        self.spec = spec
        self.generator: ImageGenerator | None = None
        self.meter = WorkerMeter(Path(spec.out).name, spec.device)

    def setup(self) -> None:
        """Load the models, once per worker. Raises: ModelError, RequestError on the size."""
        self.generator = load_tool(
            self.spec,
            guides=self.spec.guides,
            safety_checker=self.spec.safety_checker,
            image_format=self.spec.image_format.upper(),
        )
        self.generator.check_size(*self.size)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the pictures, px."""
        side = self.spec.edit_config.working_px
        return self.spec.width_px or side, self.spec.height_px or side

    def request(
        self, item: WorkItem, subjects: Sequence[Tensor], checkpoint: bytes | None
    ) -> GenerateRequest:
        """Return the row's own options, or the job's where the row has none."""
        from doodl.generation import GenerateRequest
        from doodl.guidance.guidance import GuideRow

        row, spec = item.row, self.spec
        direction, target = row_aim(row, spec)
        label = row.extra.get("label")
        prompt, (width_px, height_px) = row.prompt or "", self.size
        negative = row.negative_prompt
        return GenerateRequest(
            prompt=prompt,
            negative_prompt=spec.negative_prompt if negative is None else negative,
            seed=row_seed(item.work_key, row.seed if row.seed is not None else spec.seed),
            height_px=height_px,
            width_px=width_px,
            guides=row_guides(row.guides, spec),
            guide_row=GuideRow(
                prompt=prompt,
                direction=direction,
                target=target,
                subjects=tuple(subjects),
                label=None if label is None else str(label),
            ),
            checkpoint=checkpoint,
        )

    def __call__(
        self,
        items: Sequence[WorkItem],
        inputs: Sequence[tuple[Tensor, ...]],
        *,
        load_checkpoint: Callable[[str], bytes | None],
        save_checkpoint: Callable[[str, bytes], None],
    ) -> list[GenerateResult | DoodlError]:
        if self.generator is None:
            self.setup()
        assert self.generator is not None
        requests = [
            self.request(item, subjects, load_checkpoint(item.work_key))
            for item, subjects in zip(items, inputs, strict=True)
        ]
        every = self.spec.checkpoint_every
        return self.generator.generate(
            requests,
            on_iteration=checkpointing(items, save_checkpoint, every=every, meter=self.meter),
        )

    def finished(
        self,
        item: WorkItem,
        read: tuple[Tensor, ...],  # noqa: ARG002 (what every task's stage is given)
        result: GenerateResult,
    ) -> Finished:
        """Return the row of a picture; a rejected one leaves its unguided picture to look at."""
        columns = (
            "width_px", "height_px", "score_before", "score_after", "judge_before", "judge_after",
            "num_optim_steps", "stop_reason", "loss_curve", "safety",
        )  # fmt: skip
        values: dict[str, Any] = {name: getattr(result, name) for name in columns}
        values["guide_values_before"] = _json(result.guide_values_before)
        values["guide_values_after"] = _json(result.guide_values_after)
        values["error_message"] = result.rejection
        suffix = SUFFIXES[self.spec.image_format.upper()]
        relpath = relpath_of(item.row_id, suffix, self.spec)
        files = {}
        if result.unguided is not None:
            files["unguided_uri"] = (relpath, result.unguided)
        if result.status != "ok":
            return Finished(result.status, values, files)
        files["edited_uri"] = (relpath, result.encoded)
        return Finished(result.status, values, files, result.encoded)

    def asked(self, item: WorkItem) -> dict[str, Any]:
        """Return the row's own options, or the job's where the row has none."""
        row, spec = item.row, self.spec
        asked: dict[str, Any] = {
            "prompt": row.prompt or "",
            "negative_prompt": (
                spec.negative_prompt if row.negative_prompt is None else row.negative_prompt
            ),
            "num_subjects": len(row.subject_uris),
        }
        try:
            guides = row_guides(row.guides, spec)
        except ValueError:
            return asked  # the row fails for it
        asked["guides"] = join_guides(guides) or None
        if any(guide.kind == "aesthetic" for guide in guides):
            asked["direction"], asked["target"] = row_aim(row, spec)
        return asked


def _json(values: Mapping[str, float]) -> str | None:
    """Return each guide's value as JSON, null where it is not finite; None without guides."""
    if not values:
        return None
    told = {name: value if math.isfinite(value) else None for name, value in values.items()}
    return json.dumps(told, ensure_ascii=False)
