"""A network's numbers are those of its files: all of them, of the right shapes, and finite.

The libraries fill what is missing with random numbers, resize what does not fit, and go on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from doodl.errors import ModelError

_COUNTER = "num_batches_tracked"
# What older files lack or hold beside the weights: counts and places, made anew by the code.
_HARMLESS = (_COUNTER, "position_ids", "attn_mask")
_NAMED = 3
_MAX_SAID_CHARS = 300


def load_tensors(
    network: nn.Module, tensors: Mapping[str, Tensor], place: str | Path, *, assign: bool = False
) -> None:
    """Load a network's tensors, each of its own name and shape.

    Args:
        assign: the tensors themselves become the network's, as on the meta device.
    Raises: ModelError as `check_whole`.
    """
    own = network.state_dict()
    # Counters are of training only, and older checkpoints have none.
    counters = {name: torch.tensor(0) for name in own if name.endswith(_COUNTER)}
    given = {**counters, **tensors}
    check_whole(
        place,
        missing=own.keys() - given.keys(),
        mismatched=[n for n in own.keys() & given.keys() if own[n].shape != given[n].shape],
        unknown=given.keys() - own.keys(),
    )
    network.load_state_dict(given, strict=False, assign=assign)


def check_whole(
    place: str | Path,
    *,
    missing: Iterable[str] = (),
    mismatched: Iterable[str] = (),
    unknown: Iterable[str] = (),
) -> None:
    """Raise ModelError if tensors are missing, of another shape, or of another network."""
    for names, what in (
        (missing, "is not whole: no weights for"),
        (mismatched, "is not whole: its config asks for other shapes of"),
        (unknown, "is of another network: unknown tensors"),
    ):
        found = sorted(name for name in names if not name.endswith(_HARMLESS))
        if found:
            more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
            raise ModelError(
                f"{place} {what} {', '.join(found[:_NAMED])}{more}. Pull or copy it again."
            )


def check_loaded(place: str | Path, network: nn.Module, report: Mapping[str, Any]) -> None:
    """Raise ModelError if what transformers or diffusers reports of loading is not all in order."""
    # Entries are names, or tuples that begin with one.
    names = [key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]]
    check_whole(place, missing=report["missing_keys"], mismatched=names)
    check_finite(place, network.state_dict())


def check_finite(place: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise ModelError if a tensor holds a number that is not finite."""
    for name, tensor in tensors.items():
        if name.endswith(_HARMLESS) or tensor.is_meta or not tensor.is_floating_point():
            continue
        # One pass and no copy: both ends are not a number if any is.
        if tensor.numel() and not all(torch.isfinite(end) for end in torch.aminmax(tensor)):
            raise ModelError(
                f"{place} is damaged: the numbers of {name} are not finite. Pull or copy it again."
            )


def one_line(error: Exception) -> str:
    """Return what a library said of a file, short and on one line."""
    return " ".join(str(error).split())[:_MAX_SAID_CHARS]
