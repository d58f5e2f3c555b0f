"""Addresses: what is wrong with one as written, and what it means that one could not be read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from http.client import InvalidURL
from urllib.parse import unquote, urlsplit

from manifests.errors import AddressError, ManifestError, OutOfReachError
from manifests.paths import has_scheme, local_path
from manifests.secrets import scrub, scrub_uri

WEB_SCHEMES = ("http", "https")
ARROW_SCHEMES = ("gs", "gcs", "abfs", "abfss", "hdfs")
ARROW_OPTIONS = re.compile(r"\?(region|scheme|endpoint_override|allow_bucket_creation)=")

# Names that are no file's: whoever has a file `data:a.jpg` writes `./data:a.jpg` (RFC 3986, 4.2).
_NO_FILES = re.compile(
    r"(?i)^(data|magnet|blob|urn|mailto|cid|javascript|about|https?|s3|gs|file):"
)
# What no scheme can be (`a b://c`), and a chain (`simplecache::s3://…`): whoever has a file of such
# a name writes `./` before it.
_ODD_SCHEME = re.compile(r"[^/]*://")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HOST = re.compile(rb"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+(%[A-Za-z0-9._-]+)?")  # a name, IPv6
# What fsspec calls the files of this machine, and what it lays over other addresses. By either a
# local file would be read that no check of originals knows for one.
_NO_STORAGE = frozenset(
    {
        "async_wrapper", "asynclocal", "asyncwrapper", "blockcache", "cached", "dask", "dir",
        "filecache", "generic", "git", "libarchive", "local", "reference", "simplecache", "tar",
        "zip",
    }
)  # fmt: skip
_MAX_SHOWN_CHARS = 120
_MAX_REASON_CHARS = 200

# By what Arrow's clients say of an answer, and by HTTP's numbers: another night hears the same.
_REFUSED = re.compile(
    r"\b(ACCESS_DENIED|NO_SUCH_BUCKET|NO_SUCH_KEY|RESOURCE_NOT_FOUND|INVALID_ACCESS_KEY_ID|"
    r"SIGNATURE_DOES_NOT_MATCH|PERMISSION_DENIED|NOT_FOUND|HTTP status 4(0[0134]|10))\b"
)
_TRY_LATER = (408, 425, 429)
# What clients raise of an address that they do not understand.
_MISUNDERSTOOD = (
    ValueError, TypeError, LookupError, AttributeError, ImportError, NotImplementedError,
    FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, InvalidURL,
)  # fmt: skip


def address_problem(uri: str) -> str | None:
    """Return what is wrong with an address as written, None if nothing is. Nobody is asked."""
    if "\x00" in uri:
        return "the address holds a NUL character; leave it out."
    if not has_scheme(uri):
        return _path_problem(uri)
    scheme, _, rest = uri.partition("://")
    scheme = scheme.lower()
    if not rest.strip("/"):
        return f"{scheme}:// names no file."
    if scheme == "file":
        return _file_problem(rest)
    if scheme in WEB_SCHEMES:
        return _web_problem(scheme, uri)
    if scheme == "s3" or scheme in ARROW_SCHEMES:
        return _bucket_problem(scheme, uri)
    return fsspec_problem(uri)


def _path_problem(path: str) -> str | None:
    if named := _NO_FILES.match(path):
        return f"{named[1].lower()}: without // names no file; give a path or a URI."
    if "::" in path and path.partition("::")[0].lower() in _NO_STORAGE:
        return chain_problem(path)
    is_drive = os.name == "nt" and path[1:3] == ":/"
    if not is_drive and _ODD_SCHEME.match(path):
        return chain_problem(path) or f"{_first_name(path)}:// is no scheme; give a path or a URI."
    return None


def _file_problem(rest: str) -> str | None:
    host, _, path = rest.partition("/")
    if host.lower() not in ("", "localhost"):
        return "file:// names a machine; write file:///FOLDER/FILE, which is on this one."
    if not path:
        return "file:// names no file."
    if _BAD_ESCAPE.search(path):
        return "file:// address with a % that begins no escape; write %25 for a percent sign."
    return "file:// address that holds a NUL character; leave it out." if "%00" in path else None


def _web_problem(scheme: str, uri: str) -> str | None:
    if _CONTROL.search(uri):
        return f"{scheme}:// address that holds a control character; leave it out."
    if "\\" in uri:
        return f"{scheme}:// address that holds a backslash; write %5C, or a slash."
    try:
        parts = urlsplit(uri)
        host = parts.hostname
        encoded = (host or "").encode("idna")
        if host and not _HOST.fullmatch(encoded):
            raise ValueError(host)
    except ValueError:
        return f"{scheme}:// address whose host is malformed; correct it."
    if not host:
        return f"{scheme}:// names no host."
    try:
        valid = parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        return f"{scheme}:// address whose port is no number from 1 to 65535; correct it."
    if _BAD_ESCAPE.search(f"{parts.path}?{parts.query}"):
        return f"{scheme}:// address with a % that begins no escape; write %25 for a percent sign."
    return None


def _bucket_problem(scheme: str, uri: str) -> str | None:
    rest = uri.partition("://")[2]
    bucket = re.split(r"[/?]", rest, maxsplit=1)[0]
    if scheme == "s3" and "@" in bucket and not ARROW_OPTIONS.search(uri):
        return "s3:// address with a user in it; credentials come from the environment."
    if not bucket or (scheme != "hdfs" and not _BUCKET.fullmatch(bucket.rpartition("@")[2])):
        return f"{scheme}:// names no valid bucket; write {scheme}://BUCKET/FILE."
    return None if rest[len(bucket) + 1 :] else f"{scheme}:// names a bucket and no file in it."


def fsspec_problem(uri: str) -> str | None:
    """Return why fsspec is not asked for a URI, None if it is."""
    return chain_problem(uri) or _unknown_storage(uri.partition("://")[0].lower())


def chain_problem(uri: str) -> str | None:
    """Return what is wrong with addresses that are chained, as fsspec does; None if none are."""
    if "::" not in uri:
        return None
    return f"{_first_name(uri)}: addresses chained by :: are not read; give the file's own."


def _first_name(uri: str) -> str:
    return shown(uri.partition(":")[0])


@lru_cache(maxsize=256)
def _unknown_storage(scheme: str) -> str | None:
    """Return why nothing here reads what a scheme names, None if something of fsspec's does."""
    if scheme in _NO_STORAGE:
        return f"{scheme}:// names no storage; give the file's path, or its file:///FOLDER/FILE."
    try:
        import fsspec

        fsspec.get_filesystem_class(scheme)
    except (ImportError, ValueError) as error:
        return f"no storage known by {scheme}:// here ({_first_line(error)})"
    return None


