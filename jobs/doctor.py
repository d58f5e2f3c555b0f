"""`doctor`: what this machine has and lacks, each with what to do about it."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from jobs import console, exits
from pipeline.models import known_models, resolve_device

_PACKAGES = (
    "torch", "torchvision", "diffusers", "transformers",
    "open_clip_torch", "ray", "pyarrow", "pillow",
)  # fmt: skip
_MIN_FREE_BYTES = 2 * 2**30


class Check(NamedTuple):
    """One line of the doctor's."""

    name: str
    state: str
    found: str
    advice: str = ""


def show_checks(*, as_json: bool) -> int:
    """Print every check; return 6 if one failed."""
    checks = list(_checks())
    if as_json:
        console.print_json([check._asdict() for check in checks])
    else:
        console.print_table("doctor", Check._fields, checks)
    return exits.ENVIRONMENT if any(check.state == "bad" for check in checks) else exits.OK


def _checks() -> Iterator[Check]:
    good = sys.version_info >= (3, 11)
    yield Check("python", _state(good), sys.version.split()[0], "" if good else "3.11 or newer")
    for package in _PACKAGES:
        try:
            yield Check(package, "good", importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            yield Check(package, "bad", "absent", f"pip install {package}")
    for model in known_models():
        needed = model.name == "pocket"
        state = _state(model.state == "ready") if needed else "info"
        yield Check(f"model {model.name}", state, model.state, model.note)
    yield Check("cores", "info", str(_cores()))
    device = resolve_device("auto")
    note = "" if device == "cuda" else "none seen; the pocket model runs on the CPU"
    yield Check("accelerator", "info", device, note)
    yield _temporary_space()
    yield _home()
    yield _ray_address()


def _state(good: bool) -> str:
    return "good" if good else "bad"


def _cores() -> int:
    """Return how many cores this process may use, as far as the system tells."""
    if sys.version_info >= (3, 13):
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _temporary_space() -> Check:
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    good = free >= _MIN_FREE_BYTES
    advice = "" if good else "Ray keeps its session there; free some, or set TMPDIR"
    return Check("temporary space", _state(good), f"{free / 2**30:.1f} GiB in {folder}", advice)


def _home() -> Check:
    home = Path.home()
    good = os.access(home, os.W_OK)
    advice = "" if good else "Ray may write a token there; set HOME to a writable folder"
    return Check("home", "good" if good else "info", str(home), advice)


def _ray_address() -> Check:
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return Check("RAY_ADDRESS", "info", "not set", "runs start a private Ray")
    advice = "this version's runs start a private Ray all the same; a cluster comes later"
    return Check("RAY_ADDRESS", "info", f"{address}, not used", advice)
