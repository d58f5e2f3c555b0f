"""CLIP towers through open_clip: images in [-1, 1] and texts to normalised embeddings."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from doodl.errors import ModelError
from doodl.models.configs import check_configs
from doodl.models.tower_files import TOWER_CONFIG, tower_weights
from doodl.models.weights import check_finite, check_whole, one_line

_LOAD_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
    TypeError,
    EOFError,
    SafetensorError,
    pickle.UnpicklingError,
)
"""What open_clip raises on a missing, cut-off or foreign config or weights file."""

_POSITIONS = ("positional_embedding", "pos_embed")
_HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def clamp_straight_through(image: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Return image clamped to [low, high] with the gradient of the identity.

    A hard clamp has no gradient outside the range, so a blown pixel could never come back.
    """
    return image + (image.clamp(low, high) - image).detach()


class TowerName(NamedTuple):
    """An open_clip model and the tag of its published weights."""

    model: str
    tag: str


# The LAION aesthetic heads sit on OpenAI's weights, which were trained with quick GELU.
OPENAI_B32 = TowerName("ViT-B-32-quickgelu", "openai")
OPENAI_B16 = TowerName("ViT-B-16-quickgelu", "openai")
OPENAI_L14 = TowerName("ViT-L-14-quickgelu", "openai")
LAION_B32 = TowerName("ViT-B-32", "laion2b_s34b_b79k")
LAION_L14 = TowerName("ViT-L-14", "laion2b_s32b_b82k")
LAION_G14 = TowerName("ViT-g-14", "laion2b_s12b_b42k")


