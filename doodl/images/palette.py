"""Pictures of few colours."""

import numpy as np
from PIL import Image

_PALETTE_COLOURS = 256


def with_palette(image: Image.Image, *, required: bool) -> Image.Image:
    """Return the picture with a palette if its colours fit one exactly, or if it must (GIF)."""
    values = np.asarray(image)
    if required and image.mode == "RGBA":  # in a GIF a pixel is either clear or opaque
        clear = values[:, :, 3:] < 128
        values = np.where(clear, 0, values | np.array([0, 0, 0, 255], np.uint8))
    codes = values.astype(np.uint32) @ (256 ** np.arange(values.shape[2], dtype=np.uint32))
    colours, index = np.unique(codes, return_inverse=True)
    if len(colours) <= _PALETTE_COLOURS:
        palette = colours.astype("<u4").view(np.uint8).reshape(-1, 4)[:, : values.shape[2]]
        exact = Image.fromarray(index.reshape(codes.shape).astype(np.uint8))
        exact.putpalette(palette[:, :3].tobytes())
        if image.mode == "RGBA":
            opacity = palette[:, 3].tobytes()
            exact.info["transparency"] = opacity.find(b"\0") if required else opacity
        return exact
    if not required:
        return image
    opaque = Image.fromarray(values[:, :, :3])
    limit = _PALETTE_COLOURS - (image.mode == "RGBA")
    chosen = opaque.quantize(limit, Image.Quantize.MEDIANCUT)
    dithered = opaque.quantize(palette=chosen, dither=Image.Dither.FLOYDSTEINBERG)
    if image.mode != "RGBA":
        return dithered
    marked = Image.fromarray(np.where(values[:, :, 3] == 0, limit, np.asarray(dithered)))
    marked.putpalette(dithered.getpalette() or [])
    marked.info["transparency"] = limit
    return marked
