"""Pages that open from disk: one file of markup, styles, script and data, and nothing fetched."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from jobs.console import plain
from manifests.originals import unlinked

THUMBNAILS = "thumbnails"
"""Where a page's small pictures lie, beside it."""


def render_page(
    template: str,
    data: Mapping[str, Any],
    *,
    scripts: Sequence[str],
    styles: Sequence[str],
    **values: Any,
) -> bytes:
    """Return a page's bytes.

    Args:
        template: in this package. data: what its script reads, as JSON.
        scripts, styles: names in `assets`, in order; they are all the page may run or be styled by.
        values: for the template, which escapes them.
    """
    script, style = (_joined(names) for names in (scripts, styles))
    page = (
        _environment()
        .get_template(template)
        .render(
            script=script,
            style=style,
            script_hash=_content_hash(script),
            style_hash=_content_hash(style),
            data=page_json(data),
            **values,
        )
    )
    return page.encode("utf-8", "replace")


def page_json(data: Any) -> str:
    """Return JSON that can stand in a script element: nothing in it ends the element."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for mark in "<>&":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text


def write_whole(path: Path, data: bytes) -> None:
    """Write a file in one move, so that a page being read is whole."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
    with os.fdopen(handle, "wb") as stream:
        stream.write(data)
    Path(temporary).chmod(0o644)
    Path(temporary).replace(path)


def report_folder(out: str | Path, *names: str) -> Path:
    """Return the folder of a page in an output folder's report. Raises: LinkedOutputError."""
    folder = Path(out, "report", *names)
    unlinked(Path(out), folder / THUMBNAILS, whole=True)
    return folder


def _joined(names: Sequence[str]) -> str:
    folder = files("jobs.report") / "assets"
    return "\n" + "\n".join((folder / name).read_text("utf-8") for name in names)


def _content_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jobs.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["plain"] = lambda text: plain(text or "")
    return environment
