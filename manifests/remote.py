"""Storage known by URI: S3-compatible by Arrow's own client, others by Arrow or fsspec.

Credentials and endpoints come from the environment, never from a URI that is written down:
AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or a profile, or the machine's role), AWS_REGION,
AWS_ENDPOINT_URL or AWS_ENDPOINT_URL_S3 for a server that is not Amazon's.
"""

from __future__ import annotations

import errno
import os
import re
from functools import lru_cache
from urllib.parse import urlsplit

import pyarrow as pa

MAX_INPUT_BYTES = 2**31
"""A photo or manifest larger than this is not read: a server may send without end."""

_ARROW_SCHEMES = ("gs", "gcs", "abfs", "abfss", "hdfs")
_ARROW_OPTIONS = re.compile(r"\?(region|scheme|endpoint_override|allow_bucket_creation)=")


def filesystem_of(uri: str) -> tuple[pa.fs.FileSystem, str]:
    """Return the storage a URI names, and the path in it: what follows the scheme, as written.

    Raises: OSError if no such storage is known here.
    """
    from pyarrow import fs

    scheme, _, path = uri.partition("://")
    scheme = scheme.lower()
    try:
        if _ARROW_OPTIONS.search(uri):
            return fs.FileSystem.from_uri(uri)
        if scheme == "s3":
            return _s3(path.partition("/")[0]), path
        if scheme in _ARROW_SCHEMES:
            root = _arrow_root(f"{scheme}://{path.partition('/')[0]}")
            return root, fs.FileSystem.from_uri(_quoted(uri))[1]
        if scheme == "file":
            return fs.FileSystem.from_uri(uri)
        return _by_fsspec(uri)
    except (pa.ArrowException, ValueError, ImportError) as error:
        raise OSError(errno.EINVAL, f"no storage known by {scheme}:// here ({error})") from error


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
    return fs.FileSystem.from_uri(uri)[0]


def _by_fsspec(uri: str) -> tuple[pa.fs.FileSystem, str]:
    import fsspec
    from pyarrow import fs

    filesystem, path = fsspec.core.url_to_fs(uri)
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path


def read_remote(uri: str) -> bytes:
    """Return the bytes that a URI names.

    Raises: OSError if it is not there, cannot be read, or is larger than MAX_INPUT_BYTES.
    """
    filesystem, path = filesystem_of(uri)
    with filesystem.open_input_stream(path) as stream:
        data = stream.read(MAX_INPUT_BYTES + 1)
    if len(data) > MAX_INPUT_BYTES:
        raise OSError(errno.EFBIG, f"larger than {MAX_INPUT_BYTES:,} bytes")
    return data


def is_web(uri: str) -> bool:
    """Return whether a URI is a web address, which tells no size or time that can be trusted."""
    return uri.startswith(("http://", "https://"))
