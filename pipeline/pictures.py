"""Thumbnails of sources and of delivered photos, for a report."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from doodl.thumbnails import thumbnail
from manifests.inline import read_input
from pipeline.collection import OutputView

logger = logging.getLogger(__name__)


def source_thumbnail(image_uri: str | None) -> bytes | None:
    """Return a small JPEG of a source photo, None if it is gone or cannot be read."""
    if image_uri is None:
        return None
    return _small(image_uri, lambda: read_input(image_uri))


def before_thumbnail(view: OutputView, record: Mapping[str, Any]) -> bytes | None:
    """Return a small JPEG of what a result is compared with: the photo, or the unguided picture."""
    if record["unguided_uri"] is not None:
        uri = record["unguided_uri"]
        return _small(uri, lambda: view.folder.storage.read(uri))
    return source_thumbnail(record["image_uri"])


def delivered_thumbnails(
    view: OutputView, records: Iterable[Mapping[str, Any]]
) -> Iterator[tuple[str, bytes]]:
    """Yield (row_id, small JPEG) of the delivered photos of these records that can be shown."""
    for row_id, data in view.delivered(records):
        small = _small(row_id, lambda data=data: data)  # type: ignore[misc]
        if small is not None:
            yield row_id, small


def _small(name: str, read: Callable[[], bytes]) -> bytes | None:
    try:
        return thumbnail(read())
    except Exception as error:  # a report's row boundary: one odd file costs its picture only
        logger.info("no thumbnail of %s: %r", name, error)
        return None
