"""Downloading a model from the hub, when asked to: what it is and how large, then the files."""

from __future__ import annotations

import errno
import glob
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from doodl.errors import ModelError
from doodl.models.hub import COMPONENTS, KNOWN, WEIGHTS, hub_cache, missing_parts, split_id

_CONFIGS = re.compile(rf"(?:{'|'.join(COMPONENTS)})/[\w.-]+\.(?:json|txt|model)", re.ASCII)
_ROOT_FILES = re.compile(r"model_index\.json|LICENSE(?:\.\w+)?", re.ASCII | re.IGNORECASE)
_TRUE = {"1", "ON", "YES", "TRUE"}


@dataclass(frozen=True)
class PullPlan:
    """What pulling a model would download.

    Attributes:
        revision: the commit. files: name -> bytes, of what is wanted of the repository.
        licence, limits: as we know them, else what the repository's card says.
        pinned: whether the commit was asked for, by a person or by our table.
    """

    source: str
    repository: str
    revision: str
    files: dict[str, int]
    licence: str
    limits: str
    pinned: bool

    @property
    def size_bytes(self) -> int:
        return sum(self.files.values())


def plan_pull(source: str, *, revision: str | None = None, fp16: bool = False) -> PullPlan:
    """Ask the hub what pulling a model would download; nothing is downloaded yet.

    Args:
        source: a known name, or `owner/name[@revision]`. revision: instead of the pinned one.
        fp16: the half-size files, where the repository has them.
    Raises: ModelError if the hub cannot be reached or has no such model in safetensors.
    """
    wanted = split_id(source)
    if wanted is None:
        raise ModelError(
            f"model {source!r} is neither one of {', '.join(KNOWN)} nor a hub id (owner/name)."
        )
    repository, pinned = wanted[0], revision or wanted[1]
    info = _ask(
        repository, lambda api: api.model_info(repository, revision=pinned, files_metadata=True)
    )
    sizes = {file.rfilename: int(file.size or 0) for file in info.siblings or ()}
    if "model_index.json" not in sizes:
        raise ModelError(f"{repository} is not a diffusers pipeline: it has no model_index.json.")
    files = {name: sizes[name] for name in wanted_files(list(sizes), fp16=fp16)}
    known = KNOWN.get(source)
    card = getattr(info, "card_data", None)
    licence = known.licence if known else str(getattr(card, "license", None) or "not stated")
    limits = known.limits if known else f"see https://huggingface.co/{repository}"
    return PullPlan(source, repository, str(info.sha), files, licence, limits, pinned is not None)


def wanted_files(names: list[str], *, fp16: bool) -> list[str]:
    """Return the files of a repository that loading needs: configs, tokenizers, safetensors.

    Of each component one variant of the weights: no pickles, no single-file copies of the whole,
    no other frameworks, and no name that could leave its folder.
    """
    chosen = [name for name in names if _ROOT_FILES.fullmatch(name) or _CONFIGS.fullmatch(name)]
    for part in COMPONENTS:
        variants: dict[bool, list[str]] = {True: [], False: []}
        for name in names:
            folder, _, file = name.partition("/")
            match = WEIGHTS.fullmatch(file) if folder == part else None
            if match:
                variants[match["fp16"] is not None].append(name)
        chosen += variants[fp16] or variants[not fp16]
    return sorted(chosen)


def pull(plan: PullPlan) -> Path:
    """Download the plan's files into the hub client's cache and return the model's folder.

    What is there already is kept, so an interrupted pull goes on.
    Raises: ModelError if the hub fails, or the model is not whole; OSError if the disk is full.
    """
    cache = hub_cache()
    _check_space(cache, plan.size_bytes)
    # Of `main` the client notes the commit, so that it is found again without a revision.
    revision = plan.revision if plan.pinned else None

    def download(api: Any) -> str:
        return api.snapshot_download(
            plan.repository,
            revision=revision,
            cache_dir=cache,
            allow_patterns=[glob.escape(name) for name in plan.files],
        )

    folder = Path(_ask(plan.repository, download))
    missing = missing_parts(folder)
    if missing:
        raise ModelError(
            f"{plan.repository} is not whole, or not in safetensors: {', '.join(missing)}."
        )
    return folder


def _ask(repository: str, question: Any) -> Any:
    """Return the hub's answer. Raises: ModelError that names no token and no signed address."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE:
        raise ModelError("HF_HUB_OFFLINE is set, so nothing is pulled; unset it to pull a model.")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return question(HfApi())
    except GatedRepoError:
        advice = (
            f"asks you to accept its terms: do so at https://huggingface.co/{repository}, "
            "then set HF_TOKEN"
        )
    except RevisionNotFoundError:
        advice = "has no such revision"
    except RepositoryNotFoundError:
        advice = "is not on the hub, or is private: then set HF_TOKEN"
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "?")
        advice = f"could not be pulled: the hub answered {status}; try again later"
    except Exception as error:  # each transport has errors of its own; a full disk is none of them
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES):
            raise
        advice = (
            f"could not be pulled ({type(error).__name__}): the hub cannot be reached; check the "
            "network, or copy the model's folder here and give its path"
        )
    raise ModelError(f"{repository} {advice}.")


def _check_space(cache: Path, size_bytes: int) -> None:
    there = cache
    while not there.exists() and there != there.parent:
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < size_bytes:
        raise OSError(
            errno.ENOSPC,
            f"the model takes {size_bytes / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; set "
            "HF_HOME to a larger disk",
            str(there),
        )
