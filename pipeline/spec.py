"""What a job is asked to do: one frozen value, written as JSON, the same for every runner."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import doodl
from doodl.config import EditConfig, preset
from doodl.pocket import weights_dir
from doodl.revisions import folder_revision

ALGORITHM_VERSION = 1
"""Raised when the same parameters would give other pixels: new rows carry a new fingerprint."""

SHIPPED_MODEL = "pocket"
DEVICES = ("cpu", "cuda")
IMAGES = ("both", "files", "parquet")
DELIVERIES = ("transfer", "model")
DIRECTIONS = ("up", "down", "target")


@dataclass(frozen=True)
class JobSpec:
    """One job.

    Attributes:
        photos: absolute path of a folder of photos, or of a manifest (Parquet, CSV, JSON lines).
        out: absolute path of the output folder.
        model: `pocket` or the path of a diffusers pipeline folder. model_revision: its weights'.
        preset, overrides: the recipe's name, and the values of it the user has set otherwise.
        config: what both come to, as `EditConfig.to_dict` gives it.
        direction, target, prompt, strength, seed: for rows that do not say their own.
        sidecar: write a JSON file beside each photo in `edited/`, with its result row.
        images: both | files | parquet: where the edited photos are kept.
        max_pixels: larger photos fail their row.
        strip_gps: leave positions out of the delivered files' metadata.
        deliver: transfer | model: the photo with the change made on it, or the model's own pixels.
        detail: share of the model's new detail that is blended into the photo.
        device: what the workers compute on. num_workers: 0 means one per device or core.
        batch_size: photos optimised together by one worker.
        editor: `module:function` that loads what edits; ours, or a cheap stand-in in tests.
        runner: local | inline. checkpoint_every: iterations between a photo's checkpoints; 0 never.
        row_timeout_seconds: a row past it is charged and its worker killed; 0 never.
        max_attempts: workers that a row may kill before it is given up as poison.
        breaker: failures without one success that stop the run; 0 never.
        grace_seconds: time that rows in flight get to finish after SIGINT or SIGTERM.
    """

    photos: str
    out: str
    task: str = "enhance"
    model: str = "pocket"
    model_revision: str = ""
    preset: str = "pocket"
    overrides: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    direction: str = "up"
    target: float | None = None
    prompt: str = ""
    strength: float = 1.0
    seed: int | None = None
    images: str = "both"
    max_pixels: int = 200_000_000
    strip_gps: bool = False
    sidecar: bool = False
    deliver: str = "transfer"
    detail: float = 0.0
    device: str = "cpu"
    num_workers: int = 0
    batch_size: int = 1
    editor: str = "doodl.edit:load_editor"
    runner: str = "local"
    checkpoint_every: int = 5
    row_timeout_seconds: float = 0.0
    max_attempts: int = 2
    breaker: int = 20
    grace_seconds: float = 30.0

    def __post_init__(self) -> None:
        _check_choice("task", self.task, ("enhance",))
        _check_choice("direction", self.direction, DIRECTIONS)
        _check_choice("images", self.images, IMAGES)
        _check_choice("deliver", self.deliver, DELIVERIES)
        _check_choice("device", self.device, DEVICES)
        _check_choice("runner", self.runner, ("local", "inline"))
        if (self.direction == "target") != (self.target is not None):
            raise ValueError(
                f"direction={self.direction!r} with target={self.target}: a target score goes "
                "with direction 'target', and only with it."
            )
        for name in ("strength", "detail"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} (={getattr(self, name)}) must be in [0, 1].")
        if self.deliver == "model" and self.detail:
            raise ValueError("detail is blended into the photo; deliver='model' holds it already.")
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed (={self.seed}) must fit in 64 bits.")
        for name in (
            "num_workers", "checkpoint_every", "row_timeout_seconds", "breaker", "grace_seconds",
        ):  # fmt: skip
            if getattr(self, name) < 0:
                raise ValueError(f"{name} (={getattr(self, name)}) must not be negative.")
        for name in ("batch_size", "max_attempts", "max_pixels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} (={getattr(self, name)}) must be at least 1.")

    def params(self) -> dict[str, Any]:
        """Return everything that changes a result: what the fingerprint is of.

        What the user chose is compared with the folder's job; what came with the software
        (`recipe`, `shipped_model_revision`) may change with its version.
        """
        # Where the activations are kept is a matter of speed and memory, not of the result.
        sampler = {k: v for k, v in self.config.get("sampler", {}).items() if k != "memory"}
        shipped = self.model == SHIPPED_MODEL
        return {
            "task": self.task,
            "algorithm_version": ALGORITHM_VERSION,
            "model": self.model,
            "shipped_model_revision" if shipped else "model_revision": self.model_revision,
            "preset": self.preset,
            "overrides": {k: v for k, v in self.overrides.items() if k != "sampler.memory"},
            "recipe": {**self.config, "sampler": sampler},
            "direction": self.direction,
            "target": self.target,
            "prompt": self.prompt,
            "strength": self.strength,
            "seed": self.seed,
            "max_pixels": self.max_pixels,
            "strip_gps": self.strip_gps,
            "deliver": self.deliver,
            "detail": self.detail,
        }

    @property
    def edit_config(self) -> EditConfig:
        return EditConfig.from_dict(self.config)

    @property
    def keep_files(self) -> bool:
        return self.images in ("both", "files")

    @property
    def keep_parquet(self) -> bool:
        return self.images in ("both", "parquet")

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> JobSpec:
        """Return the spec of `to_json`. Raises: ValueError on an unknown or missing name."""
        try:
            return cls(**json.loads(text))
        except TypeError as error:
            raise ValueError(f"not a job spec: {error}") from error


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} (={value!r}) must be one of {', '.join(choices)}.")


def make_spec(photos: str | Path, out: str | Path | None = None, **options: Any) -> JobSpec:
    """Return a spec with absolute paths, the preset's values and the model's revision filled in.

    Args:
        photos: folder or manifest. out: default `<photos>-doodl` beside it.
        options: any other field of JobSpec; `overrides` maps names of the config (`working_px`,
            `optimiser.num_optim_steps`) to values.
    Raises: ValueError on an unknown preset or option; ModelError if the model is absent.
    """
    photos = Path(photos).expanduser().absolute()
    out = Path(out).expanduser().absolute() if out is not None else default_out(photos)
    model = options.setdefault("model", SHIPPED_MODEL)
    if model != SHIPPED_MODEL:
        model = options["model"] = str(Path(model).expanduser().absolute())
    default_preset = "pocket" if model == SHIPPED_MODEL else "paper-aesthetic"
    config = preset(options.setdefault("preset", default_preset)).to_dict()
    for key, value in options.setdefault("overrides", {}).items():
        _override(config, key, value)
    EditConfig.from_dict(config)
    return JobSpec(
        photos=str(photos),
        out=str(out),
        model_revision=model_revision(model),
        config=config,
        **options,
    )


def model_revision(model: str) -> str:
    """Return the revision of a model's files as they lie. Raises: ModelError if there are none."""
    return folder_revision(weights_dir() if model == SHIPPED_MODEL else Path(model))


def default_out(photos: Path) -> Path:
    """Return `<photos>-doodl` beside the collection (a manifest's without its suffix)."""
    stem = photos.name if photos.is_dir() else photos.stem
    return photos.parent / f"{stem}-doodl"


def _override(config: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    node = config
    for part in path:
        node = node.get(part, {})
    if not isinstance(node, dict) or last not in node or isinstance(node[last], dict):
        known = [k for k, v in config.items() if not isinstance(v, dict)]
        known += [f"{k}.{n}" for k, v in config.items() if isinstance(v, dict) for n in v]
        raise ValueError(f"config has no {key!r}; it has {', '.join(known)}.")
    node[last] = value


def version() -> str:
    return doodl.__version__
