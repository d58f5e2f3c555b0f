"""The files that guides are loaded from: the ones that a job recorded, and no others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from doodl.guidance.revisions import all_revisions, current_revision
from manifests.job import JOB_FILE, differences
from manifests.storage import Storage
from pipeline.errors import UnusableEnvironmentError
from pipeline.spec import JobSpec, row_guides

_OWN, _BESIDE = "guide_revisions", "beside_revisions"
_SHORT = len("blake2b:") + 8


def with_row_guides(spec: JobSpec, table: pa.Table) -> JobSpec:
    """Return the spec with the revisions of the files that its rows' own guides name."""
    if "guides" not in table.column_names:
        return spec
    texts = [text for text in pc.unique(table["guides"]).to_pylist() if text is not None]
    guides = [guide for text in texts for guide in row_guides(text, spec)]
    found = all_revisions(guides)
    new = {name: found[name] for name in found if name not in spec.guide_revisions}
    return replace(spec, beside_revisions={**spec.beside_revisions, **new})


def check_guide_files(spec: JobSpec) -> None:
    """Raise UnusableEnvironmentError if a guide's file is not, here and now, the job's."""
    for name, recorded in {**spec.guide_revisions, **spec.beside_revisions}.items():
        found = current_revision(name)
        if found is None and name.startswith("module of "):
            continue  # it may come to workers by another way than the submitter's
        if found != recorded:
            raise UnusableEnvironmentError(
                f"guide {name} is {'not there' if found is None else _short(found)} here and was "
                f"{_short(recorded)} when the job was made; put the file back, or start the job "
                "anew."
            )


def changed_options(
    recorded: Mapping[str, Any], wanted: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Return `differences` of two jobs' records, and the guides' files that have changed.

    A file that the folder's job did not record is none: it was begun before files were.
    """
    own, before = (dict(job["params"].get(_OWN, {})) for job in (wanted, recorded))
    known = {**own, **before}
    params = {**recorded["params"], **({_OWN: known} if known else {})}
    changed = differences({**recorded, "params": params}, wanted)
    tables = (_OWN, before, own), (_BESIDE, recorded.get(_BESIDE, {}), wanted.get(_BESIDE, {}))
    return changed | {
        f"{table}.{name}": (then[name], now[name])
        for table, then, now in tables
        for name in then.keys() & now.keys()
        if then[name] != now[name]
    }


def named_changes(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """Return options and files that have changed as words, each with what it was and is."""
    return ", ".join(
        f"{_named(n)}: {_value(n, a)} → {_value(n, b)}" for n, (a, b) in changed.items()
    )


def adopt_guide_files(storage: Storage, recorded: Mapping[str, Any], spec: JobSpec) -> str | None:
    """Record the guides' files of a folder that was begun before they were; say it in one line.

    Returns: None if there are none to record.
    """
    known, beside = recorded["params"].get(_OWN, {}), recorded.get(_BESIDE)
    new = {name: now for name, now in spec.guide_revisions.items() if name not in known}
    if beside is None:
        new |= spec.beside_revisions
    if not new:
        return None
    own = {**spec.guide_revisions, **known}
    params = {**recorded["params"], **({_OWN: own} if own else {})}
    text = json.dumps({**recorded, "params": params}, indent=1, ensure_ascii=False)
    storage.write(JOB_FILE, (text + "\n").encode())
    named = ", ".join(f"{name} ({_short(now)})" for name, now in new.items())
    return (
        f"{storage.uri} was begun before the files of guides were recorded: what is done stays, "
        f"and from now on they are {named}; --redo does everything again with them"
    )


def _named(option: str) -> str:
    prefix, _, name = option.partition(".")
    return f"guide {name}" if prefix in (_OWN, _BESIDE) else option


def _value(option: str, value: Any) -> str:
    is_revision = option.startswith((f"{_OWN}.", f"{_BESIDE}."))
    return _short(value) if is_revision and value is not None else repr(value)


def _short(revision: str) -> str:
    return revision[:_SHORT]
