"""The edits of an output folder at another strength: kept changes made again on the originals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from manifests.changes import Changes
from manifests.claims import claim_folder
from manifests.inline import read_input
from manifests.originals import refuse_original
from manifests.paths import edited_relpath
from manifests.storage import TEMP_FOLDER, LocalStorage
from pipeline.beside import keep_mtime
from pipeline.collection import OutputView
from pipeline.errors import PipelineError
from pipeline.spec import version
from pipeline.stages import describe, writing_output
from pipeline.tasks import SUFFIXES

RECORD_FILE = "_restrength.json"
_COLUMNS = ("row_id", "input_key", "work_key", "status", "image_uri", "params_fingerprint")


@dataclass(frozen=True)
class Restrengthened:
    """One photo delivered again, or why it was not. psnr_db: against the original."""

    row_id: str
    path: str | None = None
    psnr_db: float | None = None
    error: str | None = None


class RestrengthError(PipelineError):
    """An edit cannot be made at another strength."""

    exit_code = 2


def default_folder(out: str, strength: float, detail: float) -> str:
    """Return OUT/strength-0.5, inside the output folder, where no scan takes it for originals."""
    return f"{out}/strength-{strength:g}" + (f"-detail-{detail:g}" if detail else "")


def count_edits(out: str) -> int:
    """Return how many edits the folder has delivered. Raises: ManifestError if it is none."""
    return sum(
        s == "ok" for s in OutputView(out).results(("row_id", "status"))["status"].to_pylist()
    )


def restrength_edits(
    out: str, to: str, strength: float, *, detail: float = 0.0
) -> Iterator[Restrengthened]:
    """Make each delivered edit again at another strength, and yield what became of it.

    The rows of the output folder stay as they are. A photo written before is written again.

    Args:
        out: the output folder. to: the folder to write to: new, empty, or written by this.
    Raises: ManifestError if `out` is no output folder; OriginalError if `to` holds other files;
        ValueError for a strength or detail outside [0, 1]; DiskFullError, OutputUnwritableError.
    """
    from doodl.delivery.deliver import Delivery

    Delivery(strength=strength, detail=detail)
    view = OutputView(out)
    target = LocalStorage(to)
    record = {"from": str(Path(out).absolute()), "strength": strength, "detail": detail}
    with writing_output():
        places = view.folder.input_places()
        claim_folder(target.root, RECORD_FILE, record, "--out", inputs=places)
    changes = Changes(view.folder.storage)
    params: dict[str, dict[str, Any]] = {}
    places_now = _places_now(view)
    for row in view.results(_COLUMNS).to_pylist():
        if row["status"] != "ok":
            continue
        row["image_uri"] = places_now.get((row["row_id"], row["input_key"]), row["image_uri"])
        fingerprint = row["params_fingerprint"]
        if fingerprint not in params:
            params[fingerprint] = view.folder.read_params(fingerprint)["params"]
        try:
            relpath, data, psnr = _remade(row, params[fingerprint], changes, strength, detail)
            refuse_original(str(target.local(relpath)), row["image_uri"])
        except Exception as error:  # the row boundary
            yield Restrengthened(row["row_id"], error=describe(error)[1])
            continue
        with writing_output():
            target.write(relpath, data)
        keep_mtime(row["image_uri"], str(target.local(relpath)))
        yield Restrengthened(row["row_id"], str(target.local(relpath)), psnr)
    for folder in (TEMP_FOLDER, PurePosixPath(TEMP_FOLDER).parent):  # empty, and of no use here
        with suppress(OSError):
            (target.root / folder).rmdir()


def _places_now(view: OutputView) -> dict[tuple[str, str], str]:
    """Return {(row_id, input_key): image_uri} of the last manifest: photos may have moved since."""
    table = view.folder.read_manifest()
    if table is None:
        return {}
    columns = (table[name].to_pylist() for name in ("row_id", "input_key", "image_uri"))
    return {(row, key): uri for row, key, uri in zip(*columns, strict=True) if uri is not None}


def _remade(
    row: dict[str, Any], params: dict[str, Any], changes: Changes, strength: float, detail: float
) -> tuple[str, bytes, float]:
    """Return (relative path, file, PSNR to the original in dB) of one row's photo."""
    from doodl.delivery.deliver import Delivery, restrength
    from doodl.images import decode_photo
    from doodl.measures.fidelity import psnr_db

    change = changes.load(row["work_key"])
    if change is None:
        raise RestrengthError(
            "no change was kept of this edit (an older version's, or --deliver model); "
            "edit it again with --force."
        )
    delivery = Delivery(
        strength=strength,
        detail=detail,
        strip_gps=bool(params.get("strip_gps")),
    )
    max_pixels = int(params.get("max_pixels", 200_000_000))
    photo, data = restrength(
        read_input(row["image_uri"]),
        change,
        delivery,
        software=f"doodl-batch {version()}",
        max_pixels=max_pixels,
    )
    delivered = decode_photo(data, max_pixels=max_pixels)
    relpath = edited_relpath(row["row_id"], SUFFIXES[photo.format])
    return relpath, data, psnr_db(photo.pixels, delivered.pixels)
