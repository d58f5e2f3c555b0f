"""What a job is asked to do: one frozen value, written as JSON, the same for every runner."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import doodl
from doodl.guidance.revisions import (
    check_guides,
    guide_revisions,
    module_revisions,
    tower_revisions,
)
from doodl.guidance.spec import GuideSpec, absolute_guide, parse_guides, split_guides
from doodl.models.revisions import folder_revision
from doodl.pocket import weights_dir
from doodl.recipes.config import EditConfig, without_later_values
from doodl.recipes.presets import preset
from manifests.paths import TABLE_SUFFIXES, local_path

ALGORITHM_VERSION = 1
"""Raised when the same parameters would give other pixels: new rows carry a new fingerprint."""

SHIPPED_MODEL = "pocket"
DEVICES = ("cpu", "cuda", "auto")
RUNNERS = ("local", "inline", "cluster")
IMAGES = ("both", "files", "parquet")
DELIVERIES = ("transfer", "model")
DIRECTIONS = ("up", "down", "target")
TASKS = ("enhance", "generate", "personalize", "invert")
FROM_PROMPTS = ("generate", "personalize")
"""Tasks whose rows are prompts; those of the others are photos."""
FORMATS = ("png", "jpeg", "webp")
LATENTS_SUFFIX = ".safetensors"
NO_GUIDE = "none"
SAFETY_CHECKERS = ("auto", "off")
MAX_SIDE_PX = 4096
MAX_SEEDS = 100_000
MAX_AUTO_BATCH = 32
"""Photos at work at most where memory says how many: beyond, they gain no more speed, and each is
that much longer in work when a worker dies."""

_LOADERS = {
    "enhance": "doodl.editing.editor:load_editor",
    "generate": "doodl.generation:load_generator",
    "personalize": "doodl.generation:load_generator",
    "invert": "doodl.editing.inverter:load_inverter",
}

# By what names earlier versions' specs call them.
_EARLIER_LOADERS = {
    "doodl.edit:load_editor": "doodl.editing.editor:load_editor",
    "doodl.inversion:load_inverter": "doodl.editing.inverter:load_inverter",
}

# Values that recipes of photos did not have at first: a recipe that leaves them as they are is
# the recipe it was, and so is its fingerprint.
_LATER_VALUES = (
    "guides", "judge_tolerance", "judge_slack", "good_score", "max_change", "transfer_locality",
    "optimiser.min_optim_steps", "sampler.optimise_at", "sampler.kind", "method", "step_guidance",
    "warm_start",
)  # fmt: skip


@dataclass(frozen=True)
class JobSpec:
    """One job.

    Attributes:
        photos: absolute path or URI of a folder of photos, or of a manifest (Parquet, CSV, JSON
            lines); of photos or of prompts, as the task has it; empty if `prompts` says them all.
        out: absolute path or URI of the output folder.
        task: enhance | generate | personalize | invert.
        model: `pocket` or the path of a diffusers pipeline folder. model_revision: its weights'.
        preset, overrides: the recipe's name, and the values of it the user has set otherwise.
        config: what both come to, as `EditConfig.to_dict` gives it.
        direction, target, prompt, negative_prompt, strength, seed: for rows that do not say their
            own.
        images: both | files | parquet: where the edited photos are kept.
        max_pixels: larger photos fail their row.
        strip_gps: leave positions out of the delivered files' metadata.
        sidecar: write a JSON file beside each photo in `edited/`, with its result row.
        deliver: transfer | model: the photo with the change made on it, or the model's own pixels.
        detail: share of the model's new detail that is blended into the photo.
        device: what the workers compute on; `auto` is settled where they are.
        num_workers: at most so many; 0 means one per device or core of what there is now.
        gpus_per_worker, cpus_per_worker, resources: what Ray sets aside for each of them; less
            than a whole GPU lets workers share one; `resources` are a cluster's own names.
        batch_size: photos optimised together by one worker; 0: as many as its memory holds, which
            the worker alone can measure.
        editor: `module:function` that loads what edits; ours, or a cheap stand-in in tests.
        runner: local (a private Ray) | inline (no Ray) | cluster (the Ray whose job this is).
        checkpoint_every: iterations between a photo's checkpoints; 0 never.
        row_timeout_seconds: a row past it is charged and its worker killed; 0 never.
        max_attempts: workers that a row may kill before it is given up as poison.
        breaker: failures without one success that stop the run; 0 never.
        grace_seconds: time that rows in flight get to finish after SIGINT or SIGTERM.
        prompts: what to make pictures of. num_seeds: how many of each, from `seed` (or 0) on.
        subjects: absolute paths of exemplar photos, for rows that do not name their own.
        width_px, height_px: of generated pictures; 0 means the recipe's working_px.
        image_format: of generated pictures and reconstructions: png | jpeg | webp.
        safety_checker: auto (the model's own, if it ships one) | off.
        back: invert turns latents files into photos again.
        protect: absolute path of a folder of masks: what is white in a photo's mask stays as it is.
        protect_with: `module:function` of your own that draws such masks: faces, text.
        guide_revisions: of the local files that guides name, by guide; of `enhance` also those
            of their towers and labels.
        beside_revisions: of what else guides load: towers, labels, modules, and the files of rows'
            own guides. Compared as those are, but no part of the fingerprint: folders from before
            keep their identity, and a manifest may gain a guide.
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
    gpus_per_worker: float = 1.0
    cpus_per_worker: float = 1.0
    resources: dict[str, float] = field(default_factory=dict)
    batch_size: int = 1
    editor: str = "doodl.editing.editor:load_editor"
    runner: str = "local"
    checkpoint_every: int = 5
    row_timeout_seconds: float = 0.0
    max_attempts: int = 2
    breaker: int = 20
    grace_seconds: float = 30.0
    prompts: Sequence[str] = ()
    num_seeds: int = 1
    negative_prompt: str = ""
    subjects: Sequence[str] = ()
    width_px: int = 0
    height_px: int = 0
    image_format: str = "png"
    safety_checker: str = "auto"
    back: bool = False
    guide_revisions: dict[str, str] = field(default_factory=dict)
    protect: str = ""
    protect_with: str = ""
    beside_revisions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "editor", _EARLIER_LOADERS.get(self.editor, self.editor))
        # Lists and tuples alike: JSON knows one of them.
        object.__setattr__(self, "prompts", tuple(self.prompts))
        object.__setattr__(self, "subjects", tuple(self.subjects))
        _check_choice("task", self.task, TASKS)
        _check_choice("image_format", self.image_format, FORMATS)
        _check_choice("safety_checker", self.safety_checker, SAFETY_CHECKERS)
        _check_choice("direction", self.direction, DIRECTIONS)
        _check_choice("images", self.images, IMAGES)
        _check_choice("deliver", self.deliver, DELIVERIES)
        _check_choice("device", self.device, DEVICES)
        _check_choice("runner", self.runner, RUNNERS)
        if (self.protect or self.protect_with) and self.task != "enhance":
            raise ValueError(f"protect goes with task 'enhance'; {self.task} edits no photo.")
        _check_share("gpus_per_worker", self.gpus_per_worker)
        _check_share("cpus_per_worker", self.cpus_per_worker)
        _check_resources(self.resources)
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
        if not 1 <= self.num_seeds <= MAX_SEEDS or (self.seed or 0) + self.num_seeds > 2**63:
            raise ValueError(f"num_seeds (={self.num_seeds}) must be in 1..{MAX_SEEDS}.")
        for text in (*self.prompts, self.negative_prompt):
            try:
                text.encode()
            except UnicodeEncodeError:  # bytes of a shell that are no text
                raise ValueError(f"prompt {text!r} is not valid UTF-8.") from None
        for name in ("width_px", "height_px"):
            side = getattr(self, name)
            if side and not 32 <= side <= MAX_SIDE_PX:
                raise ValueError(f"{name} (={side}) must be in 32..{MAX_SIDE_PX}.")
        for name in (
            "num_workers", "checkpoint_every", "row_timeout_seconds", "breaker", "grace_seconds",
        ):  # fmt: skip
            if getattr(self, name) < 0:
                raise ValueError(f"{name} (={getattr(self, name)}) must not be negative.")
        if self.batch_size == 0 and self.task != "enhance":
            raise ValueError(
                f"batch_size auto is for photos to enhance; give {self.task} a number."
            )
        if self.batch_size < 0:
            raise ValueError(
                f"batch_size (={self.batch_size}) must be at least 1, or 0 for as many as fit."
            )
        for name in ("max_attempts", "max_pixels"):
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
            "recipe": without_later_values({**self.config, "sampler": sampler}, _LATER_VALUES),
            "max_pixels": self.max_pixels,
            **self._task_params(),
            **({"guide_revisions": self.guide_revisions} if self.guide_revisions else {}),
        }

    def _task_params(self) -> dict[str, Any]:
        """Return the options that change a result of this task alone."""
        names: tuple[str, ...]
        if self.task == "invert":
            names = ("prompt", "back", "image_format")
        elif self.task in FROM_PROMPTS:
            # Prompts, seeds and subjects are the rows': they change which there are.
            names = (
                "direction", "target", "negative_prompt", "width_px", "height_px", "image_format",
                "safety_checker",
            )  # fmt: skip
        else:
            names = ("direction", "target", "prompt", "strength", "seed", "strip_gps")
        asked = {name: getattr(self, name) for name in names}
        # Options that came later count once they are used: folders from before keep their identity.
        later = {"deliver": "transfer", "detail": 0.0, "protect_with": ""}
        if self.task != "enhance":
            return asked
        asked |= {n: getattr(self, n) for n, was in later.items() if getattr(self, n) != was}
        # Where the masks lie changes nothing; what is in them is in their rows' keys.
        return asked | ({"protect": "masks"} if self.protect else {})

    def with_runner(self, runner: str) -> JobSpec:
        """Return the same job for another runner."""
        return dataclasses.replace(self, runner=runner)

    @property
    def guides(self) -> tuple[str, ...]:
        """The guides of rows that do not say their own, as text."""
        return tuple(self.config.get("guides", ()))

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


