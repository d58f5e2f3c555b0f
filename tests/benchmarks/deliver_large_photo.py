"""A large photo from its file to the delivered one, no model: CPU seconds and peak memory.

    python -m tests.benchmarks.deliver_large_photo --megapixels 50 100

What `doodl-batch restrength` does to one photo: decode it, make the change, encode it. Each runs
in a process of its own, on one thread; the peak is the kernel's, of the whole process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from doodl.delivery.change import Change, change_to_bytes
from doodl.delivery.deliver import Delivery, restrength
from doodl.images import decode_photo, deep, model_view
from tests.benchmarks.edit_large_photo import jpeg

KINDS = ("JPEG", "TIFF of 16 bits")


def make(kind: str, megapixels: float, folder: Path) -> None:
    """Write a photo of that kind and size, and a change of it to be kept."""
    data = jpeg(None, megapixels)
    if kind != "JPEG":
        pixels = decode_photo(data).pixels
        data = deep.write_tiff(pixels.astype(np.uint16) * 257)
    (folder / "photo").write_bytes(data)
    photo = decode_photo(data)
    before = model_view(photo, 128)
    change = Change.between(photo, before, (before * 0.9 + 0.05).clamp(-1, 1))
    (folder / "change").write_bytes(change_to_bytes(change))


def deliver(folder: Path) -> dict[str, float]:
    """Return the seconds and the peak of delivering what `make` wrote."""
    source, change = (folder / "photo").read_bytes(), (folder / "change").read_bytes()
    clock, processor = time.perf_counter(), time.process_time()
    photo, data = restrength(source, change, Delivery(strength=0.5))
    clock, processor = time.perf_counter() - clock, time.process_time() - processor
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    pixels_gb = 2 * photo.pixels.nbytes / 1e9
    files_gb = (len(source) + len(data)) / 1e9
    return {
        "cpu": processor, "clock": clock, "peak": peak * 1024 / 1e9,
        "pixels": pixels_gb, "files": files_gb,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megapixels", type=float, nargs="+", default=[50.0, 100.0])
    parser.add_argument("--make", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--deliver", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.make:
        make(args.make[0], float(args.make[1]), Path(args.make[2]))
        return
    if args.deliver:
        print(json.dumps(deliver(args.deliver)))
        return
    this = [sys.executable, "-m", "tests.benchmarks.deliver_large_photo"]
    print("| photo | CPU s | s | peak memory, GB | the two photos | the two files |")
    print("|---|---|---|---|---|---|")
    for megapixels in args.megapixels:
        for kind in KINDS:
            with tempfile.TemporaryDirectory() as folder:
                subprocess.run([*this, "--make", kind, str(megapixels), folder], check=True)
                run = [*this, "--deliver", folder]
                found = json.loads(subprocess.run(run, check=True, stdout=subprocess.PIPE).stdout)
            print(
                f"| {kind}, {megapixels:g} MP | {found['cpu']:.1f} | {found['clock']:.1f} | "
                f"{found['peak']:.2f} | {found['pixels']:.2f} | {found['files']:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
