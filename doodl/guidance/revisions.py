"""Which guides exactly: the user's own files among them, and their fingerprints. No torch.

A guide's main file or folder is found by `guide_place`; what it loads beside that (a head's tower,
a classifier's labels, the module of a function) is found here too, under a name of its own.
"""

from __future__ import annotations

import importlib.machinery
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from doodl.errors import ModelError
from doodl.guidance.classes import find_class, labels_file, told_labels
from doodl.guidance.spec import BCE, POCKET_CLASSIFIER, SCORER_NAMES, GuideSpec, parse_guide
from doodl.models.revisions import file_revision, files_revision, folder_revision
from doodl.models.tower_files import TOWER_CONFIG, tower_files
from doodl.pocket import weights_dir

UNKNOWN_CLASSIFIER = (
    f"is none that is here: give {POCKET_CLASSIFIER}, a folder with config.json and "
    "model.safetensors, a WS-DAN checkpoint file, NAME@FILE or NAME with a timm model's name; "
    "/CLASS may follow."
)


def guide_revisions(specs: Iterable[GuideSpec]) -> dict[str, str]:
    """Return, per guide with a file or folder of the user's, the fingerprint of its bytes.

    Guides known by name alone (shipped, published, or in the hub's cache) are not in it.
    Raises: ModelError if a file cannot be read.
    """
    revisions = {}
    for spec in specs:
        place = guide_place(spec)
        if place is not None:
            revisions[spec.name] = (folder_revision if place.is_dir() else file_revision)(place)
    return revisions


def tower_revisions(specs: Iterable[GuideSpec]) -> dict[str, str]:
    """Return the fingerprints of what heads and weights files are loaded with.

    `tower of GUIDE` is the open_clip folder or file that an aesthetic head sits on, named or beside
    it; `labels of GUIDE` the class names beside a file. Other files there do not count.
    """
    return _extra(specs, {"tower": _tower_revision, "labels": _labels_revision})


def module_revisions(specs: Iterable[GuideSpec]) -> dict[str, str]:
    """Return the fingerprints `module of GUIDE` of the source files of functions, where found.

    What such a module imports in turn is not looked at.
    """
    return _extra(specs, {"module": _module_revision})


def all_revisions(specs: Sequence[GuideSpec]) -> dict[str, str]:
    """Return the three tables in one."""
    return guide_revisions(specs) | tower_revisions(specs) | module_revisions(specs)


def current_revision(name: str) -> str | None:
    """Return what a name in one of these tables has now as its fingerprint; None: it is gone."""
    part, of, guide = name.partition(" of ")
    spec = parse_guide(guide if of and part in ("tower", "labels", "module") else name)
    return all_revisions([spec]).get(name)


def check_guides(specs: Iterable[GuideSpec]) -> None:
    """Raise ValueError if a guide names a file, folder or class that is not there.

    What only its weights tell (a class by number, of a classifier without labels) is found out
    where it is loaded.
    """
    for spec in specs:
        if spec.value is None:
            continue
        if spec.kind == "aesthetic":
            _check_head(spec, spec.value)
        elif spec.kind == "classifier":
            _check_classifier(spec, spec.value.removeprefix(f"{BCE}:"))


def guide_place(spec: GuideSpec) -> Path | None:
    """Return the file or folder that a guide's network is in; None if it is known by name."""
    if spec.value is None:
        return None
    if spec.kind == "aesthetic":
        head = spec.value.rpartition("@")[2]
        return Path(head) if head not in SCORER_NAMES and is_file(head) else None
    if spec.kind != "classifier":
        return None
    found = _local_model(spec.value.removeprefix(f"{BCE}:"))
    return None if found is None else found[0]


def heads_of(value: str) -> Iterator[tuple[str, str | None]]:
    """Yield (MODEL, CLASS) of a classifier's value, however it can be cut; longest MODEL first."""
    yield value, None
    head, label = value, ""
    while "/" in head:
        head, _, tail = head.rpartition("/")
        label = f"{tail}/{label}" if label else tail
        if head:
            yield head, label


def local_model(text: str) -> Path | None:
    """Return the file or folder of a classifier MODEL, without its class; None if it is none.

    A folder counts only if it is a model's: any path has some parent that exists.
    """
    name, at, file = text.partition("@")
    if at and "/" not in name:
        return Path(file) if is_file(file) else None
    there = is_file(text) or is_file(os.path.join(text, "config.json"))  # noqa: PTH118 (any text)
    return Path(text) if there else None


def is_file(text: str) -> bool:
    """Return whether a text is the path of a file; no text is an error."""
    return os.path.isfile(text)  # noqa: PTH113 (pathlib raises on names too long for one)


