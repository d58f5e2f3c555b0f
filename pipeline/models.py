"""Which models there are, and which one `auto` means. Imports no torch."""

from __future__ import annotations

import os
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from doodl.errors import ModelError
from doodl.models.hub import KNOWN, HubModel, find_model, missing_parts, snapshot, split_id
from doodl.models.pull import PullPlan, plan_pull, pull
from doodl.models.revisions import folder_revision
from doodl.pocket import weights_dir

__all__ = [
    "KnownModel",
    "PullPlan",
    "check_model",
    "known_models",
    "plan_pull",
    "pull",
    "resolve_device",
    "resolve_model",
]

_AUTO = "sd15"
_MIN_AUTO_MIB = 10 * 10**9 // 2**20


@dataclass(frozen=True)
class KnownModel:
    """One line of `models list`."""

    name: str
    state: str
    size: str
    licence: str
    note: str
    repository: str = ""
    revision: str = ""
    limits: str = ""
    path: str = ""


def known_models() -> list[KnownModel]:
    """Return the models by name, the shipped one first."""
    folder = weights_dir()
    if (folder / "pipeline" / "model_index.json").is_file():
        size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        revision = folder_revision(folder)
        pocket = KnownModel(
            "pocket",
            "ready",
            f"{size / 1e6:.1f} MB",
            "see its card",
            f"shipped; works offline on a CPU; revision {revision}",
            revision=revision,
            path=str(folder / "pipeline"),
        )
    else:
        pocket = KnownModel("pocket", "missing", "-", "-", f"{folder} is incomplete; reinstall")
    return [pocket, *map(_on_the_hub, KNOWN.values())]


def _on_the_hub(model: HubModel) -> KnownModel:
    state, path = "not pulled", ""
    folder = snapshot(model.repository, model.revision) or snapshot(model.repository)
    if folder is not None:
        state, path = ("incomplete" if missing_parts(folder) else "pulled"), str(folder)
    size = f"about {model.size_gb:g} GB"
    if model.fp16_gb is not None:
        size += f" ({model.fp16_gb:g} with --fp16)"
    note = f"{model.repository}; doodl-batch models pull {model.name}"
    if state == "pulled":
        note = f"{model.repository}; {path}"
    if model.gated:
        note += "; accept its terms on the hub first"
    return KnownModel(
        model.name,
        state,
        size,
        model.licence,
        note,
        repository=model.repository,
        revision=model.revision or "",
        limits=model.limits,
        path=path,
    )


def resolve_model(
    name: str, recorded: str | None = None, *, device: str = "auto"
) -> tuple[str, str]:
    """Return (model, why): `pocket` or a path, for `auto`, a known name, a hub id or a path.

    Args:
        recorded: the model of the output folder's earlier runs, which `auto` keeps to, and which
            a name or id keeps to as long as it is one of that repository's.
    Raises: ModelError if a name or id has not been pulled: nothing is ever downloaded here.
    """
    if name == "auto":
        return (recorded, "as this output folder's earlier runs") if recorded else _auto(device)
    if name == "pocket":
        return name, "as asked"
    wanted = split_id(name)
    if wanted is None or (name not in KNOWN and Path(name).expanduser().exists()):
        return name, "as asked"
    if recorded is not None and _is_snapshot_of(recorded, *_loosely(name, *wanted)):
        return recorded, f"{name}, at the revision of this output folder's earlier runs"
    folder = find_model(name)
    missing = missing_parts(folder)
    if missing:
        raise ModelError(
            f"model {name} is incomplete ({', '.join(missing)}); "
            f"run: doodl-batch models pull {name}"
        )
    return str(folder), f"{name}, revision {folder.name[:12]}"


def _loosely(name: str, repository: str, revision: str | None) -> tuple[str, str | None]:
    """Return (repository, revision); the revision that we pin may give way, a typed one may not."""
    return repository, (None if name in KNOWN else revision)


def _is_snapshot_of(path: str, repository: str, revision: str | None) -> bool:
    folder = Path(path)
    if folder.parent.parent.name != f"models--{repository.replace('/', '--')}":
        return False
    return folder.is_dir() and revision in (None, folder.name)


def _auto(device: str) -> tuple[str, str]:
    """Return the model for this machine: a large one only where it has been pulled and can run."""
    model = KNOWN[_AUTO]
    folder = snapshot(model.repository, model.revision) or snapshot(model.repository)
    if folder is None or missing_parts(folder):
        return "pocket", "it is shipped, and no larger model has been set up"
    if resolve_device(device) != "cuda":
        return "pocket", f"{_AUTO} is pulled, but there is no accelerator to run it on"
    memory = _accelerator_mib()
    if memory is None:
        return "pocket", f"{_AUTO} is pulled, but the accelerator's memory could not be read"
    if memory < _MIN_AUTO_MIB:
        return "pocket", f"{_AUTO} is pulled, but the accelerator has only {memory:,} MiB"
    return str(folder), f"{_AUTO} is pulled, and the accelerator has {memory:,} MiB"


def _accelerator_mib() -> int | None:
    """Return the memory of the smallest accelerator this process may see; None if not known.

    Asked without torch, which takes seconds to import.
    """
    command = ["nvidia-smi", "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        cards = [[cell.strip() for cell in line.split(",")] for line in answer.stdout.splitlines()]
        sizes = {key: int(size) for index, uuid, size in cards for key in (index, uuid)}
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        sizes = {key: size for key, size in sizes.items() if key in visible.split(",")}
    return min(sizes.values(), default=None)


def check_model(source: str) -> dict[str, Any]:
    """Load what can be loaded of a model, run it once, hash it; return what was found.

    Raises: ModelError saying what is wrong.
    """
    from doodl.backbones.check import check_backbone

    return asdict(check_backbone(source))


def resolve_device(name: str) -> str:
    """Return `cpu` or `cuda`; `auto` takes an accelerator when the driver's files show one.

    Asked without torch, which takes seconds to import.
    """
    if name != "auto":
        return name
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible in ("", "-1") or not Path("/proc/driver/nvidia/gpus").is_dir():
        return "cpu"
    return "cuda" if any(Path("/proc/driver/nvidia/gpus").iterdir()) else "cpu"
