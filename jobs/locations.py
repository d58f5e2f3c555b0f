"""What a person types for a place: a path, a `file://` URI, or storage such as `s3://bucket/x`."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import typer

from jobs import exits


def local_only(text: str) -> Path:
    """Return the absolute path of a path or `file://` URI. Raises: UsageError for other storage."""
    place = location(text)
    if isinstance(place, str):
        raise exits.UsageError(f"{text} is not on a local or mounted file system; copy it there.")
    return place


def location(text: str) -> Path | str:
    """Return the absolute path of a local place, the URI itself (without a last `/`) of any other.

    Raises: UsageError if the URI holds a password or a signature, or names no bucket, and if
        nothing can lie where the path leads.
    """
    from manifests.paths import local_path
    from manifests.secrets import scrub_uri

    path = local_path(text)
    if path is None:
        if scrub_uri(text) != text or "?" in text:
            raise exits.UsageError(
                f"{scrub_uri(text)}: give no user, password or query in the address; credentials "
                "and the endpoint come from the environment (AWS_PROFILE, AWS_ENDPOINT_URL, …)."
            )
        scheme, _, rest = text.partition("://")
        if not rest.strip("/"):
            raise exits.UsageError(f"{text} names no bucket; give {scheme}://bucket/folder.")
        _refuse_wrong_address(text)
        return f"{scheme}://{rest.rstrip('/')}"
    if "://" in text or "\0" in path:
        _refuse_wrong_address(text)
    absolute = Path(path).expanduser().absolute()
    _refuse_impossible(absolute)
    # The default output folder is named after the last part, which must be a name.
    return absolute.resolve() if ".." in absolute.parts else absolute


def _refuse_wrong_address(text: str) -> None:
    """Raise UsageError if what is wrong with an address is plain: of a file in that place."""
    from manifests.addresses import address_problem, shown

    if problem := address_problem(f"{text}/x"):
        raise exits.UsageError(f"{shown(text)}: {problem}")


def _refuse_impossible(path: Path) -> None:
    """Raise UsageError for a path that nothing can have: below a file, or too long."""
    try:
        path.stat()
    except NotADirectoryError:
        there = next((f for f in path.parents if f.exists() and not f.is_dir()), path.parent)
        raise exits.UsageError(f"{there} is a file, so {path} cannot be; choose another.") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise exits.UsageError(f"{str(path)[:60]}...: {error.strerror}; shorten it.") from None


def argument(metavar: str, help: str, *, remote: bool = False) -> Any:
    """Return the typer argument of a place."""
    return typer.Argument(help=help, parser=location if remote else local_only, metavar=metavar)


def option(help: str, metavar: str = "PATH", *names: str, remote: bool = False) -> Any:
    """Return the typer option of a place."""
    return typer.Option(
        *names, help=help, parser=location if remote else local_only, metavar=metavar
    )
