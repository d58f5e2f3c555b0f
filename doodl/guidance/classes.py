"""The classes of a classifier: which one a label names. Imports no torch: planning asks too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from doodl.models.configs import read_config

_NAMED_CLASSES = 8


def find_class(labels: Sequence[str], num_classes: int, label: str, name: str) -> int:
    """Return the index of a class named by its label, by one of its synonyms, or by number.

    Args:
        labels: in the order of the classes; empty where nothing says them. Synonyms are separated
            by commas.
        name: of the classifier.
    Raises: ValueError naming a few of the classes there are.
    """
    wanted = label.strip().casefold()
    synonyms = [
        {entry.casefold(), *(part.strip().casefold() for part in entry.split(","))}
        for entry in labels
    ]
    whole = [i for i, entry in enumerate(labels) if entry.strip().casefold() == wanted]
    found = whole or [i for i, names in enumerate(synonyms) if wanted in names]
    if len(found) == 1:
        return found[0]
    if len(found) > 1:
        raise ValueError(
            f"class {label!r} of classifier {name} is ambiguous: it names the classes "
            f"{', '.join(map(str, found[:_NAMED_CLASSES]))}; give the number."
        )
    if wanted.isdecimal() and int(wanted) < num_classes:
        return int(wanted)
    known = ", ".join(labels[:_NAMED_CLASSES])
    more = ", ..." if len(labels) > _NAMED_CLASSES else ""
    raise ValueError(
        f"classifier {name} has no class {label!r}; it has "
        + (f"{known}{more}, or " if known else "")
        + f"a number from 0 to {num_classes - 1}."
    )


def labels_file(path: Path) -> Path:
    """Return where the labels of a file of weights are: FILE.labels.txt beside FILE.suffix."""
    return path.with_suffix(".labels.txt")


def labels_beside(path: Path) -> list[str]:
    """Return the lines of a weights file's labels; none if it has no such file."""
    labels = labels_file(path)
    if not labels.is_file():
        return []
    return [
        line.strip() for line in labels.read_text(encoding="utf-8").splitlines() if line.strip()
    ]


def told_labels(place: Path) -> list[str]:
    """Return the labels that a classifier's folder or file tells without its weights; else none.

    Raises: ModelError if its config cannot be read, or asks to run code or to fetch.
    """
    if place.is_file():
        return labels_beside(place)
    config = read_config(place / "config.json")
    preprocess = config.get("pretrained_cfg")
    told = config.get("label_names") or (
        preprocess.get("label_names") if isinstance(preprocess, dict) else None
    )
    by_number = config.get("id2label")
    if "architecture" not in config and isinstance(by_number, dict):
        told = [by_number.get(str(i)) for i in range(len(by_number))]
    return [str(label) for label in told] if isinstance(told, list) else []
