"""A manifest file as an input table: a bad file raises, a bad row carries its own error."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.addresses import address_problem, reaching
from manifests.errors import AddressError, ManifestError
from manifests.identity import hash_bytes
from manifests.inline import IMAGE_COLUMN, open_table, photo_bytes, read_table_bytes
from manifests.json_lines import read_json_lines
from manifests.naming import full_uri, prompt_name, resolve_plain_rows, resolve_rows
from manifests.paths import has_scheme, local_path
from manifests.scan import scan_photos
from manifests.schemas import INPUT_SCHEMA, MANIFEST_SCHEMA, RESERVED_NAMES

__all__ = ["read_manifest", "scan_photos"]

INVALID_ROW = "InvalidRow"


def read_manifest(
    path: str | os.PathLike[str],
    *,
    needs_image: bool = True,
    own_columns: pa.Schema | None = None,
) -> pa.Table:
    """Return a Parquet manifest (or .csv, .jsonl) as a table of INPUT_SCHEMA and extra columns.

    Every row of the file is a row of the table, in its order. A row that cannot be run says why in
    row_error. A relative image_uri is taken from the manifest's folder and must stay in it; an
    absolute path or a URI is taken as it is. A row without row_id is named by its image_uri; two
    such rows of one photo become `a.jpg` and `a.jpg~2`. An explicit row_id used twice is an error
    of the later row, which is then named `a.jpg~2`. Photos in an `image` column are hashed, not
    kept (see `manifests.inline`). An extra column with one of our own names is carried as
    `manifest_<name>`.

    Args:
        needs_image: False for tasks that start from no photo: a row without row_id is then named
            after its prompt and seed (`naming.prompt_name`).
        own_columns: columns that the job's task reads beside MANIFEST_SCHEMA's; those that the
            file has follow INPUT_SCHEMA's in the table.
    Raises: ManifestError for a file that is no manifest: column, what it is, what it must be.
    """
    path = os.fspath(path)
    if not has_scheme(path):
        path = str(Path(path).absolute())
    try:
        return _as_inputs(path, needs_image, own_columns)
    except (AddressError, pa.ArrowException, UnicodeError, OverflowError, RecursionError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: Exception) -> ManifestError:
    reason = str(error).partition("\n")[0]
    return ManifestError(
        f"{path} cannot be read as a manifest ({reason}); give a Parquet, CSV or JSONL file."
    )


def _as_inputs(path: str, needs_image: bool, own_columns: pa.Schema | None) -> pa.Table:
    # A client of somebody else's may raise anything.
    with nullcontext() if local_path(path) is not None else reaching(path):
        table, hashes = _read_file(path)
    # Damaged text and lengths that lie are found here, and not where a row's value is used.
    table.validate(full=True)
    if twice := sorted({n for n in table.column_names if table.column_names.count(n) > 1}):
        raise ManifestError(
            f"{path}: column {twice[0]} is there {table.column_names.count(twice[0])} times; "
            "keep one of them."
        )
    if needs_image and hashes is None and "image_uri" not in table.column_names:
        raise ManifestError(
            f"{path}: no column image_uri (or image); it has {', '.join(table.column_names)}. "
            "Name the column of photo paths image_uri."
        )
    errors: dict[int, str] = {}
    columns: dict[str, pa.ChunkedArray | pa.Array] = {}
    own = [f for f in own_columns or () if f.name in table.column_names]
    for field in (*MANIFEST_SCHEMA, *own):
        if field.name in table.column_names:
            columns[field.name] = _typed(table[field.name], field, path, errors)
    _check_finite(columns, errors)
    extras = _extra_columns(table, path, [*MANIFEST_SCHEMA.names, *(f.name for f in own)])
    written = columns.get("image_uri")
    columns["image_uri"], columns["row_id"] = _resolved(
        path, columns, hashes, table.num_rows, errors, needs_image
    )
    wrong = wrong_addresses(written, hashes)
    if "subject_uris" in columns:
        columns["subject_uris"] = _full_subjects(columns["subject_uris"], path, errors, wrong)
    if hashes is not None:
        columns["image_hash"] = pa.array(hashes, pa.string())
    if errors or wrong:
        messages = [errors.get(row) or wrong.get(row) for row in range(table.num_rows)]
        kinds = [
            INVALID_ROW if row in errors else AddressError.__name__ if row in wrong else None
            for row in range(table.num_rows)
        ]
        columns["row_error"] = pa.array(messages, pa.string())
        columns["row_error_type"] = pa.array(kinds, pa.string())
    ours = [*INPUT_SCHEMA, *own]
    arrays = [columns.get(f.name, pa.nulls(table.num_rows, f.type)) for f in ours]
    schema = pa.schema([*ours, *(pa.field(n, a.type) for n, a in extras.items())])
    return pa.table([*arrays, *extras.values()], schema=schema)


def _read_file(path: str) -> tuple[pa.Table, list[str | None] | None]:
    """Return the file's columns other than `image`, and the hashes of that one if it is there."""
    suffix = PurePosixPath(path).suffix.lower()
    try:
        if suffix == ".csv":
            from pyarrow import csv

            return csv.read_csv(open_table(path)), None
        if suffix in (".jsonl", ".ndjson"):
            try:
                return read_json_lines(read_table_bytes(path)), None
            except ManifestError as error:
                raise ManifestError(f"{path}: {error}.") from error
        with pq.ParquetFile(open_table(path)) as file:
            names = file.schema_arrow.names
            table = file.read(columns=[n for n in names if n != IMAGE_COLUMN])
            if IMAGE_COLUMN not in names:
                return table, None
            hashes = _hash_images(file, path)
    except FileNotFoundError:
        raise ManifestError(f"{path} does not exist; give a folder or a Parquet file.") from None
    except OSError as error:
        raise _unreadable(path, error) from error
    if len(hashes) != table.num_rows:
        # A damaged footer may say another number of rows for each column.
        raise ManifestError(
            f"{path} is damaged: its column image has {len(hashes)} rows, the others "
            f"{table.num_rows}; write it anew."
        )
    return table, hashes


