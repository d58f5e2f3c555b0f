"""doodl: exact diffusion inversion and end-to-end optimisation of diffusion latents."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from doodl.engine.software import __version__

if TYPE_CHECKING:
    from doodl.adjoint import generate_with_grad
    from doodl.backbones import load_backbone
    from doodl.editing.editor import load_editor
    from doodl.editing.objective import Aim
    from doodl.editing.requests import EditRequest, EditResult
    from doodl.library import edit, generate, invert
    from doodl.recipes.presets import preset
    from doodl.schedule import Schedule

__all__ = [
    "Aim",
    "EditRequest",
    "EditResult",
    "Schedule",
    "__version__",
    "edit",
    "generate",
    "generate_with_grad",
    "invert",
    "load_backbone",
    "load_editor",
    "preset",
]

# Where each of them lives; it is imported when it is first asked for, and torch with it.
_HOMES = {
    "Aim": "doodl.editing.objective",
    "EditRequest": "doodl.editing.requests",
    "EditResult": "doodl.editing.requests",
    "Schedule": "doodl.schedule",
    "edit": "doodl.library",
    "generate": "doodl.library",
    "generate_with_grad": "doodl.adjoint",
    "invert": "doodl.library",
    "load_backbone": "doodl.backbones",
    "load_editor": "doodl.editing.editor",
    "preset": "doodl.recipes.presets",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
