"""Which row is the same row: fingerprints, keys and seeds.

All keys are BLAKE2b digests of 128 bits in hex, over parts that each carry their length, so that
no two lists of parts can run together into the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any

KEY_BYTES = 16

RESULT_CHANGING_COLUMNS = ("prompt", "direction", "target", "seed", "strength")
"""The manifest columns that change a row's result, beside its photo and its subject photos."""


def canonical_json(value: Any) -> bytes:
    """Return the one JSON text of `value`: sorted keys, no spaces, UTF-8, no NaN or infinity.

    Raises: ValueError for a value JSON cannot say (NaN, an object, a non-string key).
    """
    _check_keys(value)
    try:
        text = json.dumps(
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
    except TypeError as error:
        raise ValueError(f"{error}; use text, numbers, booleans, None, lists and dicts.") from error
    # A lone surrogate (an undecodable file name) is legal in a Python string, not in UTF-8.
    return text.encode("utf-8", "surrogatepass")


def _check_keys(value: Any) -> None:
    # json.dumps turns 1, 1.0 and "1" into the same key, without a word.
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"key (={key!r}) must be text.")
            _check_keys(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_keys(item)


def digest_of(kind: bytes, parts: Iterable[bytes]) -> str:
    """Return the key of `parts` within the namespace `kind`."""
    return _digest([framed(kind), *map(framed, parts)])


def framed(part: bytes) -> bytes:
    """Return the part with its length before it."""
    return len(part).to_bytes(8, "little") + part


def _digest(framed_parts: Iterable[bytes]) -> str:
    return hashlib.blake2b(b"".join(framed_parts), digest_size=KEY_BYTES).hexdigest()


def params_fingerprint(params: Mapping[str, Any]) -> str:
    """Return the fingerprint of everything in a job that changes its results.

    Args:
        params: JSON values only; the order of its keys does not matter.
    Raises: ValueError for a value JSON cannot say.
    """
    return digest_of(b"params/1", (canonical_json(params),))


def columns_json(columns: Mapping[str, Any]) -> bytes:
    """Return the canonical JSON of a row's own options.

    Nulls are left out, so that a manifest that gains an empty column changes no key; a whole
    number is written as the float it is read back as, so that 1 and 1.0 are one strength.
    """
    said = {}
    for name, value in columns.items():
        if value is None:
            continue
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} (={value}) must be a finite number.")
        said[name] = float(value) if name in ("target", "strength") else value
    return canonical_json(said)


def input_key(
    image_hash: str | None, columns: Mapping[str, Any], subject_hashes: Sequence[str | None] = ()
) -> str:
    """Return the key of one row's input.

    Args:
        image_hash: hash of the photo's bytes; None where there is no photo, or none readable.
        columns: the row's RESULT_CHANGING_COLUMNS (others must not be given).
        subject_hashes: hashes of the subject photos, in the row's order.
    """
    return input_key_of_framed(image_hash, framed(columns_json(columns)), subject_hashes)


def input_key_of_framed(
    image_hash: str | None, columns: bytes, subject_hashes: Sequence[str | None] = ()
) -> str:
    """Return `input_key` of columns given as their `columns_json`, framed: made once for many."""
    parts = [_INPUT, framed((image_hash or "").encode()), columns]
    parts.extend(framed((subject or "").encode()) for subject in subject_hashes)
    return _digest(parts)


_INPUT = framed(b"input/1")


def work_key(input_key: str, params_fingerprint: str) -> str:
    """Return the key of one computation: this input under these parameters."""
    return digest_of(b"work/1", (input_key.encode(), params_fingerprint.encode()))


def row_seed(work_key: str, seed: int | None = None) -> int:
    """Return the row's random seed in [0, 2**63): its own, or one derived from its work_key.

    It depends on no worker, order or batch.
    """
    if seed is not None:
        return int(seed)
    return int(digest_of(b"seed/1", (work_key.encode(),))[:16], 16) >> 1


def new_hash() -> Any:
    """Return the state of a content hash, which takes the bytes by its `update`."""
    return hashlib.blake2b(digest_size=KEY_BYTES)


def hash_bytes(data: bytes | bytearray | memoryview) -> str:
    """Return the content hash of `data`."""
    return hashlib.blake2b(data, digest_size=KEY_BYTES).hexdigest()


def hash_file(path: str | PathLike[str]) -> str:
    """Return the content hash of a local file, read in pieces.

    Raises: OSError as `open` and `read` do.
    """
    with open(path, "rb") as file:  # noqa: PTH123 (surrogate-escaped names come as str)
        state = hashlib.file_digest(file, new_hash)
    return state.hexdigest()