def shown(uri: str) -> str:
    """Return an address for a message: without secrets, on one line, of bounded length."""
    scheme, separator, rest = scrub(scrub_uri(uri)).partition("://")
    text = f"{scheme.lower()}{separator}{rest.partition('?')[0]}" if separator else scheme
    text = repr(text)[1:-1]
    return text if len(text) <= _MAX_SHOWN_CHARS else text[: _MAX_SHOWN_CHARS - 3] + "..."


def said(error: BaseException) -> str:
    """Return an error as one line without secrets, and without the number of an OSError."""
    return scrub(" ".join(str(getattr(error, "strerror", None) or error).split()))


@contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Turn whatever the body raises while it asks for an address into one of two errors.

    Errors of local files stay what they are. Raises: AddressError, OutOfReachError, OSError.
    """
    try:
        yield
    except (AddressError, ManifestError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and local_path(uri) is not None:
            raise
        raise address_error(uri, error) from error


def address_error(uri: str, error: Exception) -> AddressError:
    """Return what an error of any client means: the address is wrong, or out of reach now."""
    reason = _first_line(error)
    for secret in _secrets(uri):
        reason = reason.replace(secret, "...")
    if reason.startswith(shown(uri)):  # as clients say that nothing is there
        reason = type(error).__name__
    text = f"{shown(uri)}: {reason[:_MAX_REASON_CHARS]}"
    status = _status(error)
    if status is not None:
        return status_error(status, text)
    for_good = isinstance(error, _MISUNDERSTOOD) or _REFUSED.search(reason)
    return AddressError(text) if for_good else OutOfReachError(text)


def status_error(status: int, text: str) -> AddressError:
    """Return what an answer's HTTP status means, said as `text`."""
    later = status >= 500 or status in _TRY_LATER
    return OutOfReachError(text) if later else AddressError(text)


def _status(error: Exception) -> int | None:
    """Return the HTTP status that an error of some client carries."""
    response = getattr(error, "response", None)
    for holder, name in ((response, "status_code"), (error, "status"), (error, "code")):
        status = getattr(holder, name, None)
        if isinstance(status, int) and 400 <= status < 600:
            return status
    return None


def _first_line(error: Exception) -> str:
    kind = type(error).__name__
    if isinstance(error, (TypeError, LookupError, AttributeError)):
        return f"its client does not understand it ({kind})"  # its words are for its authors
    text = scrub(str(getattr(error, "strerror", None) or error).strip().partition("\n")[0].strip())
    if isinstance(error, (OSError, ValueError, ImportError, NotImplementedError)):
        return text or kind
    return f"{kind}: {text}" if text else kind


def _secrets(uri: str) -> Iterator[str]:
    """Yield the parts of an address that no message may hold, as written and decoded."""
    rest, _, query = uri.partition("://")[2].partition("?")
    user, _, _ = rest.partition("/")[0].rpartition("@")
    values = [part.partition("=")[2] for part in query.split("&")]
    for part in (query, user, user.partition(":")[2], *values):
        if len(part) > 3:
            yield part
            yield unquote(part)