def _check_share(name: str, value: float) -> None:
    # Ray's own rule: a part of one, or whole ones.
    if not (0 < value <= 1 or (1 < value < math.inf and value == int(value))):
        raise ValueError(f"{name} (={value}) must be above 0 and at most 1, or a whole number.")


def _check_resources(resources: dict[str, float]) -> None:
    for name, amount in resources.items():
        number = isinstance(amount, (int, float)) and not isinstance(amount, bool)
        if name.upper() in ("CPU", "GPU", "MEMORY") or not (number and 0 < amount < math.inf):
            raise ValueError(
                f"resources (={{{name!r}: {amount!r}}}) must be a cluster's own names with numbers "
                "above zero; CPUs and GPUs have their own options."
            )


def make_spec(photos: str | Path | None, out: str | Path | None = None, **options: Any) -> JobSpec:
    """Return a spec with absolute paths, the preset's values and the model's revision filled in.

    Args:
        photos: folder or manifest; None if `prompts` are given. out: default as `default_out`.
        options: any other field of JobSpec; `overrides` maps names of the config (`working_px`,
            `optimiser.num_optim_steps`) to values.
    Raises: ValueError on an unknown preset or option; ModelError if the model is absent.
    """
    photos = None if photos is None else _full(photos)
    out = _full(out) if out is not None else default_out(photos)
    task = options.setdefault("task", "enhance")
    _check_choice("task", task, TASKS)
    options.setdefault("editor", _LOADERS[task])
    model = options.setdefault("model", SHIPPED_MODEL)
    if model != SHIPPED_MODEL:
        model = options["model"] = str(Path(model).expanduser().absolute())
    overrides = options.setdefault("overrides", {})
    recipe = options.setdefault("preset", default_preset(task, model, overrides.get("guides")))
    config = preset(recipe).to_dict()
    for key, value in overrides.items():
        _override(config, key, value)
    if task != "invert":
        guides = _guides(task, config["guides"])
        config["guides"] = list(guides)
        options |= _revisions(task, list(guides.values()))
    if EditConfig.from_dict(config).method != "doodl" and task != "enhance":
        raise ValueError(f"method {config['method']} edits photos; {task} has no other than doodl.")
    return JobSpec(
        photos="" if photos is None else str(photos),
        out=str(out),
        model_revision=model_revision(model),
        config=config,
        **options,
    )


