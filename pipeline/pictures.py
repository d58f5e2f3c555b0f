"""Small pictures of sources and of delivered photos, for reports and studies."""

from __future__ import annotations

import itertools
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from doodl.images.thumbnails import thumbnail
from manifests.inline import read_input
from pipeline.collection import OutputView

logger = logging.getLogger(__name__)

SIDE_PX = 400
_MAX_THREADS = 8


def before_thumbnails(
    view: OutputView, records: Iterable[Mapping[str, Any]], side_px: int = SIDE_PX
) -> Iterator[tuple[str, bytes]]:
    """Yield (row_id, small JPEG) of what results are compared with, where it can be shown.

    That is the source photo, or the picture of the same noise that nothing guided.
    """

    def reader(record: Mapping[str, Any]) -> Callable[[], bytes]:
        if (unguided := record["unguided_uri"]) is not None:
            return lambda: view.folder.storage.read(unguided)
        image_uri = record["image_uri"]
        return lambda: read_input(image_uri)

    there = (r for r in records if r["unguided_uri"] is not None or r["image_uri"] is not None)
    return _thumbnails(((r["row_id"], reader(r)) for r in there), side_px)


def delivered_thumbnails(
    view: OutputView, records: Iterable[Mapping[str, Any]], side_px: int = SIDE_PX
) -> Iterator[tuple[str, bytes]]:
    """Yield (row_id, small JPEG) of the delivered photos of these records that can be shown."""

    def held(data: bytes) -> Callable[[], bytes]:
        return lambda: data

    return _thumbnails(((row_id, held(data)) for row_id, data in view.delivered(records)), side_px)


def source_thumbnails(uris: Iterable[str], side_px: int = SIDE_PX) -> Iterator[tuple[str, bytes]]:
    """Yield (uri, small JPEG) of the photos that can be shown."""

    def reader(uri: str) -> Callable[[], bytes]:
        return lambda: read_input(uri)

    return _thumbnails(((uri, reader(uri)) for uri in uris), side_px)


def _thumbnails(
    pictures: Iterator[tuple[str, Callable[[], bytes]]], side_px: int
) -> Iterator[tuple[str, bytes]]:
    """Yield what can be made of (name, reader), in order, some at a time: decoding takes cores."""
    threads = min(_MAX_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        in_work: deque[tuple[str, Future[bytes | None]]] = deque()
        for name, read in pictures:
            # Few at a time: a whole collection's files would not fit the memory.
            in_work.append((name, pool.submit(_small, name, read, side_px)))
            if len(in_work) > 2 * threads:
                yield from _done(in_work, 1)
        yield from _done(in_work, len(in_work))


def _done(
    in_work: deque[tuple[str, Future[bytes | None]]], count: int
) -> Iterator[tuple[str, bytes]]:
    for _ in itertools.repeat(None, count):
        name, future = in_work.popleft()
        small = future.result()
        if small is not None:
            yield name, small


def _small(name: str, read: Callable[[], bytes], side_px: int) -> bytes | None:
    try:
        return thumbnail(read(), side_px)
    except Exception as error:  # a report's row boundary: one odd file costs its picture only
        logger.info("no thumbnail of %s: %r", name, error)
        return None
