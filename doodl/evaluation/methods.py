"""The edit and its rivals: the same guide, loss, transfer and guard, less one part each.

edit           the preset as shipped
no-smoothing   without the blur of the latent gradient
full-depth     inverted to pure noise
autoencoder    the autoencoder's latents optimised directly: no diffusion at all
one-step       guidance inside each denoising step, from a part-way DDIM inversion
one-step-20    the same with T = 20, four times the preset's steps; only if it is named
hybrid         the same by the final image of all steps that follow; only if it is named
pixel          the frame's pixels optimised directly; only if it is named
zero-unet      the whole sampler, with a UNet that predicts no noise
edit-belm      the edit by O-BELM instead of EDICT; only if it is named
levels         the warm start alone, without an update of the noise
auto-contrast  0.7 auto-contrast + 0.3 input, saturation × 1.2: no model, no guide, no guard

The ablations are methods as well (`evaluation.ablations`), only if they are named.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from doodl.backbones import Backbone
from doodl.editing.editor import PhotoEditor
from doodl.editing.objective import Aim
from doodl.editing.requests import EditRequest, EditResult
from doodl.errors import DoodlError
from doodl.evaluation.ablations import ABLATIONS, Ablation, changed
from doodl.evaluation.unets import CountedUNet, without_noise
from doodl.images import Photo, encode_photo
from doodl.recipes.config import EditConfig


@dataclass(frozen=True)
class Edited:
    """What a method made of one photo.

    Attributes:
        encoded: the edited file, there whatever the status says.
        status: ok | rejected | skipped; what is not ok is not delivered.
        inversion_error: RMS of the round trip over that of the latents; None without inversion.
    """

    encoded: bytes
    status: str
    stop_reason: str = ""
    num_optim_steps: int = 0
    inversion_error: float | None = None


@dataclass(frozen=True)
class Cost:
    """What a batch took, per photo.

    Attributes:
        cpu_seconds: processor time, so that a busy machine does not distort it.
        unet_calls: forward passes of the UNet; the passes back through them are not counted.
    """

    cpu_seconds: float
    unet_calls: float


RunMethod = Callable[[PhotoEditor, Sequence[EditRequest], float], "list[Edited | DoodlError]"]
"""`(editor as shipped, requests, strength) -> what became of each`."""


@dataclass(frozen=True)
class Method:
    """One row of the comparison.

    Attributes:
        knob: what its strength is the value of; None if it has the one it has.
        start: the strength that tuning starts from.
        directions: those it can go.
        asked_only: left out unless it is named.
    """

    name: str
    summary: str
    run: RunMethod
    knob: str | None = None
    start: float = 1.0
    directions: tuple[str, ...] = ("up", "down")
    asked_only: bool = False


def counted(editor: PhotoEditor) -> PhotoEditor:
    """Return the editor with a UNet that counts its calls."""
    if isinstance(editor.backbone.unet, CountedUNet):
        return editor
    return _with(editor, backbone=replace(editor.backbone, unet=CountedUNet(editor.backbone.unet)))


def run_method(
    method: Method, editor: PhotoEditor, requests: Sequence[EditRequest], strength: float
) -> tuple[list[Edited | DoodlError], Cost]:
    """Edit photos by a method and return what became of each, and what one of them cost.

    Args:
        editor: as shipped, `counted`.
        strength: the value of the method's knob; without one, it is not looked at.
    """
    unet = editor.backbone.unet
    before = unet.photos
    started = time.process_time()
    edited = method.run(editor, requests, strength)
    seconds = time.process_time() - started
    return edited, Cost(seconds / len(requests), (unet.photos - before) / len(requests))


def _with(
    editor: PhotoEditor, *, backbone: Backbone | None = None, config: EditConfig | None = None
) -> PhotoEditor:
    return PhotoEditor(
        backbone or editor.backbone,
        editor.guide,
        editor.judge,
        config or editor.config,
        software=editor.software,
    )


def _at_rate(config: EditConfig, factor: float, **optimiser: Any) -> EditConfig:
    """Return the config with its learning rate times a factor, and other values."""
    rate = config.optimiser.learning_rate * factor
    return replace(config, optimiser=replace(config.optimiser, learning_rate=rate, **optimiser))


def _edit(editor: PhotoEditor, requests: Sequence[EditRequest]) -> list[Edited | DoodlError]:
    return [
        _as_edited(result) if isinstance(result, EditResult) else result
        for result in editor.edit(requests)
    ]


def _as_edited(result: EditResult) -> Edited:
    return Edited(
        result.encoded,
        result.status,
        result.stop_reason,
        result.num_optim_steps,
        result.inversion_error,
    )


def _shipped(
    editor: PhotoEditor,
    requests: Sequence[EditRequest],
    strength: float,  # noqa: ARG001
) -> list[Edited | DoodlError]:
    return _edit(editor, requests)


def _no_smoothing(
    editor: PhotoEditor, requests: Sequence[EditRequest], strength: float
) -> list[Edited | DoodlError]:
    config = _at_rate(editor.config, strength, grad_blur_sigma=0.0)
    return _edit(_with(editor, config=config), requests)


def _full_depth(
    editor: PhotoEditor, requests: Sequence[EditRequest], strength: float
) -> list[Edited | DoodlError]:
    config = _at_rate(editor.config, strength)
    config = replace(config, sampler=replace(config.sampler, depth=1.0))
    return _edit(_with(editor, config=config), requests)


def _without_diffusion(name: str) -> RunMethod:
    """Return the method of `editing.methods` that optimises what it names; its knob is the rate."""

    def run(
        editor: PhotoEditor, requests: Sequence[EditRequest], strength: float
    ) -> list[Edited | DoodlError]:
        config = replace(_at_rate(editor.config, strength), method=name)
        return _edit(_with(editor, config=config), requests)

    return run


def _levels(
    editor: PhotoEditor,
    requests: Sequence[EditRequest],
    strength: float,  # noqa: ARG001
) -> list[Edited | DoodlError]:
    optimiser = replace(editor.config.optimiser, num_optim_steps=0, min_optim_steps=0)
    return _edit(_with(editor, config=replace(editor.config, optimiser=optimiser)), requests)


def _zero_unet(
    editor: PhotoEditor, requests: Sequence[EditRequest], strength: float
) -> list[Edited | DoodlError]:
    backbone = without_noise(editor.backbone)
    return _edit(
        _with(editor, backbone=backbone, config=_at_rate(editor.config, strength)), requests
    )


def _ablated(ablation: Ablation) -> RunMethod:
    """Return the preset with one part changed."""

    def run(
        editor: PhotoEditor,
        requests: Sequence[EditRequest],
        strength: float,  # noqa: ARG001
    ) -> list[Edited | DoodlError]:
        backbone = without_noise(editor.backbone) if ablation.zero_unet else None
        config = changed(ablation, editor.config)
        return _edit(_with(editor, backbone=backbone, config=config), requests)

    return run


def _belm(
    editor: PhotoEditor, requests: Sequence[EditRequest], strength: float
) -> list[Edited | DoodlError]:
    config = changed(ABLATIONS["belm"], _at_rate(editor.config, strength))
    return _edit(_with(editor, config=config), requests)


def _step_by_step(name: str, *, steps: int | None = None) -> RunMethod:
    """Return the method of `doodl.editing.methods` that guides each step, its knob the guidance.

    Args:
        steps: T; None leaves it as the preset has it.
    """

    def run(
        editor: PhotoEditor, requests: Sequence[EditRequest], strength: float
    ) -> list[Edited | DoodlError]:
        config = replace(editor.config, method=name, step_guidance=strength)
        if steps is not None:
            sampler = replace(config.sampler, num_inference_steps=steps)
            config = replace(config, sampler=sampler)
        return _edit(_with(editor, config=config), requests)

    return run


def _auto_contrast(
    editor: PhotoEditor,
    requests: Sequence[EditRequest],
    strength: float,  # noqa: ARG001
) -> list[Edited | DoodlError]:
    return [
        Edited(
            encode_photo(
                request.photo, auto_contrast(request.photo.pixels), software=editor.software
            ),
            "ok",
        )
        for request in requests
    ]


def auto_contrast(pixels: np.ndarray) -> np.ndarray:
    """Return 0.7 auto-contrast + 0.3 input, saturation × 1.2, of (H, W, 3) uint8."""
    image = Image.fromarray(pixels)
    blended = Image.blend(image, ImageOps.autocontrast(image), 0.7)
    return np.asarray(ImageEnhance.Color(blended).enhance(1.2))


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("edit", "the preset as shipped", _shipped),
        Method(
            "no-smoothing", "no blur of the latent gradient", _no_smoothing, "learning rate ×"
        ),
        Method("full-depth", "inverted to pure noise", _full_depth, "learning rate ×"),
        Method(
            "autoencoder", "the autoencoder's latents directly, no diffusion",
            _without_diffusion("autoencoder"), "learning rate ×",
        ),
        Method(
            "one-step", "guidance inside each denoising step, from a part-way DDIM inversion",
            _step_by_step("one-step"), "guidance", 32.0,
        ),
        Method(
            "one-step-20", "one-step with T = 20, for it has but one walk to guide",
            _step_by_step("one-step", steps=20), "guidance", 16.0, asked_only=True,
        ),
        Method(
            "hybrid", "guidance inside each denoising step by the final image, all steps through",
            _step_by_step("hybrid"), "guidance", 32.0, asked_only=True,
        ),
        Method(
            "pixel", "the frame's pixels directly: no diffusion, no autoencoder",
            _without_diffusion("pixel"), "learning rate ×", asked_only=True,
        ),
        Method("zero-unet", "the edit with noise_pred = 0", _zero_unet, "learning rate ×"),
        Method(
            "levels", "the warm start alone: levels stretched where the guide prefers it",
            _levels, directions=("up",),
        ),
        Method(
            "auto-contrast", "0.7 auto-contrast + 0.3 input, saturation × 1.2; no model, no guard",
            _auto_contrast, directions=("up",),
        ),
        Method(
            "edit-belm", "the edit by O-BELM, one call of the UNet a step",
            _belm, "learning rate ×", asked_only=True,
        ),
        *(
            Method(
                ablation.name, f"{ablation.part}: {ablation.value}", _ablated(ablation),
                asked_only=True,
            )
            for ablation in ABLATIONS.values() if "photo" in ablation.tasks
        ),
    )
}  # fmt: skip


DEFAULT_METHODS = tuple(name for name, method in METHODS.items() if not method.asked_only)


def make_request(photo: Photo, direction: str, seed: int) -> EditRequest:
    """Return the request that every method gets for a photo."""
    return EditRequest(photo, Aim(direction), seed)