def loader_of(task: str) -> str:
    """Return the `module:function` that loads a task's models."""
    return _LOADERS[task]


def model_revision(model: str) -> str:
    """Return the revision of a model's files as they lie. Raises: ModelError if there are none."""
    return folder_revision(weights_dir() if model == SHIPPED_MODEL else Path(model))


def default_preset(task: str, model: str, guides: Sequence[str] | None = None) -> str:
    """Return the recipe of a task on a model: the paper's for what guides, or the pocket model's.

    Args:
        guides: as asked, None if the task's own.
    """
    if task in FROM_PROMPTS:
        family = "pocket" if model == SHIPPED_MODEL else "paper"
        kinds = {spec.kind for spec in parse_guides(_asked(guides or ()))}
        if task == "personalize":
            return f"{family}-personalize"
        return f"{family}-classifier" if kinds == {"classifier"} else f"{family}-text"
    return "pocket" if model == SHIPPED_MODEL else "paper-aesthetic"


def _asked(guides: Sequence[str]) -> Sequence[str]:
    return () if list(guides) == [NO_GUIDE] else guides


def _guides(task: str, texts: Any) -> dict[str, GuideSpec]:
    """Return a task's guides by their text in full; a text without a path stays as it was typed.

    Generation is guided by its prompt unless told otherwise (`none`), personalisation by its
    subject and whatever else is asked.
    Raises: ValueError on a guide that cannot be read, or whose file, folder or class is not there.
    """
    EditConfig(guides=tuple(_asked(texts)) if isinstance(texts, (list, tuple)) else texts)
    if list(texts) == [NO_GUIDE] and task == "generate":
        return {}
    asked = _asked(texts) if task in FROM_PROMPTS else texts
    read = parse_guides(asked)
    guides = [absolute_guide(spec, Path.cwd()) for spec in read]
    check_guides(guides)
    if task == "enhance":
        same = zip(texts, read, guides, strict=True)
        return {text if spec == typed else str(spec): spec for text, typed, spec in same}
    if task == "personalize" and all(spec.kind != "subject" for spec in guides):
        guides.insert(0, GuideSpec("subject"))
    if not guides:
        guides = [GuideSpec("text")]
    return {str(spec): spec for spec in guides}


