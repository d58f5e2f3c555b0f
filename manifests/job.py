"""`_job.json`: the one job an output folder belongs to, and the run it is at."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from manifests.errors import JobConflictError, ManifestError, OutputCorruptError
from manifests.identity import params_fingerprint
from manifests.originals import JOB_FILE
from manifests.parts import conform
from manifests.paths import TABLE_SUFFIXES, is_litter, local_path
from manifests.reading import DamagedFileError, parsed
from manifests.schemas import current_name
from manifests.secrets import scrub_uri
from manifests.storage import Storage

MANIFEST_FILE = "_manifest.parquet"
EXTRAS_FILE = "_state/extra_columns.arrow"
PARAMS_FOLDER = "_state/params"
SCHEMA_VERSION = 3
"""2: result columns for generated pictures and inversions follow the first version's.
3: and the delivered file's hash.
"""

VERSION_PARAMS = frozenset(
    {"doodl_version", "algorithm_version", "shipped_model_revision", "recipe"}
)
"""Parameters that come with the software: a newer version may change them and continues the job.

They are part of the fingerprint all the same, so a row says what it was made with.
"""

_PENDING = b"doodl_pending"
WAY_OUT = "choose another --out, or say --moved if it is the same collection in a new place."


def read_job(storage: Storage) -> dict[str, Any] | None:
    """Return the folder's job as recorded, None if it has none yet.

    Raises: OutputCorruptError if `_job.json` cannot be read as one.
    """
    try:
        job = json.loads(storage.read(JOB_FILE))
        if not isinstance(job, dict) or not isinstance(job.get("params"), dict):
            raise ValueError("no params in it")
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise OutputCorruptError(
            f"{storage.uri}/{JOB_FILE} is damaged ({error}); restore it, "
            "or choose another output folder."
        ) from error
    return job


def differences(
    recorded: Mapping[str, Any], wanted: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Return {option: (recorded, wanted)} for every result-changing option that differs.

    Options are the task and the params, nested ones by dotted name. VERSION_PARAMS do not count;
    and between two versions of the software neither do options only one of them knows.
    """
    old = _flat({"task": recorded.get("task"), **recorded["params"]})
    new = _flat({"task": wanted.get("task"), **wanted["params"]})
    names = [*old, *(n for n in new if n not in old)]
    if recorded.get("doodl_version") != wanted.get("doodl_version"):
        names = [n for n in names if n in old and n in new]
    return {
        n: (old.get(n), new.get(n))
        for n in names
        if old.get(n) != new.get(n) and VERSION_PARAMS.isdisjoint(n.split("."))
    }