def _local_model(text: str) -> tuple[Path, str | None] | None:
    """Return (file or folder, class) of a classifier's value."""
    if text.split("/")[0] == POCKET_CLASSIFIER:
        return None
    for model, label in heads_of(text):
        place = local_model(model)
        if place is not None:
            return place, label
    return None


def _check_head(spec: GuideSpec, value: str) -> None:
    tower, at, head = value.rpartition("@")
    if head not in SCORER_NAMES and not is_file(head):
        raise ValueError(
            f"guide {spec.name}: there is no file {head}; give an aesthetic head's, or one of "
            f"{', '.join(SCORER_NAMES)}."
        )
    if at and os.path.isabs(tower) and not is_file(os.path.join(tower, TOWER_CONFIG)):  # noqa: PTH117, PTH118
        raise ValueError(
            f"guide {spec.name}: {tower} is no open_clip folder: it has no {TOWER_CONFIG}."
        )


def _check_classifier(spec: GuideSpec, text: str) -> None:
    first, _, rest = text.partition("/")
    if first == POCKET_CLASSIFIER:
        found: tuple[Path, str | None] | None = (weights_dir() / "classifier", rest or None)
    else:
        found = _local_model(text)
    if found is None:
        # Only a name is left that it could be; the list of names comes with torch.
        if text.startswith(("/", ".", "~")) or not _is_published(text):
            raise ValueError(f"guide {spec.name}: classifier {text!r} {UNKNOWN_CLASSIFIER}")
        return
    place, label = found
    labels = [] if label is None else told_labels(place)
    if label is not None and labels:
        name = text.removesuffix(f"/{label}")
        try:
            find_class(labels, len(labels), label, name)
        except ValueError as error:
            raise ValueError(f"guide {spec.name}: {error}") from None


def _extra(
    specs: Iterable[GuideSpec], parts: Mapping[str, Callable[[GuideSpec], str | None]]
) -> dict[str, str]:
    found = {
        f"{part} of {spec.name}": revision_of(spec)
        for spec in specs
        for part, revision_of in parts.items()
    }
    return {name: revision for name, revision in found.items() if revision is not None}


def _tower_revision(spec: GuideSpec) -> str | None:
    if spec.kind != "aesthetic" or spec.value is None or spec.value in SCORER_NAMES:
        return None
    tower, at, head = spec.value.rpartition("@")
    weights = tower.partition(":")[2]
    if weights and is_file(weights):
        return file_revision(Path(weights))
    folder = Path(tower) if at else Path(head).parent
    named = at or (head not in SCORER_NAMES and is_file(head))
    if not named or not is_file(str(folder / TOWER_CONFIG)):
        return None
    return files_revision(tower_files(folder), folder)


def _labels_revision(spec: GuideSpec) -> str | None:
    place = guide_place(spec) if spec.kind == "classifier" else None
    labels = None if place is None or place.is_dir() else labels_file(place)
    return file_revision(labels) if labels is not None and labels.is_file() else None


def _module_revision(spec: GuideSpec) -> str | None:
    if spec.kind != "callable":
        return None
    source = _source(str(spec.value).partition(":")[0])
    return None if source is None else file_revision(source)


def _source(module: str) -> Path | None:
    """Return a module's source file, found without importing it or the packages it is in."""
    # The current folder is not searched on workers, and must not be here.
    places: list[str] | None = [place for place in sys.path if place]
    found, name = None, ""
    for part in module.split("."):
        name = f"{name}.{part}" if name else part
        try:
            found = importlib.machinery.PathFinder.find_spec(name, places)
        except (ImportError, OSError, ValueError):
            return None
        if found is None:
            return None
        places = list(found.submodule_search_locations or ())
    origin = None if found is None else found.origin
    return Path(origin) if origin is not None and is_file(origin) else None


def _is_published(text: str) -> bool:
    try:
        split_class(text)
    except ModelError:
        return False
    return True


def split_class(value: str) -> tuple[str, str | None]:
    """Return (MODEL, CLASS) of a classifier guide's value; the longest MODEL there is.

    Raises: ModelError if no part of it is a model.
    """
    for model, label in heads_of(value):
        if _is_model(model):
            return model, label
    raise ModelError(f"classifier {value!r} {UNKNOWN_CLASSIFIER}")


def _is_model(text: str) -> bool:
    name, at, _ = text.partition("@")
    if local_model(text) is not None:
        return not at or "/" in name or is_timm_name(name)
    return text == POCKET_CLASSIFIER or is_timm_name(text)


def is_timm_name(text: str) -> bool:
    import timm

    return "/" not in text and timm.is_model(text.partition(".")[0])
