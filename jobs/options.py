"""Options that the commands of several modules share."""

from __future__ import annotations

from pathlib import Path

from jobs import exits


def parse_path(text: str) -> Path:
    """Return the absolute path of a path or `file://` URI; other storage is not supported yet."""
    from manifests.paths import local_path

    path = local_path(text)
    if path is None:
        raise exits.UsageError(
            f"{text} is not on a local or mounted file system; object stores are not supported yet."
        )
    absolute = Path(path).expanduser().absolute()
    # The default output folder is named after the last part, which must be a name.
    return absolute.resolve() if ".." in absolute.parts else absolute
