"""From the URIs and names a manifest writes to a full image_uri and a row_id for every row."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from manifests.identity import hash_bytes
from manifests.inline import inline_uri
from manifests.paths import MAX_ROW_ID_BYTES, has_scheme, row_id_problem
from manifests.secrets import scrub_uri


class RowNames:
    """Hands out row_ids, each once.

    Attributes:
        first_row: the row that has each row_id.
    """

    def __init__(self, explicit: set[str]):
        self.first_row: dict[str, int] = {}
        self._explicit = explicit
        self._next: dict[str, int] = {}

    def give(self, name: str, row: int, *, is_explicit: bool) -> str:
        """Return `name` if it is free for this row, else the first free of name~2, name~3, ..."""
        if name in self.first_row or (not is_explicit and name in self._explicit):
            number = self._next.get(name, 2)
            while f"{name}~{number}" in self.first_row or f"{name}~{number}" in self._explicit:
                number += 1
            self._next[name] = number + 1
            name = f"{name}~{number}"
        self.first_row[name] = row
        return name


def resolve_rows(
    manifest: str,
    uris: Sequence[str | None],
    row_ids: Sequence[str | None],
    hashes: Sequence[str | None] | None,
    errors: dict[int, str],
    *,
    needs_image: bool,
    names_of_rows: Sequence[str | None] | None = None,
) -> tuple[list[str | None], list[str]]:
    """Return each row's full image_uri and its own row_id; what is wrong goes to `errors`.

    Args:
        manifest: path of the manifest; relative URIs are taken from its folder.
        uris, row_ids: as written.
        hashes: of the photos in the manifest itself, None for rows without one there.
        names_of_rows: for rows that have neither a photo nor a row_id.
    """
    folder = os.path.dirname(manifest)  # noqa: PTH120 (text in, text out)
    names = RowNames({row_id for row_id in row_ids if row_id is not None})
    full_uris: list[str | None] = []
    own_ids: list[str] = []
    for row, (uri, own) in enumerate(zip(uris, row_ids, strict=True)):
        problem = None
        name = None
        if hashes is not None and hashes[row] is not None:
            name = name_of(uri, folder) if uri else None
            uri = inline_uri(manifest, row)
        elif uri:
            problem, uri = full_uri(uri, folder)
            name = name_of(uri, folder) if problem is None else None
        elif needs_image:
            problem = f"image_uri is null in row {row}; give the photo's path."
        elif names_of_rows is not None:
            name = names_of_rows[row]
        if own is not None:
            problem = row_id_problem(own) or problem
            name = own
            if own in names.first_row:
                problem = (
                    f"row_id (={own!r}) of row {row} is that of row {names.first_row[own]} "
                    "already; give each row its own."
                )
        full_uris.append(uri)
        own_ids.append(names.give(name or f"row-{row:07d}", row, is_explicit=own is not None))
        if problem:
            errors.setdefault(row, problem)
    return full_uris, own_ids


_NOT_WORD = re.compile(r"[^\w]+")
_MAX_SLUG_CHARS = 60


def prompt_name(prompt: str | None, seed: int | None = None) -> str:
    """Return a row_id for a picture made of words: `a-photo-of-a-rose-seed3`.

    Prompts that are told apart by more than the words' letters, or too long for a name, carry
    eight hex digits of their hash: `a-rose-1f2e3d4c-seed3`.
    """
    prompt = prompt or ""
    slug = _NOT_WORD.sub("-", unicodedata.normalize("NFKC", prompt).casefold()).strip("-_")
    slug = slug[:_MAX_SLUG_CHARS].rstrip("-_")
    if prompt and slug.replace("-", " ") != prompt:
        digest = hash_bytes(prompt.encode("utf-8", "surrogatepass"))[:8]
        slug = f"{slug}-{digest}" if slug else digest
    return with_seed(slug or "unprompted", seed)


def with_seed(name: str, seed: int | None) -> str:
    """Return the name with its seed at the end, or as it is without one."""
    return name if seed is None else f"{name}-seed{seed}"


# Empty, "." and ".." components, NUL, backslashes and drives: names to be looked at one by one.
_NOT_PLAIN = r"(^|/)\.{0,2}(/|$)|[\x00\\]|^[A-Za-z]:"


def resolve_plain_rows(
    manifest: str, uris: pa.ChunkedArray | None, row_ids: pa.ChunkedArray | None
) -> tuple[pa.ChunkedArray, pa.ChunkedArray] | None:
    """Return what `resolve_rows` does, a hundred times faster, or None if any row is special."""
    if uris is None or uris.null_count or len(uris) == 0:
        return None
    folder = os.path.dirname(manifest) + "/"  # noqa: PTH120 (text in, text out)
    has_root = pc.match_substring_regex(uris, r"^/|^[A-Za-z][A-Za-z0-9+.-]+://")
    below = pc.starts_with(uris, folder)
    names = pc.replace_substring_regex(uris, r"^(/|[A-Za-z][A-Za-z0-9+.-]+://)", "")
    names = pc.if_else(below, pc.utf8_slice_codeunits(uris, len(folder)), names)
    signed = pc.match_substring_regex(uris, r"^[A-Za-z][A-Za-z0-9+.-]+://[^ ]*[?@]")
    if not _all_plain(names) or pc.any(signed).as_py():
        return None
    if row_ids is not None:
        if row_ids.null_count or not _all_plain(row_ids):
            return None
        names = row_ids
    if pc.count_distinct(names).as_py() < len(names):
        return None
    return pc.if_else(has_root, uris, pc.binary_join_element_wise(folder, uris, "")), names


def _all_plain(names: pa.ChunkedArray) -> bool:
    special = pc.or_(
        pc.match_substring_regex(names, _NOT_PLAIN),
        pc.greater(pc.binary_length(names), MAX_ROW_ID_BYTES),
    )
    return not pc.any(special).as_py()


def full_uri(uri: str, folder: str) -> tuple[str | None, str]:
    """Return what is wrong with a URI as written (None if nothing is), and its full form."""
    if "\x00" in uri:
        return f"image_uri (={scrub_uri(uri)!r}) holds a NUL character; leave it out.", uri
    if uri.startswith("/") or has_scheme(uri) or os.path.isabs(uri):  # noqa: PTH117
        return None, uri
    if ".." in uri and ".." in uri.replace("\\", "/").split("/"):
        return (
            f"image_uri (={uri!r}) leaves the manifest's folder; write the photo's absolute path.",
            uri,
        )
    return None, f"{folder}/{uri}"


def name_of(uri: str, folder: str) -> str:
    """Return the row_id a URI gives its row: below the manifest's folder the path from there.

    What signs a URI, or lets its user in, is no part of the name: it changes, and is secret.
    """
    uri = scrub_uri(uri)
    if uri.startswith(folder + "/"):
        name = uri[len(folder) + 1 :]
    else:
        name = uri.partition("://")[2] if has_scheme(uri) else uri
    parts = name.split("/")
    if "" in parts or "." in parts or ".." in parts:
        name = "/".join(part for part in parts if part not in ("", ".", ".."))
    if row_id_problem(name) is not None:
        return "photo-" + hash_bytes(uri.encode("utf-8", "surrogatepass"))[:16]
    return name
