"""What a job is about, as a table: a folder scanned or a manifest read."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from manifests.commits import LATENTS
from manifests.errors import ManifestError
from manifests.job import JOB_FILE
from manifests.paths import TABLE_SUFFIXES, has_scheme, local_path
from manifests.reader import INVALID_ROW, read_manifest, scan_photos
from manifests.scan import unlisted
from manifests.scan_remote import scan_remote
from pipeline.spec import DIRECTIONS, FROM_PROMPTS, LATENTS_SUFFIX, JobSpec


def load_rows(spec: JobSpec) -> pa.Table:
    """Return the input table of a job's own kind of rows: photos, prompts or latents files.

    Raises: ManifestError if what it names is not there.
    """
    if spec.task in FROM_PROMPTS:
        from pipeline.prompts import load_prompts

        return load_prompts(spec)
    if spec.task == "invert" and spec.back:
        return scan_latents(spec.photos)
    inputs = load_input(spec.photos)
    if spec.protect:
        from pipeline.protecting import with_masks

        return with_masks(inputs, spec.protect)
    return inputs


def scan_latents(photos: str) -> pa.Table:
    """Return the latents files of a folder, or of an `invert` output, as an input table.

    A row is named by its file without the suffix, as the photo it came from was.
    Raises: ManifestError if there is no such folder.
    """
    folder = Path(photos)
    if (folder / JOB_FILE).is_file() and (folder / LATENTS).is_dir():
        folder = folder / LATENTS
    table = scan_photos(folder, suffixes=(LATENTS_SUFFIX,))
    if table.num_rows == 0:
        raise ManifestError(f"{folder} holds no {LATENTS_SUFFIX} file; give the output of invert.")
    names = [name.removesuffix(LATENTS_SUFFIX) for name in table["row_id"].to_pylist()]
    index = table.schema.get_field_index("row_id")
    return table.set_column(index, table.schema.field(index), pa.array(names, pa.string()))


def load_input(photos: str) -> pa.Table:
    """Return the input table of a folder of photos or of a manifest file, here or by URI.

    A row whose own options make no sense carries its error, as a row that cannot be read does.
    Raises: ManifestError if the path is neither a folder nor a manifest.
    """
    if has_scheme(photos) and local_path(photos) is None:
        if PurePosixPath(photos).suffix.lower() in TABLE_SUFFIXES:
            return check_options(read_manifest(photos))
        return scan_remote(photos)
    path = Path(photos)
    if path.is_dir():
        return scan_photos(path)
    if path.is_file():
        return check_options(read_manifest(path))
    raise ManifestError(f"{photos} does not exist; give a folder of photos or a manifest.")


def unlisted_lines(table: pa.Table, most: int = 20) -> list[str]:
    """Return, for a person, what could not be listed when an input table was scanned."""
    left_out = unlisted(table)
    lines = [f"left out, it cannot be listed: {path} ({why})" for path, why in left_out[:most]]
    if len(left_out) > most:
        lines.append(f"and {len(left_out) - most:,} more that cannot be listed")
    return lines


def check_options(table: pa.Table) -> pa.Table:
    """Return the table with an error in each row whose direction, target or strength is wrong."""
    direction, target, strength = table["direction"], table["target"], table["strength"]
    known = pc.is_in(direction, value_set=pa.array([*DIRECTIONS, None], pa.string()))
    aimed = pc.fill_null(pc.equal(direction, "target"), False)
    one_way = pc.fill_null(pc.is_in(direction, value_set=pa.array(["up", "down"])), False)
    inside = pc.and_(pc.greater_equal(strength, 0.0), pc.less_equal(strength, 1.0))
    for wrong, message in (
        (pc.invert(known), f"direction must be one of {', '.join(DIRECTIONS)}."),
        (pc.and_(aimed, pc.is_null(target)), "direction 'target' needs a target score."),
        (pc.and_(one_way, pc.is_valid(target)), "a target score goes with direction 'target'."),
        (pc.invert(pc.fill_null(inside, True)), "strength must be in [0, 1]."),
    ):
        table = mark(table, wrong, message)
    return table


def mark(table: pa.Table, wrong: Any, message: Any) -> pa.Table:
    """Return the table with an error in each row that is wrong and has none yet.

    Args:
        wrong: a boolean a row. message: one for all of them, or one a row.
    """
    fresh = pc.and_(wrong, pc.is_null(table["row_error"]))
    if not pc.any(fresh).as_py():
        return table
    if isinstance(message, str):
        message = pa.scalar(message, pa.string())
    for name, value in (("row_error", message), ("row_error_type", INVALID_ROW)):
        index = table.schema.get_field_index(name)
        column = pc.if_else(fresh, value, table[name])
        table = table.set_column(index, table.schema.field(index), column)
    return table
