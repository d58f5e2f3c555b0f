import pytest
import torch

from tests.benchmarks.cases import BASELINES, Case, gradient_of, relative_error
from tests.benchmarks.models import workload


def test_the_released_codes_layers_have_our_gradient():
    """What is timed side by side must be one and the same gradient."""
    pytest.importorskip("memcnn")
    load = workload("pocket", torch.device("cpu"), torch.float32)
    gradients = {
        (method, memory): [z.double().numpy() for z in gradient_of(Case(method, memory, 4), load)()]
        for method, memory in [
            *((method, "checkpoint") for method in BASELINES),
            *(("edict", memory) for memory in ("checkpoint", "invert", "full")),
        ]
    }
    want = gradients.pop((BASELINES[0], "checkpoint"))
    for got in gradients.values():
        assert relative_error(got, want) < 1e-5
    assert not any(weight.requires_grad for weight in load.unet.parameters())
