"""One call of the noise predictor: its epsilon, the graph behind that, and the graph's size."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

PredictNoise = Callable[[Tensor, Tensor], Tensor]
"""`predict_noise(latents (B, C, h, w), t) -> epsilon (B, C, h, w)`, t a 0-d int64 tensor."""


def epsilon_of(predict_noise: PredictNoise, latents: Tensor, t: Tensor) -> Tensor:
    """Return epsilon in the latents' dtype: networks may run in bf16, a sampler's state may not."""
    return predict_noise(latents, t).to(latents.dtype)


def with_graph(predict_noise: PredictNoise, latents: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return the latents as a leaf, and their epsilon with the graph from it."""
    with torch.enable_grad():
        leaf = latents.detach().requires_grad_()
        return leaf, epsilon_of(predict_noise, leaf, t)


def activation_bytes(predict_noise: PredictNoise, latents: Tensor, t: Tensor) -> int:
    """Return the bytes autograd keeps for one call, each storage counted once, weights left out.

    Those of a network, or of the `unet` a predictor holds.
    """
    networks = (predict_noise, getattr(predict_noise, "unet", None))
    return saved_bytes(lambda: with_graph(predict_noise, latents, t), networks)


def saved_bytes(work: Callable[[], Any], networks: Iterable[Any]) -> int:
    """Return the bytes autograd keeps of work(), each storage counted once.

    Args:
        networks: the weights of those that are modules are left out.
    """
    # By storage: a linear layer saves its weight as a view, which is no Parameter.
    weights = {
        weight.untyped_storage().data_ptr()
        for network in networks
        if isinstance(network, torch.nn.Module)
        for weight in network.parameters()
    }
    storages: dict[int, int] = {}

    def record(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, torch.nn.Parameter) and storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        # Held in a name so that no storage is freed and its address counted for another.
        graph = work()
    del graph
    return sum(storages.values())


# Sizes, never tensors, and an entry goes with its predictor: a budget costs one call to measure for
# a predictor and a shape, not one in every iteration.
_measured: WeakKeyDictionary[Any, dict[tuple[Any, ...], int]] = WeakKeyDictionary()


def remembered_activation_bytes(predict_noise: PredictNoise, latents: Tensor, t: Tensor) -> int:
    """Return `activation_bytes`, measured once for a predictor and a shape."""
    key = (latents.shape, latents.dtype, latents.device)
    try:
        sizes = _measured.setdefault(predict_noise, {})
    except TypeError:  # neither hashable nor weakly referable: measured each time
        sizes = {}
    if key not in sizes:
        sizes[key] = activation_bytes(predict_noise, latents, t)
    return sizes[key]