def _flat(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def open_job(
    storage: Storage,
    job: Mapping[str, Any],
    *,
    redo: bool = False,
    moved: bool = False,
    extras: pa.Schema | None = None,
) -> dict[str, Any]:
    """Record `job` as the folder's, or check that it continues the folder's; return the record.

    The record is `job` and: `epoch`, the number of this run, which marks what it commits; `redo`,
    {"epoch", "open"} of the last `--redo`: rows committed before that epoch are not done.
    """
    wanted = _completed(job)
    recorded = read_job(storage)
    if recorded is None:
        refuse_foreign_folder(storage)
        record = {**wanted, "epoch": 1, "redo": {"epoch": 0, "open": False}}
    else:
        if not moved:
            refuse_other_photos(storage.uri, recorded, wanted)
        record = _continued(storage, recorded, wanted, redo)
    fingerprint = record["params_fingerprint"]
    params_path = f"{PARAMS_FOLDER}/{fingerprint}.json"
    if not storage.exists(params_path):
        storage.write(params_path, _json({"task": record["task"], "params": record["params"]}))
    older = recorded is not None and recorded.get("schema_version", 1) < SCHEMA_VERSION
    _open_extras(storage, extras, rewrite=older)
    storage.write(JOB_FILE, _json(record))
    return record


def close_redo(storage: Storage) -> None:
    """Record that every row of the redo is done, so that the next `--redo` begins another."""
    record = read_job(storage)
    if record is not None and record["redo"]["open"]:
        record["redo"]["open"] = False
        storage.write(JOB_FILE, _json(record))


def _completed(job: Mapping[str, Any]) -> dict[str, Any]:
    missing = [name for name in ("task", "params") if name not in job]
    if missing:
        raise ValueError(f"job has no {missing[0]!r}; give task, params and doodl_version.")
    wanted = json.loads(_json(dict(job)))  # tuples and the like, as they will be read back
    wanted.setdefault("params_fingerprint", params_fingerprint(wanted["params"]))
    wanted.setdefault("schema_version", SCHEMA_VERSION)
    wanted.setdefault("created_at", datetime.now(UTC).isoformat(timespec="seconds"))
    return wanted


def _continued(
    storage: Storage, recorded: dict[str, Any], wanted: dict[str, Any], redo: bool
) -> dict[str, Any]:
    version = recorded.get("schema_version", SCHEMA_VERSION)
    if version > SCHEMA_VERSION:
        raise JobConflictError(
            f"{storage.uri} was written by a newer doodl-batch (schema_version {version}, this "
            f"one knows {SCHEMA_VERSION}); upgrade, or choose another --out."
        )
    changed = differences(recorded, wanted)
    if changed and not redo:
        named = ", ".join(f"{n}: {old!r} → {new!r}" for n, (old, new) in changed.items())
        raise JobConflictError(
            f"{storage.uri} belongs to a job with other options ({named}); "
            "choose another --out, or do everything again with --redo.",
            changed,
        )
    epoch = int(recorded.get("epoch", 0)) + 1
    last = recorded.get("redo", {"epoch": 0, "open": False})
    if redo and (changed or not last["open"]):
        last = {"epoch": epoch, "open": True}
    created = recorded.get("created_at", wanted["created_at"])
    return {**recorded, **wanted, "created_at": created, "epoch": epoch, "redo": last}


def refuse_other_photos(uri: str, recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise JobConflictError if a folder's results are those of another folder of photos.

    Two manifests may take turns: their rows say which photos they mean.
    """
    was, now = recorded.get("photos"), wanted.get("photos")
    if not was or not now or _same_place(was, now) or (_is_table(was) and _is_table(now)):
        return
    raise JobConflictError(
        f"{uri} holds the results of {scrub_uri(was)}, not of {scrub_uri(now)}; {WAY_OUT}",
        {"photos": (was, now)},
    )


def _same_place(first: str, second: str) -> bool:
    paths = local_path(first), local_path(second)
    if None in paths:
        return first.rstrip("/") == second.rstrip("/")
    a, b = (os.path.realpath(str(path)) for path in paths)
    if a == b:
        return True
    with suppress(OSError):
        return os.path.samefile(a, b)  # noqa: PTH121
    return False


def _is_table(place: str) -> bool:
    return PurePosixPath(place).suffix.lower() in TABLE_SUFFIXES


def refuse_foreign_folder(storage: Storage) -> None:
    """Raise JobConflictError if a folder without a job holds anything but the start of one.

    `_job.json` is written before any photo: without it a folder `edited` is somebody's own.
    """
    names = [e.name for e in storage.files("")]
    names += [n for n in storage.folders("") if n != "_state" and not _is_empty(storage, n)]
    foreign = [n for n in names if not is_litter(n)]
    if foreign:
        raise JobConflictError(
            f"{storage.uri} holds other files ({foreign[0]!r}) and no {JOB_FILE}; "
            "choose a new or empty folder with --out."
        )


def _is_empty(storage: Storage, folder: str) -> bool:
    return not storage.files(folder) and not storage.folders(folder)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n").encode()


def read_extras(storage: Storage) -> pa.Schema:
    """Return the schema of the job's extra columns (empty if it has none)."""
    return _current(_read_extras(storage))


def _current(schema: pa.Schema) -> pa.Schema:
    """Return an extras schema under today's names, without its metadata."""
    return pa.schema([pa.field(current_name(f), f.type) for f in schema])


def _read_extras(storage: Storage) -> pa.Schema:
    try:
        return parsed(storage, EXTRAS_FILE, pa.ipc.read_schema)
    except FileNotFoundError:
        return pa.schema([])
    except DamagedFileError as error:
        raise OutputCorruptError(
            f"{storage.uri}/{EXTRAS_FILE} is damaged ({error}); restore it, "
            "or choose another output folder."
        ) from error


def _open_extras(storage: Storage, extras: pa.Schema | None, *, rewrite: bool) -> None:
    """Let the job's extra columns be those it had and those of `extras`, in every part alike.

    Args:
        rewrite: an older version has written parts: give them today's columns.
    """
    recorded = _read_extras(storage)
    pending = rewrite or _PENDING in (recorded.metadata or {})
    recorded = _current(recorded)
    united = recorded
    if extras is not None:
        united = _united(recorded, pa.schema([pa.field(f.name, f.type) for f in extras]))
    if united == recorded and not pending:
        return
    # Marked as pending first: a crash among the rewrites is then made good by the next run.
    _write_extras(storage, united.with_metadata({_PENDING: b"1"}))
    conform(storage, united)
    _write_extras(storage, united)


def _write_extras(storage: Storage, schema: pa.Schema) -> None:
    storage.write(EXTRAS_FILE, schema.serialize().to_pybytes())


def _united(recorded: pa.Schema, extras: pa.Schema) -> pa.Schema:
    try:
        return pa.unify_schemas([recorded, extras], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        for field in extras:
            index = recorded.get_field_index(field.name)
            if index >= 0 and recorded.field(index).type != field.type:
                raise ManifestError(
                    f"extra column {field.name!r}: got {field.type}, earlier results have "
                    f"{recorded.field(index).type}; write it as that, or rename it."
                ) from error
        raise
