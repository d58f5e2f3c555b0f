"""What every benchmark shares: the machine's name, one measurement, a table and its Parquet.

A measurement on the CPU runs in a process of its own, forked after the models are built, so that
one row's memory is not another's. CPU seconds are the main figure there: they mean the same on a
busy machine, nearly. On an accelerator only wall seconds mean anything.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import gc
import multiprocessing
import os
import platform
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from tests.benchmarks.plan_scale import machine

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


@dataclass
class Measured:
    """One measurement: seconds of the fastest repeat, the peak of all, the last one's value.

    peak_bytes is what was added to the memory held before, the weights; on the CPU of resident
    memory, on an accelerator of allocated memory.
    """

    cpu_seconds: float
    wall_seconds: float
    peak_bytes: int
    value: Any


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} thread(s)"


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}: peak memory needs Linux.")


class _Peak:
    """The peak of memory since it was made, over what was held then."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
        else:
            # Freed memory that the allocator still holds would hide the next rise.
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
            self.before = _status_bytes("VmRSS")

    def bytes(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.before
        return _status_bytes("VmHWM") - self.before


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(work: Callable[[], Any], device: torch.device, repeats: int = 1) -> Measured:
    """Return the fastest of `repeats` runs of `work`, in this process."""
    peak = _Peak(device)
    cpu = wall = float("inf")
    value = None
    for _ in range(repeats):
        value = None
        _wait(device)
        began_cpu, began_wall = time.process_time(), time.perf_counter()
        value = work()
        _wait(device)
        cpu = min(cpu, time.process_time() - began_cpu)
        wall = min(wall, time.perf_counter() - began_wall)
    return Measured(cpu, wall, peak.bytes(), value)


def isolated(work: Callable[[], Any], device: torch.device) -> Any:
    """Return work(), run in a forked process; in this one on an accelerator, which forbids it."""
    if device.type == "cuda":
        return work()
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)

    def run() -> None:
        try:
            send.send((True, work()))
        except BaseException:
            send.send((False, traceback.format_exc()))

    process = context.Process(target=run)
    process.start()
    send.close()
    try:
        done, value = receive.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"a measurement died with exit code {process.exitcode}.") from None
    process.join()
    if not done:
        raise RuntimeError(f"a measurement failed:\n{value}")
    return value


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Return the options all benchmarks have."""
    made = argparse.ArgumentParser(
        description=(doc or "").strip(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--quick", action="store_true", help="a short form, minutes at most")
    made.add_argument("--device", default="cpu", help="cpu or cuda")
    made.add_argument("--dtype", choices=DTYPES, default="float32", help="of the networks")
    made.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    made.add_argument("--repeats", type=int, default=1, help="the fastest counts (default 1)")
    made.add_argument("--out", type=Path, help="Parquet file (default runs/benchmarks/...)")
    return made


def prepare(args: argparse.Namespace) -> tuple[torch.device, torch.dtype]:
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    return torch.device(args.device), DTYPES[args.dtype]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value)


def table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """Return rows as a Markdown table of these columns."""
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(name)) for name in columns) + " |" for row in rows]
    return "\n".join(lines)


def finish(
    name: str,
    rows: Sequence[dict[str, Any]],
    columns: Sequence[str],
    args: argparse.Namespace,
    notes: Sequence[str] = (),
) -> Path:
    """Print the table with the machine's name and write every column to Parquet."""
    device = torch.device(args.device)
    about = {
        "benchmark": name,
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", "-m", f"tests.benchmarks.{name}", *sys.argv[1:]]),
        "machine": machine(),
        "device": device_name(device),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    for key, value in about.items():
        print(f"{key}: {value}")
    print()
    print(table(rows, columns))
    for note in notes:
        print(f"\n{note}")
    out = args.out or Path("runs/benchmarks") / f"{name}-{about['date']}-{os.getpid()}.parquet"
    out.parent.mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys(key for row in rows for key in row))
    complete = [{**about, **{key: row.get(key) for key in names}} for row in rows]
    pq.write_table(pa.Table.from_pylist(complete), out)
    print(f"\nParquet: {out}")
    return out
