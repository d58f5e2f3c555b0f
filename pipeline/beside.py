"""What goes with a delivered file besides its bytes: the source's date, a sidecar on request."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from manifests.inline import is_inline
from manifests.paths import local_path
from manifests.rows import ResultRow, result_record


def keep_mtime(source_uri: str | None, delivered: str) -> None:
    """Give a delivered file its source's modification time, so that both sort alike.

    Nothing happens where one of them is no local file.
    """
    source = None if source_uri is None or is_inline(source_uri) else local_path(source_uri)
    target = local_path(delivered)
    if source is None or target is None:
        return
    with suppress(OSError, ValueError):
        stat = Path(source).stat()
        os.utime(target, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def sidecar(row: ResultRow) -> bytes:
    """Return a result row as JSON, for those who keep such a file beside each photo."""
    record = {name: value for name, value in result_record(row).items() if value is not None}
    return (json.dumps(record, indent=1, ensure_ascii=False, default=str) + "\n").encode()
