"""Storage known by URI: S3-compatible by Arrow's own client, others by Arrow or fsspec.

Credentials and endpoints come from the environment, never from a URI that is written down:
AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or a profile, or the machine's role), AWS_REGION,
AWS_ENDPOINT_URL or AWS_ENDPOINT_URL_S3 for a server that is not Amazon's.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar
from urllib.parse import urlsplit

import pyarrow as pa

from manifests import deadline
from manifests.addresses import (
    ARROW_OPTIONS,
    ARROW_SCHEMES,
    WEB_SCHEMES,
    fsspec_problem,
    reaching,
    shown,
)
from manifests.errors import AddressError
from manifests.web import fetch

T = TypeVar("T")

MAX_INPUT_BYTES = 2**31
"""A photo or manifest larger than this is not read: a server may send without end."""


def filesystem_of(uri: str) -> tuple[pa.fs.FileSystem, str]:
    """Return the storage a URI names, and the path in it: what follows the scheme, as written.

    Raises: OSError if no such storage is known here, or it cannot be reached.
    """
    from pyarrow import fs

    scheme, _, path = uri.partition("://")
    scheme = scheme.lower()
    with reaching(uri):
        if ARROW_OPTIONS.search(uri):
            return fs.FileSystem.from_uri(uri)
        if scheme == "s3":
            return _s3(path.partition("/")[0]), path
        if scheme in ARROW_SCHEMES:
            root = _arrow_root(f"{scheme}://{path.partition('/')[0]}")
            return root, fs.FileSystem.from_uri(_quoted(uri))[1]
        if scheme == "file":
            return fs.FileSystem.from_uri(uri)
        return _by_fsspec(uri)


def _quoted(uri: str) -> str:
    from urllib.parse import quote

    scheme, _, path = uri.partition("://")
    return f"{scheme}://{quote(path, safe='/@:')}"


def s3_endpoint() -> str | None:
    """Return the address of an S3 server other than Amazon's, None for Amazon's."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def s3_region() -> str | None:
    """Return the region that the environment names, None if it names none."""
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or None


def _s3(bucket: str) -> pa.fs.FileSystem:
    return _s3_client(bucket, s3_endpoint(), s3_region())


@lru_cache(maxsize=32)
def _s3_client(bucket: str, endpoint: str | None, region: str | None) -> pa.fs.FileSystem:
    """Return one client a bucket: to ask for its region takes a request, each time."""
    from pyarrow import fs

    if endpoint is None:
        return fs.S3FileSystem(region=region or fs.resolve_s3_region(bucket))
    parts = urlsplit(endpoint)
    if not parts.netloc:
        raise ValueError(f"AWS_ENDPOINT_URL (={endpoint!r}) must be http(s)://HOST[:PORT]")
    return fs.S3FileSystem(
        region=region or "us-east-1", endpoint_override=parts.netloc, scheme=parts.scheme
    )


@lru_cache(maxsize=32)
def _arrow_root(uri: str) -> pa.fs.FileSystem:
    from pyarrow import fs

    if uri.startswith(("gs:", "gcs:")):
        uri += "?retry_limit_seconds=15"  # Arrow's own limit is a quarter of an hour
    filesystem, path = fs.FileSystem.from_uri(uri)
    if filesystem.type_name == "abfs":
        # Without credentials Arrow's client ends the process as it opens a file. Asked whether one
        # is there it raises; and it is asked here, which no way to a file of its leads around.
        filesystem.get_file_info(f"{path.rstrip('/')}/_")
    return filesystem


def _by_fsspec(uri: str) -> tuple[pa.fs.FileSystem, str]:
    import fsspec
    from pyarrow import fs

    scheme, _, path = uri.partition("://")
    if problem := fsspec_problem(uri):
        raise AddressError(problem)
    filesystem, path = fsspec.core.url_to_fs(f"{scheme.lower()}://{path}")
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path


def read_remote(uri: str) -> bytes:
    """Return the bytes that a URI names, which is not a local file.

    Raises: OSError if it is not there, cannot be read, or is larger than MAX_INPUT_BYTES.
    """
    pieces: list[bytes] = []
    read_pieces(uri, pieces.append)
    return b"".join(pieces)


def read_pieces(uri: str, take: Callable[[bytes], object]) -> None:
    """Hand what a URI names to `take`, in pieces where its place sends it so; as `read_remote`."""
    if is_web(uri):
        fetch(uri, take, max_bytes=MAX_INPUT_BYTES)
        return
    take(in_time(lambda: _read(uri)))


def in_time(ask: Callable[[], T]) -> T:
    """Return what `ask` finds out at one address. Raises: DeadlineError past its limit."""
    return deadline.within(deadline.LIMITS.total_seconds, ask)


def _read(uri: str) -> bytes:
    from pyarrow import fs

    filesystem, path = filesystem_of(uri)
    if isinstance(filesystem, fs.PyFileSystem):
        # Arrow asks fsspec's `isfile` first, to which a broken connection is no file.
        opened = filesystem.handler.fs.open(path, "rb")
    else:
        opened = filesystem.open_input_stream(path)
    with opened as stream:
        data = stream.read(MAX_INPUT_BYTES + 1)
    if len(data) > MAX_INPUT_BYTES:
        raise AddressError(f"{shown(uri)}: larger than {MAX_INPUT_BYTES:,} bytes")
    return data


def stat_remote(uri: str) -> tuple[int | None, int | None]:
    """Return (size, modification time in ns) of what a URI names, None for what is not told."""
    if is_web(uri):
        return None, None
    return in_time(lambda: _stat(uri))


def _stat(uri: str) -> tuple[int | None, int | None]:
    from pyarrow import fs

    filesystem, name = filesystem_of(uri)
    info = filesystem.get_file_info(name)
    if info.type == fs.FileType.NotFound:
        raise AddressError(f"{shown(uri)}: does not exist")
    if info.type == fs.FileType.Directory:
        raise AddressError(f"{shown(uri)}: is a folder")
    return info.size, info.mtime_ns


def is_web(uri: str) -> bool:
    """Return whether a URI is a web address, which tells no size or time that can be trusted."""
    return uri.partition("://")[0].lower() in WEB_SCHEMES
