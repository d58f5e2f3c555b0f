"""How long a plan takes, and how much memory, over a large collection mostly done.

    python tests/benchmarks/plan_scale.py                       # 1,000,000 rows, 900,000 done
    python tests/benchmarks/plan_scale.py --folder --rows 100000 --done 100000

The photos are real files (of eight bytes: a plan reads none that has not changed), the results are
real parts. Building them takes far longer than the plan, and is not counted. The plan runs in a
process of its own, from the import of pyarrow to the plan in hand.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FILES_PER_FOLDER = 1000
PART_ROWS = 100_000
JOB = {"task": "enhance", "doodl_version": "1", "params": {"steps": 10}}


def name_of(row: int) -> str:
    return f"shoot {row // FILES_PER_FOLDER:04d}/IMG_{row:07d}.jpg"


def build(root: Path, rows: int, done: int) -> None:
    """Write photos, a manifest of them, and an output folder in which the first `done` are done."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from manifests.commits import OutputFolder
    from manifests.hashes import HASHES_FILE, HASHES_SCHEMA
    from manifests.identity import hash_bytes, input_key, work_key
    from manifests.parts import write_results_part
    from manifests.rows import ResultRow, results_table

    photos = root / "photos"
    hashes: dict[str, list[Any]] = {name: [] for name in HASHES_SCHEMA.names}
    old = time.time_ns() - 10**12
    for row in range(rows):
        path = photos / name_of(row)
        if row % FILES_PER_FOLDER == 0:
            path.parent.mkdir(parents=True)
        data = row.to_bytes(8, "little")
        path.write_bytes(data)
        os.utime(path, ns=(old, old))
        for name, value in zip(
            HASHES_SCHEMA.names, (str(path), 8, old, hash_bytes(data), old + 10**11), strict=True
        ):
            hashes[name].append(value)
    pq.write_table(
        pa.table({"image_uri": [name_of(row) for row in range(rows)], "rating": [5] * rows}),
        photos / "manifest.parquet",
    )
    out = OutputFolder(root / "out")
    job = out.open_job(JOB)
    table = pa.table(hashes, schema=HASHES_SCHEMA)
    out.storage.write_stream(HASHES_FILE, lambda sink: pq.write_table(table, sink))
    for number, first in enumerate(range(0, done, PART_ROWS), 1):
        results = []
        for row in range(first, min(first + PART_ROWS, done)):
            key = input_key(hashes["image_hash"][row], {})
            work = work_key(key, job["params_fingerprint"])
            uri = f"edited/{name_of(row)}"
            results.append(ResultRow(name_of(row), key, work, "ok", edited_uri=uri, model="sd15"))
        write_results_part(out.storage, number, results_table(results), job["epoch"])


def plan(root: Path, from_folder: bool) -> dict[str, Any]:
    """Return what a plan counted, the seconds of each of its steps, and the peak of memory."""
    began = time.perf_counter()
    steps: dict[str, float] = {}

    def step(name: str) -> None:
        steps[name] = round(time.perf_counter() - began - sum(steps.values()), 2)

    from manifests.commits import OutputFolder
    from manifests.hashes import hash_inputs
    from manifests.plan import plan_rows
    from manifests.reader import read_manifest, scan_photos
    from manifests.schemas import extra_schema

    step("import")
    out = OutputFolder(root / "out")
    with out.lock():
        if from_folder:
            inputs = scan_photos(root / "photos")
        else:
            inputs = read_manifest(root / "photos" / "manifest.parquet")
        step("read")
        job = out.open_job(JOB, extras=extra_schema(inputs.schema))
        out.recover()
        step("open")
        inputs = hash_inputs(inputs, out.storage)
        step("hash")
        done = out.done()
        step("done")
        planned = plan_rows(inputs, done, job["params_fingerprint"])
        step("plan")
    return {
        "counts": {state: n for state, n in planned.counts.items() if n},
        "steps_seconds": steps,
        "seconds": round(time.perf_counter() - began, 2),
        "cpu_seconds": round(time.process_time(), 2),  # on a busy machine, the fairer figure
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def machine() -> str:
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()[0]
    return f"{os.cpu_count()} x {model}, {memory:.0f} GiB, load {load:.1f}, {platform.platform()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--done", type=int, default=900_000)
    parser.add_argument("--folder", action="store_true", help="scan the folder, read no manifest")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--at", type=Path, help="where to build (default: /dev/shm, else tmp)")
    parser.add_argument("--keep", action="store_true", help="leave what was built")
    parser.add_argument("--plan", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.plan is not None:
        print(json.dumps(plan(args.plan, args.folder)))
        return
    memory = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(dir=args.at or (memory if memory.is_dir() else None)))
    try:
        print(f"machine: {machine()}")
        build(root, args.rows, args.done)
        print(f"{args.rows} rows, {args.done} done, in {root}")
        command = [sys.executable, __file__, "--plan", str(root)]
        for _ in range(args.repeats):
            ended = subprocess.run(
                command + ["--folder"] * args.folder, check=True, stdout=subprocess.PIPE
            )
            print(ended.stdout.decode().strip())
    finally:
        if not args.keep:
            shutil.rmtree(root)


if __name__ == "__main__":
    main()