def _revisions(task: str, guides: Sequence[GuideSpec]) -> dict[str, dict[str, str]]:
    """Return the fields of a spec that say which files its guides are."""
    own, towers, modules = (
        table(guides) for table in (guide_revisions, tower_revisions, module_revisions)
    )
    if task == "enhance":
        return {"guide_revisions": own | towers, "beside_revisions": modules}
    return {"guide_revisions": own, "beside_revisions": towers | modules}


def _full(place: str | Path) -> Path | str:
    """Return the absolute path of a local place, any other's URI as it is."""
    path = local_path(str(place))
    return str(place).rstrip("/") if path is None else Path(path).expanduser().absolute()


def default_out(photos: Path | str | None) -> Path | str:
    """Return `<photos>-doodl` beside the collection (a manifest's without its suffix).

    Prompts that are typed leave their pictures in `doodl-generated` where the person is.
    Raises: ValueError for a whole bucket: there is nothing beside it.
    """
    if photos is None:
        return Path.cwd() / "doodl-generated"
    if isinstance(photos, str):
        if "/" not in photos.partition("://")[2]:
            raise ValueError(f"{photos} is a whole bucket; say with --out where to write.")
        suffix = PurePosixPath(photos).suffix.lower()
        is_table = suffix in TABLE_SUFFIXES
        return (photos.removesuffix(suffix) if is_table else photos) + "-doodl"
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


def row_guides(guides: str | None, spec: JobSpec) -> tuple[GuideSpec, ...]:
    """Return the guides of a row: its own, or the job's."""
    return parse_guides(spec.guides if guides is None else split_guides(guides))
