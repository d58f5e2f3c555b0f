"""What a guide is called: `aesthetic=1`, `text:"a red rose"=0.5`. Imports no torch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

KINDS = ("aesthetic", "text", "subject", "classifier", "symmetry", "fidelity", "callable")
FORM = 'KIND[:VALUE][=WEIGHT], as in aesthetic=1, text:"a red rose"=0.5 or symmetry=0.1'

SCORER_NAMES = (
    "pocket", "pocket-judge", "pocket-referee",
    "laion-v1", "laion-v1-b32", "laion-v1-l14", "laion-v2",
)  # fmt: skip
"""Aesthetic scorers that are known by name; any other value is the path of a head."""

POCKET_CLASSIFIER = "pocket"

BCE = "bce"
"""Before a classifier's value, `bce:MODEL/CLASS`: binary cross-entropy of that class alone."""

_WITHOUT_VALUE = ("subject", "symmetry", "fidelity")
_FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_BARE = re.compile(r"[A-Za-z0-9_./@+:-]+")
_QUOTED = json.JSONDecoder(strict=False)


@dataclass(frozen=True)
class GuideSpec:
    """One term of the weighted sum that the pixels are optimised for.

    Attributes:
        kind: one of KINDS.
        value: aesthetic: a scorer's name or a head's path, None the model's own; text: the words,
            None the row's prompt; classifier: MODEL or MODEL/CLASS, None the model's own and the
            row's label; callable: module:function; the other kinds have none.
        weight: of the kind's loss in the sum, above zero.
    Raises: ValueError if the parts do not fit together.
    """

    kind: str
    value: str | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"guide kind (={self.kind!r}) must be one of {', '.join(KINDS)}.")
        if self.value is not None and not self.value.strip():
            raise ValueError(f"guide {self.kind} has an empty value; leave out the colon.")
        if self.value is not None and self.kind in _WITHOUT_VALUE:
            raise ValueError(f"guide {self.kind} takes no value (got {self.value!r}).")
        if self.kind == "callable" and not _FUNCTION.fullmatch(self.value or ""):
            raise ValueError(
                f"guide callable (={self.value!r}) must be module:function, as in my.losses:red."
            )
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise ValueError(
                f"weight of guide {self.name} (={self.weight}) must be finite and above zero; "
                "an aesthetic score is lowered by direction 'down'."
            )

    @property
    def name(self) -> str:
        """The guide without its weight: what its values are called in tables."""
        if self.value is None:
            return self.kind
        bare = self.kind != "text" and _BARE.fullmatch(self.value)
        return f"{self.kind}:{self.value if bare else json.dumps(self.value, ensure_ascii=False)}"

    def __str__(self) -> str:
        short = f"{self.weight:g}"
        return f"{self.name}={short if float(short) == self.weight else repr(self.weight)}"


def parse_guide(text: str) -> GuideSpec:
    """Return the guide that a text names, the inverse of `str`.

    A value with an equals sign or quotation marks in it is written in quotation marks, as in JSON.
    Raises: ValueError naming the text and the form.
    """
    try:
        kind, separator, rest = re.fullmatch(r"\s*(\w*)\s*([:=]?)(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
        if separator == "" and rest:
            raise ValueError("the kind is followed by neither : nor =.")
        value, weight = None, rest if separator == "=" else None
        if separator == ":":
            value, weight = _value_and_weight(rest.strip())
        return GuideSpec(kind, value, 1.0 if weight is None else _number(weight))
    except ValueError as error:
        raise ValueError(f"guide {text!r}: {error} Write {FORM}.") from error


def _value_and_weight(text: str) -> tuple[str, str | None]:
    if text.startswith('"'):
        try:
            value, end = _QUOTED.raw_decode(text)
        except json.JSONDecodeError as error:
            raise ValueError("the quotation marks do not close.") from error
        rest = text[end:].strip()
        if rest and not rest.startswith("="):
            raise ValueError(f"{rest!r} follows the closing quotation mark.")
        return value, rest[1:] if rest else None
    value, separator, weight = text.partition("=")
    return value.strip(), weight if separator else None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"the weight {text.strip()!r} is not a number.") from None


def parse_guides(texts: Sequence[str]) -> tuple[GuideSpec, ...]:
    """Return the guides of texts. Raises: ValueError as `parse_guide`, or on one named twice."""
    specs = tuple(parse_guide(text) for text in texts)
    names = [spec.name for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"guide {name} is named twice; give it once, with the weights added.")
    return specs


def absolute_guide(spec: GuideSpec, base: Path) -> GuideSpec:
    """Return the guide with a file or folder of its value made absolute, from `base`.

    Workers run elsewhere than the person who typed. Names of models, and classes behind a path,
    stay as they are; a file that is called like a model is written ./NAME.
    """
    if spec.kind not in ("aesthetic", "classifier") or spec.value is None:
        return spec
    prefix = f"{BCE}:" if spec.value.startswith(f"{BCE}:") else ""
    network, at, file = spec.value.removeprefix(prefix).rpartition("@")
    if spec.kind == "aesthetic":
        network = _absolute_tower(network, base)
    path = Path(file).expanduser()
    named = file.split("/")[0] in (*SCORER_NAMES, POCKET_CLASSIFIER)
    places = [place for place in (path, *path.parents) if place != Path()]
    if not named and any((base / place).exists() for place in places):
        file = str(base / path)
    return replace(spec, value=f"{prefix}{network}{at}{file}")


def _absolute_tower(network: str, base: Path) -> str:
    """Return a head's tower, FOLDER or NAME:TAG, with a folder, or a file as the tag, in full."""
    name, colon, tag = network.partition(":")
    folder, weights = base / Path(network).expanduser(), base / Path(tag).expanduser()
    if network and (folder / "open_clip_config.json").is_file():
        return str(folder)
    return f"{name}{colon}{weights}" if tag and weights.is_file() else network


def split_guides(text: str) -> list[str]:
    """Return the guides of a cell such as `text=1; aesthetic=0.5`; none of an empty one."""
    parts, quoted, escaped = [""], False, False
    for char in text:
        if char == ";" and not quoted:
            parts.append("")
            continue
        if char == '"' and not escaped:
            quoted = not quoted
        escaped = char == "\\" and not escaped
        parts[-1] += char
    return [part.strip() for part in parts if part.strip()]


def join_guides(guides: Sequence[GuideSpec]) -> str:
    """Return guides as one text, which `split_guides` takes apart."""
    return "; ".join(map(str, guides))
