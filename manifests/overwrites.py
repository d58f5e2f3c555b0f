"""Delivered photos written over by an attempt that did not commit: put back on the next start.

A changed photo's edit goes to the name the old one has, before its row is committed. A worker that
dies in between would leave the old row with the new photo: so what is about to be written over is
first kept under a second name, which costs a hard link, until the new row is published.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import pyarrow as pa

from manifests.identity import hash_bytes
from manifests.parts import RESULTS, epoch_of, list_parts, part_path, part_schema, read_results
from manifests.schemas import FILE_COLUMNS, RESULT_SCHEMA
from manifests.settling import load_staged
from manifests.staging import StagedRow
from manifests.storage import Storage, own_files

OVERWRITTEN = "_state/overwritten"
_KEPT_NAME = re.compile(r"[0-9a-f]{32}-[0-9]+")


def keep_overwritten(storage: Storage, edited_uri: str, epoch: int) -> None:
    """Keep the delivered photo of that name, if there is one, until `epoch`'s row is published."""
    if storage.exists(edited_uri):
        storage.link(edited_uri, f"{OVERWRITTEN}/{_key(edited_uri)}-{epoch}")


def forget_overwritten(storage: Storage, rows: Iterable[StagedRow]) -> None:
    """Let go what was kept of photos that these rows, now published, have replaced."""
    kept = _kept(storage)
    for row in rows if kept else ():
        for uri in row.files:
            for epoch in kept.get(_key(uri), ()):
                if epoch <= row.epoch:
                    storage.delete(f"{OVERWRITTEN}/{_key(uri)}-{epoch}")


def restore_overwritten(storage: Storage) -> int:
    """Put back the photos of rows whose successors were never committed; return how many.

    For the start of a run, when no worker writes.
    """
    kept = _kept(storage)
    if not kept:
        return 0
    owners = _owners(storage, set(kept))
    restored = 0
    for key, epochs in kept.items():
        uri, committed = owners.get(key, ("", max(epochs)))
        for epoch in sorted(epochs):
            path = f"{OVERWRITTEN}/{key}-{epoch}"
            if epoch > committed:
                storage.move(path, uri)
                restored += 1
                committed = max(epochs)  # later attempts wrote over what was not theirs either
            else:
                storage.delete(path)
    return restored


def _key(edited_uri: str) -> str:
    return hash_bytes(edited_uri.encode("utf-8", "surrogatepass"))


def _kept(storage: Storage) -> dict[str, list[int]]:
    """Return {key of the photo's name: the runs that wrote over it}."""
    kept: dict[str, list[int]] = {}
    for entry in own_files(storage, OVERWRITTEN, _KEPT_NAME):
        key, _, epoch = entry.name.rpartition("-")
        kept.setdefault(key, []).append(int(epoch))
    return kept


def _owners(storage: Storage, keys: set[str]) -> dict[str, tuple[str, int]]:
    """Return {key: (name, run that committed its row)} of the committed rows among these."""
    owners: dict[str, tuple[str, int]] = {}

    schema = pa.schema([RESULT_SCHEMA.field(name) for name in FILE_COLUMNS])

    def note(uri: str, epoch: int) -> None:
        if (key := _key(uri)) in keys:
            owners[key] = max(owners.get(key, (uri, epoch)), (uri, epoch))

    for number in list_parts(storage, RESULTS):
        path = part_path(RESULTS, number)
        epoch = epoch_of(part_schema(storage, path))
        named = read_results(storage, path, schema)
        for column in named.columns:
            for uri in column.drop_null().to_pylist():
                note(uri, epoch)
    for row in load_staged(storage):
        for uri in row.files:
            note(uri, row.epoch)
    return owners
