"""Fuzzing of what strangers hand in: manifests, and files that say they are photos.

Each target runs for FUZZ_SECONDS (default 4) in a process of its own that may map 1 GiB beyond what
its libraries have; `DOODL_FUZZ_SECONDS=600` fuzzes for ten minutes. A crash, a hang, an error that
is not one of ours or more memory than that fails the test, which names the input.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ_SECONDS = float(os.environ.get("DOODL_FUZZ_SECONDS", "4"))
TARGETS = ("manifest_parquet", "manifest_csv", "manifest_jsonl", "manifest_values", "photo")


@pytest.mark.timeout(FUZZ_SECONDS + 240)
@pytest.mark.parametrize("target", TARGETS)
def test_nothing_a_stranger_hands_in_crashes_hangs_or_fills_the_memory(target, tmp_path):
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-m", "tests.fuzz.targets", target,
         str(FUZZ_SECONDS), str(tmp_path)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1",
             "ARROW_DEFAULT_MEMORY_POOL": "system"},
        capture_output=True,
        text=True,
        timeout=FUZZ_SECONDS + 180,
        check=False,
    )  # fmt: skip
    print(done.stdout.strip())
    kept = sorted(tmp_path.iterdir())
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-4000:]}\ninputs: {kept}"
    assert "inputs" in done.stdout
