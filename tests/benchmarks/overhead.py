"""What the driver and Ray cost over a bare loop, how workers scale, what memory a long run takes.

    python -m tests.benchmarks.overhead --rows 200 --pocket-rows 20 --cheap-rows 10000

A bare loop is one process that decodes, edits and commits photo after photo, with no plan, driver
or Ray. `overhead` is a run's time from its first row's start to its last row's end, over the bare
loop's time divided by the workers; `ratio` is one worker's time over two workers'.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path

import pandas as pd
import psutil

from manifests.commits import OutputFolder
from manifests.identity import params_fingerprint
from pipeline.inputs import load_input
from pipeline.plan import RunChoice, job_record, make_plan, work_items
from pipeline.run import run_job
from pipeline.spec import make_spec
from pipeline.stages import RowProcessor
from tests.benchmarks.plan_scale import machine
from tests.fakes import SECONDS
from tests.photos import collection

FAKE = "tests.fakes:load_editor"
REAL = "doodl.editing.editor:load_editor"


def bare_loop(photos: Path, editor: str) -> float:
    """Return the seconds a row takes in a loop of one process, after the models are loaded."""
    spec = make_spec(photos, f"{photos}-bare", editor=editor, runner="inline")
    folder = OutputFolder(spec.out)
    with folder.lock():
        job = folder.open_job(job_record(spec))
        plan = make_plan(spec, RunChoice(), folder, load_input(spec.photos))
        process = RowProcessor(spec, params_fingerprint(spec.params()), job)
        process.setup()
        items = list(work_items(plan.to_compute()))
        began = time.perf_counter()
        for item in items:
            process([item])
        seconds = (time.perf_counter() - began) / len(items)
    shutil.rmtree(spec.out)
    return seconds


def run_seconds(photos: Path, editor: str, workers: int) -> tuple[float, float]:
    """Return (seconds from the first row's start to the last one's end, seconds of start-up)."""
    spec = make_spec(photos, f"{photos}-{workers}", editor=editor, num_workers=workers)
    began = pd.Timestamp.now("UTC")
    assert run_job(spec).exit_code in (0, 3)
    ledger = pd.read_parquet(f"{spec.out}/_state/ledger")
    shutil.rmtree(spec.out)
    first, last = ledger["started_at"].min(), ledger["finished_at"].max()
    return (last - first).total_seconds(), (first - began).total_seconds()


class Watch(threading.Thread):
    """Samples this process's memory and the object store's spilled bytes while a run goes on."""

    def __init__(self, out: str, rows: int) -> None:
        super().__init__(daemon=True)
        self.out, self.rows, self.ended = Path(out), rows, threading.Event()
        self.settled_bytes = self.peak_bytes = self.spilled_bytes = 0

    def run(self) -> None:
        process = psutil.Process()
        while not self.ended.wait(0.5):
            memory = process.memory_info().rss
            if not self.settled_bytes and self._edited() >= self.rows // 10:
                self.settled_bytes = memory
            self.peak_bytes = max(self.peak_bytes, memory)
            self.spilled_bytes = max(self.spilled_bytes, spilled_bytes())

    def _edited(self) -> int:
        return sum(len(files) for _, _, files in os.walk(self.out / "edited"))


def spilled_bytes() -> int:
    """Return what the connected Ray has spilled so far, 0 while there is none."""
    import ray
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    if not ray.is_initialized():
        return 0
    try:
        state = get_state_from_address(ray.get_runtime_context().gcs_address)
        return int(get_memory_info_reply(state).store_stats.spilled_bytes_total)
    except Exception:  # it is just starting or ending; the next look counts
        return 0


def long_run(photos: Path, rows: int) -> Watch:
    spec = make_spec(photos, f"{photos}-long", editor=FAKE, num_workers=2, images="files")
    watch = Watch(spec.out, rows)
    watch.start()
    began = time.perf_counter()
    summary = run_job(spec)
    watch.ended.set()
    watch.join()
    assert summary.counts["ok"] == rows, summary
    print(f"{rows} rows of no edit: {time.perf_counter() - began:.0f} s")
    shutil.rmtree(spec.out)
    return watch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200, help="rows of the 0.2 s edit")
    parser.add_argument(
        "--pocket-rows", type=int, default=20, help="rows of the pocket model; 0 leaves it out"
    )
    parser.add_argument("--cheap-rows", type=int, default=10_000, help="rows of no edit at all")
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp())
    print(f"machine: {machine()}")
    try:
        # First, while this process has loaded no model: it is the driver.
        os.environ[SECONDS] = "0"
        watch = long_run(collection(root / "cheap", args.cheap_rows), args.cheap_rows)
        grown = (watch.peak_bytes - watch.settled_bytes) / 2**20
        print(
            f"driver: {watch.settled_bytes / 2**20:.0f} MiB after a tenth of the rows, "
            f"at most {grown:+.0f} MiB later; object store spilled {watch.spilled_bytes} bytes"
        )
        table = []
        for name, editor, rows in (
            ("0.2 s edit", FAKE, args.rows),
            ("pocket model", REAL, args.pocket_rows),
        ):
            if rows == 0:
                continue
            os.environ[SECONDS] = "0.2"
            photos = collection(root / name.replace(" ", "-"), rows)
            bare = bare_loop(photos, editor)
            spans = {workers: run_seconds(photos, editor, workers) for workers in (1, 2)}
            for workers, (span, start_up) in spans.items():
                overhead = span / (rows * bare / workers) - 1
                ratio = spans[1][0] / span
                table.append(
                    {"edit": name, "rows": rows, "workers": workers, "bare s/row": bare,
                     "s/row": span / rows, "overhead %": 100 * overhead, "ratio": ratio,
                     "start-up s": start_up}
                )  # fmt: skip
        print(pd.DataFrame(table).to_string(index=False, float_format="%.3f"))
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
