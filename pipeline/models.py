"""Which models there are, and which one `auto` means. Imports no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from doodl.pocket import weights_dir
from doodl.revisions import folder_revision

_HUB_MODELS = {
    "sd15": (
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "about 4.3 GB",
        "CreativeML OpenRAIL-M",
    ),
}


@dataclass(frozen=True)
class KnownModel:
    """One line of `models list`."""

    name: str
    state: str
    size: str
    licence: str
    note: str


def known_models() -> list[KnownModel]:
    """Return the models by name, the shipped one first."""
    folder = weights_dir()
    if (folder / "pipeline" / "model_index.json").is_file():
        size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        pocket = KnownModel(
            "pocket",
            "ready",
            f"{size / 1e6:.1f} MB",
            "see its card",
            f"shipped; works offline on a CPU; revision {folder_revision(folder)}",
        )
    else:
        pocket = KnownModel("pocket", "missing", "-", "-", f"{folder} is incomplete; reinstall")
    models = [pocket]
    for name, (repository, size_text, licence) in _HUB_MODELS.items():
        state = "in the cache" if pulled(repository) else "not pulled"
        note = f"{repository}; loading by name comes with a later version, use its local folder"
        models.append(KnownModel(name, state, size_text, licence, note))
    return models


def pulled(repository: str) -> bool:
    """Return whether a snapshot of a hub repository lies in the user's cache (HF_HOME honoured)."""
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    snapshots = cache / f"models--{repository.replace('/', '--')}" / "snapshots"
    return any(snapshots.glob("*/model_index.json"))


def resolve_model(name: str, recorded: str | None = None) -> tuple[str, str]:
    """Return (model, why) for `auto` or a name.

    `auto` never downloads, and never flips the model of a folder that has one (`recorded`).
    """
    if name != "auto":
        return name, "as asked"
    if recorded is not None:
        return recorded, "as this output folder's earlier runs"
    return "pocket", "it is shipped, and no larger model has been set up"


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
