"""The whole command over an unchanged collection: seconds, memory, and that nothing is started.

    python -m tests.benchmarks.rerun_unchanged --rows 100000

Unlike plan_scale, this is `doodl-batch enhance` itself, from its start to its exit. The photos are
real files of eight bytes and their results real parts, made beforehand and not counted.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipeline.plan import job_record
from pipeline.spec import make_spec
from tests.benchmarks import plan_scale


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp())
    try:
        spec = make_spec(root / "photos", root / "out")
        plan_scale.JOB = job_record(spec)
        plan_scale.build(root, args.rows, args.rows)
        (root / "photos" / "manifest.parquet").unlink()
        print(f"machine: {plan_scale.machine()}")
        command = [Path(sys.executable).parent / "doodl-batch", "enhance", spec.photos]
        for _ in range(args.repeats):
            began = time.perf_counter()
            ended = subprocess.run(
                [*command, "--out", spec.out, "--json"], check=True, stdout=subprocess.PIPE
            )
            seconds = time.perf_counter() - began
            summary = json.loads(ended.stdout)
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
            print(
                f"{args.rows} unchanged photos: {seconds:.1f} s, peak {peak} MiB, "
                f"{summary['computed']} computed, counts {summary['counts']}"
            )
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
