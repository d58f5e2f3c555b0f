"""One photo, one call: the edit, the inversion and a picture from words, for use in a program.

For many photos load an editor once (`load_editor`), or leave it to the command line, which goes on
after a kill and never computes a photo twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from doodl.editing.editor import PhotoEditor, load_editor
from doodl.editing.inverter import InvertRequest, InvertResult, PhotoInverter, load_inverter
from doodl.editing.objective import Aim
from doodl.editing.requests import EditRequest, EditResult
from doodl.errors import DoodlError
from doodl.generation import GenerateRequest, GenerateResult, ImageGenerator, load_generator
from doodl.guidance.guidance import GuideRow
from doodl.guidance.spec import parse_guides
from doodl.images import Photo, decode_photo
from doodl.recipes.presets import preset

Result = TypeVar("Result")

PhotoSource = bytes | str | Path | Photo
"""A photo file's bytes or path, or a photo that is decoded already."""


def edit(
    photo: PhotoSource,
    direction: str = "up",
    *,
    target: float | None = None,
    guides: Sequence[str] = (),
    strength: float = 1.0,
    prompt: str = "",
    seed: int = 0,
    editor: PhotoEditor | None = None,
) -> EditResult:
    """Return the edit of one photo; `result.encoded` holds its file in the photo's own format.

    Args:
        direction: up | down | target, the last with a `target` score.
        guides: what is optimised in place of the aesthetic score, as 'text:"a sunny day"=1'.
        strength: share of the change that is delivered, in [0, 1].
        prompt: what the photo shows, for the denoiser; may be empty.
        editor: loaded models, from `load_editor`; the shipped pocket model's if there is none.
    Raises: DoodlError if the photo cannot be read or edited; ValueError for what makes no sense.
    """
    if editor is None:
        editor = load_editor("pocket", preset("pocket"), guides=guides)
    elif guides:
        raise ValueError("guides belong to the editor; give them to load_editor.")
    request = EditRequest(
        _decoded(photo), Aim(direction, target), seed, prompt=prompt, strength=strength
    )
    return _only(editor.edit([request]))


def invert(
    photo: PhotoSource, *, prompt: str = "", inverter: PhotoInverter | None = None
) -> InvertResult:
    """Return a photo's exact noise, `result.latents`, and what comes back of it.

    Args:
        inverter: the loaded model, from `editing.inverter.load_inverter`; else the pocket model.
    Raises: DoodlError if the photo cannot be read or inverted.
    """
    inverter = inverter or load_inverter("pocket", preset("pocket"))
    return _only(inverter.invert([InvertRequest(_decoded(photo), prompt)]))


def generate(
    prompt: str,
    *,
    guides: Sequence[str] = ("text=1",),
    negative_prompt: str = "",
    seed: int = 0,
    size_px: tuple[int, int] | None = None,
    generator: ImageGenerator | None = None,
) -> GenerateResult:
    """Return a picture of a prompt, its noise optimised for the guides; `result.encoded` is a PNG.

    Args:
        guides: as `edit`'s; the prompt's own words by default, () for a plain sample.
        size_px: (height, width), multiples of the model's `size_multiple`; the recipe's by default.
        generator: the loaded models, from `doodl.generation.load_generator`; else the pocket model.
    Raises: DoodlError if the picture cannot be made; ValueError on a guide that cannot be read.
    """
    generator = generator or load_generator("pocket", preset("pocket-text"))
    height_px, width_px = size_px or (generator.config.working_px,) * 2
    request = GenerateRequest(
        prompt, seed, height_px, width_px, negative_prompt, parse_guides(guides), GuideRow(prompt)
    )
    return _only(generator.generate([request]))


def _decoded(photo: PhotoSource) -> Photo:
    if isinstance(photo, Photo):
        return photo
    return decode_photo(photo if isinstance(photo, bytes) else Path(photo).read_bytes())


def _only(results: list[Result | DoodlError]) -> Result:
    (result,) = results
    if isinstance(result, DoodlError):
        raise result
    return result