def _hash_images(file: pq.ParquetFile, path: str) -> list[str | None]:
    kind = file.schema_arrow.field(IMAGE_COLUMN).type
    is_struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    if not (is_struct or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise ManifestError(
            f"{path}: column image is {kind}, want binary or struct<bytes, path>; "
            "name a column of paths image_uri."
        )
    hashes: list[str | None] = []
    for batch in file.iter_batches(batch_size=16, columns=[IMAGE_COLUMN]):
        for value in batch.column(0):
            data = photo_bytes(value)
            hashes.append(None if data is None else hash_bytes(data))
    return hashes


def _typed(
    column: pa.ChunkedArray, field: pa.Field, path: str, errors: dict[int, str]
) -> pa.ChunkedArray | pa.Array:
    """Return the column in the schema's type; values that are not of it become null and an error.

    Raises: ManifestError if no value of the column's type could be.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.type == field.type:
        return column
    if pa.types.is_list(field.type) and pa.types.is_string(column.type):
        return pa.array([None if v is None else [v] for v in column.to_pylist()], field.type)
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_null, pa.types.is_boolean)
    numeric = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    listed = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    wants_list = pa.types.is_list(field.type)
    if (wants_list != listed and not pa.types.is_null(column.type)) or not (
        listed or numeric or any(is_kind(column.type) for is_kind in kinds)
    ):
        raise ManifestError(
            f"{path}: column {field.name} is {column.type}, want {field.type}; "
            "write it as that, or rename it."
        )
    if numeric and pa.types.is_string(field.type) and field.name not in ("row_id", "prompt"):
        raise ManifestError(f"{path}: column {field.name} is {column.type}, want {field.type}.")
    try:
        return column.cast(field.type)
    except (pa.ArrowException, ValueError):
        return _typed_one_by_one(column.to_pylist(), field, errors)


def _typed_one_by_one(values: list[Any], field: pa.Field, errors: dict[int, str]) -> pa.Array:
    typed = []
    for index, value in enumerate(values):
        try:
            typed.append(pa.scalar(value).cast(field.type).as_py() if value is not None else None)
        except (pa.ArrowException, ValueError):
            errors.setdefault(index, f"{field.name} (={value!r}) must be {_said(field.type)}.")
            typed.append(None)
    return pa.array(typed, field.type)


def _said(kind: pa.DataType) -> str:
    if pa.types.is_integer(kind):
        return "a whole number"
    return "a number" if pa.types.is_floating(kind) else str(kind)


def _check_finite(columns: dict[str, Any], errors: dict[int, str]) -> None:
    for name in ("target", "strength"):
        if name in columns:
            finite = pc.fill_null(pc.is_finite(columns[name]), True)
            if not pc.all(finite).as_py():
                for index, is_finite in enumerate(finite.to_pylist()):
                    if not is_finite:
                        errors.setdefault(index, f"{name} must be a finite number.")
                columns[name] = pc.if_else(finite, columns[name], pa.scalar(None, pa.float64()))


def _resolved(
    path: str,
    columns: dict[str, Any],
    hashes: list[str | None] | None,
    num_rows: int,
    errors: dict[int, str],
    needs_image: bool,
) -> tuple[Any, Any]:
    """Return the columns image_uri and row_id, in full."""
    uris, row_ids = columns.get("image_uri"), columns.get("row_id")
    if hashes is None:
        plain = resolve_plain_rows(path, uris, row_ids)
        if plain is not None:
            return plain
    written_uris, written_ids = (
        [None] * num_rows if column is None else column.to_pylist() for column in (uris, row_ids)
    )
    names = None
    if not needs_image:
        prompts, seeds = (
            [None] * num_rows if column is None else column.to_pylist()
            for column in (columns.get("prompt"), columns.get("seed"))
        )
        names = [prompt_name(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
    full_uris, own_ids = resolve_rows(
        path,
        written_uris,
        written_ids,
        hashes,
        errors,
        needs_image=needs_image,
        names_of_rows=names,
    )
    return pa.array(full_uris, pa.string()), pa.array(own_ids, pa.string())


# Addresses of the common kinds with nothing wrong in them: the others are looked at one by one.
_HOST = r"[A-Za-z0-9][A-Za-z0-9-]{0,62}(\.[a-z0-9-]{1,63})*"
_PLAIN_ADDRESS = (
    rf"(?s)^[^:]*$|^s3://{_HOST}/.+$|"
    rf"^https?://{_HOST}(:[1-9][0-9]{{0,3}})?/([^\x00-\x1f\x7f\\%]|%[0-9A-Fa-f]{{2}})*$"
)


def wrong_addresses(uris: Any, hashes: list[str | None] | None) -> dict[int, str]:
    """Return {row: what is wrong with its address}; a photo in the manifest itself needs none."""
    if uris is None:
        return {}
    odd = pc.fill_null(pc.invert(pc.match_substring_regex(uris, _PLAIN_ADDRESS)), False)
    rows = pc.indices_nonzero(odd).to_pylist()
    wrong: dict[int, str] = {}
    for row, uri in zip(rows, uris.filter(odd).to_pylist(), strict=True):
        inside = hashes is not None and hashes[row] is not None
        if not inside and (problem := address_problem(uri)):
            wrong[row] = f"photo cannot be read: {problem}"
    return wrong


def _full_subjects(
    column: Any, path: str, errors: dict[int, str], wrong: dict[int, str]
) -> pa.Array:
    """Return the column with its addresses in full; what is wrong goes to `errors` and `wrong`."""
    rows: list[list[str] | None] = []
    folder = os.path.dirname(path)  # noqa: PTH120 (a path or a URI)
    for row, uris in enumerate(column.to_pylist()):
        resolved = [full_uri(uri, folder) for uri in uris or () if uri]
        problems = [problem for problem, _ in resolved if problem]
        if problems:
            errors.setdefault(row, problems[0].replace("image_uri", "subject_uris", 1))
        elif malformed := [p for uri in uris or () if uri and (p := address_problem(uri))]:
            wrong.setdefault(row, f"subject photo cannot be read: {malformed[0]}")
        rows.append([uri for _, uri in resolved] or None)
    return pa.array(rows, column.type)


def _extra_columns(table: pa.Table, path: str, own: Sequence[str]) -> dict[str, Any]:
    extras: dict[str, Any] = {}
    taken = set(table.column_names)
    if len(taken) < len(table.column_names):
        raise ManifestError(f"{path}: two columns have the same name; rename one.")
    for name in table.column_names:
        if name in own:
            continue
        carried = name
        if name in RESERVED_NAMES:
            carried = f"manifest_{name}"
            if carried in taken:
                raise ManifestError(
                    f"{path}: column {name} is a result column's name, and {carried} is taken too; "
                    "rename it or leave it out."
                )
        column = table[name]
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
            # Python's own datetime, through which rows travel, ends at microseconds.
            column = column.cast(pa.timestamp("us", column.type.tz), safe=False)
        extras[carried] = column
    return extras
