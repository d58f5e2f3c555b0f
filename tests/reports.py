"""Output folders made for looking at: real files and real parts, scores drawn by seed."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from manifests.commits import OutputFolder
from manifests.identity import input_key, work_key
from manifests.parts import write_results_part
from manifests.rows import ResultRow, results_table
from manifests.schemas import INPUT_SCHEMA
from tests.photos import pixels

UGLY = (
    '"><script>window.hacked=1</script>.jpg',
    "</script><img src=x onerror=window.hacked=2>.jpg",
    "new\nline and\ttab.jpg",
    "100% #1 of ?x=1&y=%3Cb%3E.jpg",
    "ünï\u202egpj.exe 🌸 {{7*7}} ${7*7} `x`.jpg",
    "' onfocus='window.hacked=3' autofocus x='.jpg",
    "<!--<script>.jpg",
    "javascript:window.hacked=4.jpg",
)
"""Names that would run, or look like something else, where a page took them for its own."""

REASON = "<b onmouseover=window.hacked=5>the bytes are not a whole photo</b>"
PARAMS = {"direction": "up", "target": None, "model": "pocket", "recipe": {}}


def encoded(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def pairs(count: int, size: tuple[int, int]) -> list[tuple[bytes, bytes]]:
    """Return (source, edited) photos: the edit is brighter and warmer."""
    made = []
    for seed in range(count):
        shape = size if seed % 3 else size[::-1]
        source = pixels(seed, shape).astype(float)
        made.append((encoded(source), encoded(source * 1.18 + np.array([14, 4, -12]))))
    return made


def finished_folder(
    root: Path,
    count: int,
    *,
    name: str = "photos",
    ugly: Sequence[str] = UGLY,
    size: tuple[int, int] = (120, 160),
    distinct: int = 12,
    seed: int = 0,
    gain: float = 0.6,
    photo: Callable[[int], tuple[bytes, bytes]] | None = None,
) -> Path:
    """Write photos and an output folder of so many results, and return the folder.

    About a tenth is rejected, a tenth skipped and a twentieth failed; ugly names come first.

    Args:
        gain: the mean change of score. photo: in place of made ones: index -> (source, edited).
    """
    made = pairs(distinct, size) if photo is None else []
    pick = photo or (lambda index: made[index % distinct])
    photos, out = root / name, root / f"{name}-doodl"
    photos.mkdir(parents=True, exist_ok=True)
    folder = OutputFolder(str(out))
    job = folder.open_job({"task": "enhance", "preset": "pocket", "params": PARAMS})
    rng = random.Random(seed)
    rows = []
    for index in range(count):
        row_id = ugly[index] if index < len(ugly) else f"shoot {index // 100}/IMG_{index:05d}.jpg"
        source, edited = pick(index)
        path = photos / row_id.replace("/", "∕")
        path.write_bytes(source)
        row = _row(row_id, str(path), rng, gain, job["params_fingerprint"], index)
        if row.status == "ok":
            target = out / "edited" / f"{index:05d}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(edited)
            row.edited_uri = f"edited/{target.name}"
        rows.append(row)
    write_results_part(folder.storage, 1, results_table(rows), job["epoch"])
    return out


def _row(
    row_id: str, uri: str, rng: random.Random, gain: float, fingerprint: str, index: int
) -> ResultRow:
    key = input_key(f"{index:032x}", {})
    row = ResultRow(row_id, key, work_key(key, fingerprint), "ok", image_uri=uri, task="enhance")
    draw = rng.random()
    if draw > 0.95 and index >= len(UGLY) // 2:
        row.status = "failed"
        row.error_type = rng.choice(["UnreadablePhotoError", "PhotoTooSmallError", "OSError"])
        row.error_message = REASON
        return row
    row.score_before, row.judge_before = rng.gauss(5, 0.8), rng.gauss(5, 0.7)
    change = rng.gauss(gain, 0.3)
    row.score_after = row.score_before + change
    row.judge_after = row.judge_before + 0.6 * change + rng.gauss(0, 0.15)
    row.psnr_db, row.ssim = rng.gauss(24, 3), min(1.0, rng.gauss(0.93, 0.03))
    row.delta_e, row.inversion_error = abs(rng.gauss(5, 2)), abs(rng.gauss(2e-6, 1e-6))
    row.num_optim_steps, row.stop_reason, row.edit_seconds = 12, "steps", rng.uniform(20, 40)
    row.loss_curve = [-row.score_before - change * i / 12 + rng.gauss(0, 0.03) for i in range(13)]
    row.seed = index
    if draw > 0.85:
        row.status, row.stop_reason, row.num_optim_steps = "skipped", "good_enough", 0
        row.score_after, row.judge_after = row.score_before, row.judge_before
        row.loss_curve = row.loss_curve[:1]
    elif row.judge_after <= row.judge_before or row.score_after <= row.score_before:
        row.status = "rejected"
        row.error_message = "not improved: the judge went from 5.000 to 4.900"
    return row


def personalised_folder(root: Path, count: int, *, prompt: str = "a dog on the moon") -> Path:
    """Write an output folder of `personalize`: pictures with and without guides, two exemplars."""
    out = root / "moon-doodl"
    exemplars = []
    for seed in (91, 92):
        path = root / f"subject {seed}.jpg"
        path.write_bytes(encoded(pixels(seed, (96, 96))))
        exemplars.append(str(path))
    folder = OutputFolder(str(out))
    params = {**PARAMS, "recipe": {"guides": ["subject=1"]}}
    job = folder.open_job({"task": "personalize", "preset": "pocket", "params": params})
    rows: list[ResultRow] = []
    inputs: list[dict[str, Any]] = []
    for index in range(count):
        key = input_key(None, {"seed": index})
        row_id = f"moon-seed{index}"
        row = ResultRow(row_id, key, work_key(key, job["params_fingerprint"]), "ok")
        row.task, row.prompt, row.seed = "personalize", prompt, index
        row.score_before, row.score_after, row.judge_before, row.judge_after = 0.2, 0.3, 4.0, 4.5
        for place in ("edited", "unguided"):
            target = out / place / f"{row_id}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(encoded(pixels(index + (50 if place == "edited" else 0), (96, 96))))
            setattr(row, f"{place}_uri", f"{place}/{target.name}")
        rows.append(row)
        inputs.append({"row_id": row_id, "input_key": key, "subject_uris": exemplars})
    write_results_part(folder.storage, 1, results_table(rows), job["epoch"])
    schema = pa.schema([INPUT_SCHEMA.field(n) for n in ("row_id", "subject_uris")])
    table = pa.Table.from_pylist(inputs, schema=schema.append(pa.field("input_key", pa.string())))
    folder.write_manifest(table)
    return out
