"""What people chose on a study's page, read with the study's key, as figures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from doodl.measures.human import (
    PairwiseFigures,
    RatingFigures,
    Vote,
    WinDrawLoss,
    pairwise_figures,
    rating_figures,
)
from pipeline.errors import PipelineError

__all__ = [
    "KEY_FILE",
    "PairwiseFigures",
    "RatingFigures",
    "StudyError",
    "WinDrawLoss",
    "choice_files",
    "pairwise_figures",
    "rating_figures",
    "read_key",
    "read_votes",
]

KEY_FILE = "_key.json"
MAX_BYTES = 20_000_000


class StudyError(PipelineError):
    """A study cannot be made of these folders, or its files do not belong together."""

    exit_code = 2


def read_key(folder: Path) -> dict[str, Any]:
    """Return a study's key: what is what. Raises: StudyError if the folder is no study."""
    try:
        key = json.loads((folder / KEY_FILE).read_text("utf-8"))
        if key["kind"] not in ("pairwise", "rating") or not isinstance(key["items"], dict):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StudyError(f"{folder} is no study: it holds no readable {KEY_FILE}.") from error
    return key


def choice_files(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield the JSON files that paths name: files, and those in folders, by name."""
    for path in paths:
        if path.is_dir():
            yield from sorted(p for p in path.glob("*.json") if p.name != KEY_FILE)
        else:
            yield path


def read_votes(path: Path, key: dict[str, Any]) -> list[Vote]:
    """Return the votes that a page saved. Raises: StudyError if they are none of this study's."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise StudyError(f"{path.name} holds more than any page saves.")
        said = json.loads(path.read_text("utf-8"))
        if said["doodl_study"] != 1 or not isinstance(said["choices"], list):
            raise ValueError
        study, kind, rater = said["study"], said["kind"], str(said["rater"])
        chosen = [(entry["item"], entry["choice"]) for entry in said["choices"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StudyError(f"{path.name} is not what a study's page saves.") from error
    if (study, kind) != (key["study"], key["kind"]):
        raise StudyError(f"{path.name} is of another study than the folder's.")
    votes = []
    for item, choice in chosen:
        entry = key["items"].get(item) if isinstance(item, str) else None
        if entry is None or not _valid(choice, key):
            raise StudyError(f"{path.name} has a choice that the page cannot have made.")
        if kind == "pairwise":
            votes.append(Vote(item, rater, choice if choice == "draw" else entry[choice]))
        else:
            votes.append(Vote(item, rater, choice, entry["method"]))
    return votes


def _valid(choice: Any, key: dict[str, Any]) -> bool:
    if key["kind"] == "pairwise":
        return choice in ("left", "right", "draw")
    return type(choice) is int and 1 <= choice <= len(key["levels"])
