"""WS-DAN: Inception-v3 features under bilinear attention pooling, in its published layouts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from doodl.errors import ModelError
from doodl.models.weights import check_finite, load_tensors, one_line

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# torchvision's Inception-v3 in the order of its forward pass; None is a 3x3 max pool of stride 2.
_TO_MIXED_6E: tuple[str | None, ...] = (
    "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", None, "Conv2d_3b_1x1", "Conv2d_4a_3x3",
    None, "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d",
    "Mixed_6e",
)  # fmt: skip
_TO_MIXED_7C = (*_TO_MIXED_6E, "Mixed_7a", "Mixed_7b", "Mixed_7c")

_EPSILON = 1e-6
"""Under the pooled features' root. The papers' 1e-12 gives gradients up to 5e5 at small features;
the released DOODL code guides with this one, and so do we."""

_SCALE = 100.0
"""Of the normalised features before the last layer, in both published networks."""


def attention_pool(features: Tensor, attentions: Tensor) -> Tensor:
    """Return bilinear attention pooling (B, M * C): signed roots, each image's of unit L2 norm.

    Args:
        features: (B, C, h, w). attentions: (B, M, h, w).
    Source: WS-DAN (arXiv:1901.09891), eq. 2-4, with the normalisation of its code.
    """
    area = features.shape[-1] * features.shape[-2]
    pooled = torch.einsum("bmhw,bchw->bmc", attentions, features).flatten(1) / area
    return F.normalize(pooled.sign() * (pooled.abs() + _EPSILON).sqrt(), dim=1)


class SequentialWSDAN(nn.Module):
    """The layout of WS-DAN.PyTorch: `features.N.*`, `attentions.{conv,bn}.*`, `fc.*`.

    Images (B, 3, H, W) normalised as ImageNet's -> logits (B, C).
    """

    def __init__(self, names: tuple[str | None, ...], channels: int, maps: int, classes: int):
        super().__init__()
        from torchvision.models.inception import BasicConv2d

        self.features = nn.Sequential(*_inception_layers(names))
        self.attentions = BasicConv2d(channels, maps, kernel_size=1)
        self.fc = nn.Linear(channels * maps, classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.features(images)
        return self.fc(attention_pool(features, self.attentions(features)) * _SCALE)


class NamedWSDAN(nn.Module):
    """The layout of WS_DAN_PyTorch, which the DOODL paper used: Inception's own names, `fc_new`.

    The attention maps are the first M channels of Mixed_7a's first branch, of which nothing else
    is used. Images (B, 3, H, W) in [-1, 1] -> logits (B, C).
    """

    def __init__(self, maps: int, classes: int) -> None:
        super().__init__()
        for name, layer in zip(_TO_MIXED_6E, _inception_layers(_TO_MIXED_6E), strict=True):
            if name is not None:
                self.add_module(name, layer)
        (self.Mixed_7a,) = _inception_layers(("Mixed_7a",))
        self.fc_new = nn.Linear(768 * maps, classes)
        self.maps = maps

    def forward(self, images: Tensor) -> Tensor:
        features = images
        for name in _TO_MIXED_6E:
            if name is None:
                features = F.max_pool2d(features, 3, stride=2)
            else:
                features = self.get_submodule(name)(features)
        first_branch = self.get_submodule("Mixed_7a.branch3x3_1")
        attentions = first_branch(features)[:, : self.maps]
        return self.fc_new(attention_pool(features, attentions) * _SCALE)


def _inception_layers(names: tuple[str | None, ...]) -> list[nn.Module]:
    from torchvision.models import Inception3

    network = Inception3(num_classes=1, aux_logits=False, init_weights=False)
    return [nn.MaxPool2d(3, stride=2) if name is None else getattr(network, name) for name in names]


def is_wsdan(state: Mapping[str, Tensor]) -> bool:
    """Return whether tensors are of one of the two layouts."""
    sequential = "attentions.conv.weight" in state and "fc.weight" in state
    return sequential or ("fc_new.weight" in state and "Mixed_6e.branch1x1.conv.weight" in state)


def build_wsdan(
    state: Mapping[str, Tensor], place: str | Path = "WS-DAN checkpoint"
) -> tuple[nn.Module, int, tuple, tuple]:
    """Return (network, input side in px, mean, std) of the tensors of a checkpoint file.

    Raises: ModelError if they are not those of an Inception-v3 WS-DAN.
    """
    # On the meta device: the checkpoint's own tensors become the network's, nothing is drawn.
    with torch.device("meta"):
        if "fc_new.weight" in state:
            classes, width = _matrix(state, "fc_new.weight")
            network: nn.Module = NamedWSDAN(width // 768, classes)
            # Its code turns ImageNet's normalisation into this one before the first layer.
            size, mean, std = 512, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
        else:
            classes, _ = _matrix(state, "fc.weight")
            maps, channels = state["attentions.conv.weight"].shape[:2]
            names = {768: _TO_MIXED_6E, 2048: _TO_MIXED_7C}.get(channels)
            if names is None:
                raise ModelError(
                    f"WS-DAN checkpoint: attention over {channels} features; only Inception-v3's "
                    "768 (Mixed_6e) and 2048 (Mixed_7c) are known."
                )
            network = SequentialWSDAN(names, channels, maps, classes)
            size, mean, std = 448, IMAGENET_MEAN, IMAGENET_STD
    given = {name: tensor.float() for name, tensor in state.items() if not _unused(name)}
    try:
        load_tensors(network, given, "its file", assign=True)
    except (ModelError, RuntimeError) as error:
        raise ModelError(f"{place} does not fit Inception-v3: {one_line(error)}") from error
    check_finite(place, network.state_dict())
    return network, size, mean, std


def _matrix(state: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    shape = tuple(state[name].shape)
    if len(shape) != 2:
        raise ModelError(f"WS-DAN checkpoint: {name} is {shape}, want (classes, features).")
    return shape


def _unused(name: str) -> bool:
    """Return whether a tensor is of a part that inference does not use."""
    return name.startswith(("AuxLogits.", "center", "bap."))
