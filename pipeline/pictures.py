"""Thumbnails of sources and of delivered photos, for a report."""

from __future__ import annotations

from typing import Any

from doodl.errors import PhotoError
from doodl.thumbnails import thumbnail
from manifests.errors import ManifestError
from manifests.inline import read_input
from pipeline.collection import OutputView


def source_thumbnail(image_uri: str | None) -> bytes | None:
    """Return a small JPEG of a source photo, None if it is gone or cannot be read."""
    if image_uri is None:
        return None
    try:
        return thumbnail(read_input(image_uri))
    except (OSError, PhotoError, ManifestError):
        return None


def delivered_thumbnail(view: OutputView, record: dict[str, Any]) -> bytes | None:
    """Return a small JPEG of a delivered photo, None if it is gone."""
    try:
        data = view.delivered(record)
        return None if data is None else thumbnail(data)
    except (OSError, PhotoError):
        return None