class ImageNetwork(nn.Module):
    """A network that sees images at its own size and under its own normalisation.

    Attributes:
        size_px: side of the square that it takes.
        mean, std: (1, 3, 1, 1), of images in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        size_px: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        interpolation: str = "bicubic",
    ) -> None:
        super().__init__()
        self.interpolation = interpolation
        self.size_px = size_px
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def resize(self, images: Tensor) -> Tensor:
        """Return images at the network's input size, as it was trained to see them.

        The whole frame is squeezed to the square: a centre crop would hide the borders.
        """
        if images.shape[-2:] != (self.size_px, self.size_px):
            images = F.interpolate(
                images, (self.size_px, self.size_px), mode=self.interpolation, antialias=True
            )
        return images

    def prepare(self, images: Tensor) -> Tensor:
        """Return images (B, 3, H, W) in [-1, 1] as the network takes them; differentiable."""
        images = self.resize(clamp_straight_through(images / 2 + 0.5))
        return (images - self.mean) / self.std


class ImageTower(ImageNetwork):
    """A frozen CLIP with its own input size and normalisation, of images and of texts.

    `tower(images (B, 3, H, W) in [-1, 1]) -> (B, D)`, rows of unit L2 norm; differentiable.
    """

    def __init__(
        self,
        clip: Any,
        size_px: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        interpolation: str = "bicubic",
        name: str = "",
    ) -> None:
        super().__init__(size_px, mean, std, interpolation)
        self.clip = clip.eval().requires_grad_(False)
        self.name = name
        self._tokenizer: Any = None

    @property
    def dtype(self) -> torch.dtype:
        return next(self.clip.parameters()).dtype

    @property
    def embedding_size(self) -> int:
        """D, measured on one black frame: open_clip's classes name it in different ways."""
        with torch.no_grad():
            frame = torch.zeros(1, 3, self.size_px, self.size_px, device=self.mean.device)
            return int(self(frame).shape[1])

    def forward(self, images: Tensor) -> Tensor:
        images = self.prepare(images)
        embeddings = self.clip.encode_image(images.to(self.dtype)).float()
        return F.normalize(embeddings, dim=-1)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings (N, D) of texts, rows of unit L2 norm; long texts are cut off.

        Raises: ModelError if the tower's tokenizer is not to be had.
        """
        if self._tokenizer is None:
            self._tokenizer = _load_tokenizer(self.name)
        tokens = self._tokenizer(list(texts)).to(self.mean.device)
        return F.normalize(self.clip.encode_text(tokens).float(), dim=-1)


def _load_tokenizer(name: str) -> Any:
    import open_clip

    try:
        return open_clip.get_tokenizer(name)
    except _LOAD_ERRORS as error:
        raise ModelError(f"the tokenizer of {name} cannot be loaded: {error}") from error


def load_tower(
    model: str | Path | TowerName,
    *,
    pretrained: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> ImageTower:
    """Load an open_clip model as a tower; nothing is downloaded.

    Args:
        model: a folder with open_clip_config.json and weights, an open_clip model name, or a name
            with its tag.
        pretrained: for a model name: open_clip's tag or a local weights file.
    Raises: ModelError if it cannot be loaded, if a tag's weights have not been pulled, or if the
        activation does not match the weights (open_clip 3.3 only warns, through `warnings.warn`,
        and the scores come out wrong; use the `-quickgelu` name).
    """
    import open_clip

    if isinstance(model, TowerName):
        model, pretrained = model
    folder = Path(model)
    name, weights = str(model), None
    if folder.is_dir():
        name, weights = f"local-dir:{folder}", _checked_weights(folder)
    elif pretrained is None:
        raise ModelError(
            f"tower {name} is no folder, and names no weights; give an open_clip folder, or "
            f"{name}:TAG with the tag of its published weights."
        )
    else:
        _check_tag(name, pretrained)
        weights = Path(pretrained) if Path(pretrained).is_file() else None
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            clip = open_clip.create_model(
                name, pretrained=pretrained, precision="fp32", require_pretrained=True
            )
        if weights is not None:
            _check_shapes(clip, weights)
    except _LOAD_ERRORS as error:
        raise ModelError(f"open_clip model {model} cannot be loaded: {one_line(error)}") from error
    check_finite(model if weights is None else weights, clip.state_dict())
    mismatches = [str(w.message) for w in caught if "QuickGELU" in str(w.message)]
    if mismatches:
        raise _activation_mismatch(name, str(pretrained), mismatches[0])
    visual = clip.visual
    size = visual.image_size[0] if isinstance(visual.image_size, tuple) else visual.image_size
    config = getattr(visual, "preprocess_cfg", {}) or {}
    mean = config.get("mean", getattr(visual, "image_mean", None) or open_clip.OPENAI_DATASET_MEAN)
    std = config.get("std", getattr(visual, "image_std", None) or open_clip.OPENAI_DATASET_STD)
    interpolation = config.get("interpolation", "bicubic")
    tower = ImageTower(clip.to(dtype), int(size), tuple(mean), tuple(std), interpolation, name)
    return tower.to(device)


def _checked_weights(folder: Path) -> Path:
    """Return the weights file of a folder, once its configs are known to be harmless.

    Raises: ModelError if a config asks to run code or to fetch, or if there are no weights.
    """
    check_configs(folder)
    weights = tower_weights(folder)
    if weights is None:
        # open_clip only warns, and makes a tower of random numbers.
        raise ModelError(
            f"{folder} holds {TOWER_CONFIG} and no weights; put open_clip_model.safetensors there."
        )
    return weights


def _check_shapes(clip: Any, weights: Path) -> None:
    """Raise ModelError if a tensor of a file is of another shape than the tower's.

    open_clip refuses all others itself, and resizes embeddings of positions without a word.
    """
    from open_clip.factory import load_state_dict

    if weights.suffix in (".npz", ".npy"):  # big_vision's, which open_clip converts
        return
    own = clip.state_dict()
    if weights.suffix == ".safetensors":
        with safe_open(weights, "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    else:
        shapes = {name: list(t.shape) for name, t in load_state_dict(str(weights)).items()}
    check_whole(
        weights,
        mismatched=[
            name
            for name, shape in shapes.items()
            if name in own and name.endswith(_POSITIONS) and list(own[name].shape) != shape
        ],
    )


def _activation_mismatch(model: str, tag: str, why: str) -> ModelError:
    plain = model.removesuffix("-quickgelu")
    use = plain if plain != model else f"{model}-quickgelu"
    return ModelError(f"{model} with pretrained={tag!r}: {why} Use {use}.")


def _check_tag(model: str, tag: str) -> None:
    """Raise ModelError before anything large is built, if a tag cannot give the right weights.

    The activations are compared as open_clip compares them to warn; without the weights it would
    fail on their absence and never say so.
    """
    import open_clip
    from huggingface_hub import try_to_load_from_cache

    published = open_clip.get_pretrained_cfg(model, tag)
    if not published:  # a local weights file, or a name that open_clip itself will refuse
        return
    config = open_clip.get_model_config(model) or {}
    trained, built = (bool(part.get("quick_gelu")) for part in (published, config))
    if trained != built:
        raise _activation_mismatch(
            model, tag, f"QuickGELU mismatch (weights: {trained}, model: {built})."
        )
    repository, _, filename = str(published.get("hf_hub", "")).rpartition("/")
    files = (filename,) if filename else _HUB_FILES
    if repository and not any(
        isinstance(try_to_load_from_cache(repository, file), str) for file in files
    ):
        raise ModelError(
            f"the weights of {model} ({tag}) have not been pulled; `hf download {repository}` "
            "puts them into the cache (HF_HOME is honoured)."
        )
