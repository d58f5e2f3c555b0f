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
from pipeline.preflight import Cluster, ClusterError, find_cluster, without_secrets

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


def show_checks(out: Path | None, address: str | None, *, as_json: bool) -> int:
    """Print every check; return 6 if one failed.

    Args:
        out: an output folder that the cluster should see. address: the cluster's; RAY_ADDRESS.
    """
    checks = [*_checks(), *_cluster(out, address)]
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


def _cluster(out: Path | None, address: str | None) -> Iterator[Check]:
    """Check the cluster that runs would be submitted to: that it answers, lets us in and fits."""
    address = address or os.environ.get("RAY_ADDRESS")
    if not address or address == "local":
        yield Check("cluster", "info", "none named", "runs start a private Ray")
        return
    named = without_secrets(address)
    try:
        cluster = find_cluster(address)
    except ValueError as error:
        yield Check("cluster address", "bad", named, str(error))
        return
    except ClusterError as error:
        yield Check(f"cluster {error.problem}", "bad", named, str(error))
        return
    token = "accepts our token" if cluster.token else "asks for no token"
    yield Check("cluster", "good", f"Ray {cluster.ray_version} at {cluster.url}, {token}")
    if out is not None:
        yield _shared_path(cluster, out)


def _shared_path(cluster: Cluster, out: Path) -> Check:
    """Let the cluster look for a folder; the name of one that is not there yet says nothing."""
    from pipeline.submission import JobServer

    path = next(p for p in (out, *out.parents) if p.exists())
    try:
        missing = JobServer(cluster).missing_path([str(path)])
    except ClusterError as error:
        return Check("shared path", "bad", str(path), str(error))
    if missing is None:
        return Check("shared path", "good", f"{path} exists on the cluster's head")
    return Check("shared path", "bad", str(path), str(missing))
