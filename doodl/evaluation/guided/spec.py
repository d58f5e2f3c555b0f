"""What an evaluation of guided generation makes: items, seeds, methods and measures."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from doodl.errors import DoodlError
from doodl.evaluation.cases import Source
from doodl.evaluation.guided.methods import GUIDED_METHODS, METHODS
from doodl.evaluation.rows import fingerprint, recipe_values
from doodl.recipes.config import EditConfig

TASKS = {
    "text": "pocket-text",
    "classes": "pocket-classifier",
    "personalize": "pocket-personalize",
    "aesthetic": "pocket-aesthetic",
}
"""Each task's preset with the shipped model."""

_VALIDATION_SEED = 1_000_000
_PROMPT_COLUMNS = ("prompts", "prompt")
_CATEGORY_COLUMNS = ("category", "challenge")


@dataclass(frozen=True)
class Item:
    """One thing to draw, with several seeds.

    Attributes:
        prompt: what the denoiser is told.
        category: of the prompt, for a table by categories.
        label: the class asked for (classes).
        subject: the exemplar photo (personalize).
    """

    prompt: str
    category: str = ""
    label: str | None = None
    subject: Source | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        return self.label or (self.subject.name if self.subject else self.prompt)


@dataclass(frozen=True)
class Draw:
    """One picture to make: an item and a seed."""

    item: Item
    seed: int

    @property
    def case(self) -> str:
        """16 hex digits that name it, safe in a file's name."""
        item = self.item
        return fingerprint([item.prompt, item.label, item.name, self.seed])


@dataclass(frozen=True)
class GuidedSpec:
    """What is evaluated.

    Attributes:
        task: text | classes | personalize | aesthetic.
        items: each is drawn with `seeds` seeds, from `seed` on.
        config: the preset under test, with its guides.
        measures: scorers by name or path, none of which guides (`doodl.scores.load_scorer`).
        validation: seeds apart from those of the tables, on which the rivals' strengths are tuned.
        on_validation: draw the pictures of those seeds, and none of the tables': for choosing
            values.
        guide_revisions: (guide, revision) of those guides that are local files.
    """

    task: str
    items: tuple[Item, ...]
    config: EditConfig
    seeds: int = 10
    seed: int = 0
    model: str = "pocket"
    size_px: int = 128
    methods: tuple[str, ...] = METHODS
    measures: tuple[str, ...] = ("pocket-judge", "pocket-referee")
    validation: int = 8
    batch_size: int = 8
    on_validation: bool = False
    guide_revisions: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"task (={self.task!r}) must be one of {', '.join(TASKS)}.")
        wrong = [method for method in self.methods if method not in GUIDED_METHODS]
        if wrong or not self.methods:
            raise ValueError(
                f"methods (={', '.join(self.methods)}) must be of {', '.join(GUIDED_METHODS)}."
            )
        for method in self.methods:
            GUIDED_METHODS[method].config(self.config)  # refused here, not in the first row
        if not self.items or not self.measures:
            raise ValueError("at least one thing to draw and one measure are needed.")
        for name in ("seeds", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} (={getattr(self, name)}) must be at least 1.")
        if not self.config.guides:
            raise ValueError("the preset names no guide; add one with --guide.")

    def draws(self) -> list[Draw]:
        """Return the pictures of the tables, every item with its first seed before its second."""
        if self.on_validation:
            return self.validation_draws()
        return [Draw(item, self.seed + i) for i in range(self.seeds) for item in self.items]

    def validation_draws(self) -> list[Draw]:
        """Return pictures of the same items under seeds that are in no table."""
        return [
            Draw(self.items[i % len(self.items)], self.seed + _VALIDATION_SEED + i)
            for i in range(self.validation)
        ]

    def recipe(self, method: str, strength: float, revisions: dict[str, str]) -> str:
        """Return the fingerprint of all that a row's figures depend on, but for the picture."""
        made = GUIDED_METHODS[method]
        config = recipe_values(made.config(self.config))
        if made.way == "original":  # no guide acts: the optimiser decides nothing
            config = {"sampler": {**config["sampler"], "optimise_at": None}}
        return fingerprint(
            [self.task, method, strength, config, self.size_px, list(self.measures), revisions]
        )


def read_prompts(text: str) -> tuple[Item, ...]:
    """Return the prompts of a file: DrawBench's layout, or one prompt a line.

    DrawBench's is CSV or TSV with a header that names `Prompts` and, if it likes, `Category`.
    Raises: DoodlError if there is none.
    """
    lines = text.splitlines()
    header = lines[0].lower() if lines else ""
    separator = "\t" if "\t" in header else ","
    names = [name.strip() for name in header.split(separator)]
    prompt = next((name for name in _PROMPT_COLUMNS if name in names), None)
    if prompt is None:
        items = tuple(Item(line.strip()) for line in lines if line.strip())
    else:
        category = next((name for name in _CATEGORY_COLUMNS if name in names), None)
        rows = csv.reader(io.StringIO("\n".join(lines[1:])), delimiter=separator)
        items = tuple(_items(rows, names.index(prompt), names.index(category) if category else -1))
    if not items:
        raise DoodlError("the file holds no prompt; write one a line, or CSV with Prompts.")
    return items


def _items(rows: Any, prompt: int, category: int) -> Sequence[Item]:
    return [
        Item(row[prompt].strip(), row[category].strip() if 0 <= category < len(row) else "")
        for row in rows
        if len(row) > prompt and row[prompt].strip()
    ]


def class_items(labels: Sequence[str], prompt: str) -> tuple[Item, ...]:
    """Return one item per class; `{class}` in the prompt stands for its name."""
    return tuple(Item(prompt.replace("{class}", label), label=label) for label in labels)


def subject_items(sources: Sequence[Source], prompt: str) -> tuple[Item, ...]:
    """Return one item per exemplar photo."""
    return tuple(Item(prompt, category=source.label, subject=source) for source in sources)
