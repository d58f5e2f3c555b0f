"""Evaluate the pocket edit: python -m doodl.pocket.evaluate A.parquet photos/ --out DIR.

The library's way to `doodl-batch evaluate enhance`: the same evaluation, from Parquet files (by
pandas, as training reads them) or folders of photos. Writes tables.md, rows.csv, evaluation.json
and sheets/*.png below DIR; the same command again goes on where the last one stopped.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from doodl.config import preset
from doodl.evaluation.cases import Draw, Source
from doodl.evaluation.methods import DEFAULT_METHODS, METHODS
from doodl.evaluation.output import write_evaluation
from doodl.evaluation.referee import default_referee
from doodl.evaluation.run import run_evaluation
from doodl.evaluation.work import EvaluationSpec

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", ".avif")

logger = logging.getLogger("doodl.pocket.evaluate")


class LogProgress:
    """Progress as lines of a log."""

    def __init__(self) -> None:
        self.total = self.done = 0

    def start(self, total: int) -> None:
        self.total = total
        logger.info("%d rows to compute", total)

    def row(self, row_id: str, status: str, detail: str | None) -> None:
        self.done += 1
        logger.info("%d/%d %s: %s%s", self.done, self.total, row_id, status,
                    f" ({detail})" if detail else "")  # fmt: skip

    def message(self, text: str) -> None:
        logger.info(text)


def read_sources(paths: Sequence[Path]) -> list[Source]:
    """Return the photos of Parquet files (image struct<bytes, path>, label) and of folders.

    Raises: RuntimeError if pandas is missing; ValueError for a file without an image column.
    """
    sources = []
    for path in paths:
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
            sources += [
                Source(f"{path.name}/{file.relative_to(path).as_posix()}", "", file.read_bytes)
                for file in files
            ]
        else:
            sources += _from_parquet(path)
    return sources


def _from_parquet(path: Path) -> list[Source]:
    try:
        import pandas  # type: ignore[import-untyped]
    except ImportError as error:
        raise RuntimeError(
            "Parquet is read through pandas, which is not installed; use "
            "`doodl-batch evaluate enhance`, or run: pip install 'doodl-batch[dev]'"
        ) from error
    table = pandas.read_parquet(path)
    if "image" not in table.columns:
        raise ValueError(f"{path} has columns {list(table.columns)}; 'image' is needed")
    labels = table.get("label", pandas.Series([""] * len(table)))
    return [
        Source(f"{path.stem}/{i:07d}", str(label or ""), partial(bytes, image["bytes"]))
        for i, (image, label) in enumerate(zip(table["image"], labels, strict=True))
    ]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m doodl.pocket.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("photos", type=Path, nargs="+", help="Parquet files or folders")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--referee", type=Path, help="folder of a scorer (the shipped referee)")
    parser.add_argument("--dulled", type=int, default=100)
    parser.add_argument("--untouched", type=int, default=50)
    parser.add_argument("--validation", type=int, default=6)
    parser.add_argument(
        "--methods", nargs="*", default=list(DEFAULT_METHODS), choices=list(METHODS)
    )
    parser.add_argument("--directions", nargs="*", default=["up", "down"], choices=["up", "down"])
    parser.add_argument("--batch-size", type=int, default=6)
    parser.add_argument("--workers", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate the shipped preset and write what was found."""
    options = _parse(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("doodl").setLevel(logging.INFO)
    spec = EvaluationSpec(
        referee=str(options.referee or default_referee()),
        draw=Draw(options.dulled, options.untouched, options.validation, seed=options.seed),
        config=preset("pocket"),
        methods=tuple(options.methods),
        directions=tuple(options.directions),
        batch_size=options.batch_size,
    )
    evaluation = run_evaluation(
        read_sources(options.photos), spec, options.out, LogProgress(), workers=options.workers
    )
    words = sys.argv[1:] if arguments is None else arguments
    command = f"python -m doodl.pocket.evaluate {shlex.join(words)}"
    written = write_evaluation(evaluation, options.out, command)
    logger.info("tables: %s", written.tables_path)


if __name__ == "__main__":
    main()
