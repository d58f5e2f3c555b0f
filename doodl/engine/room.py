"""How many photos fit in memory together, from what autograd keeps of one of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from doodl.editing.editor import PhotoEditor
from doodl.editing.methods import Slot
from doodl.engine.network_call import activation_bytes, saved_bytes
from doodl.engine.sampling import sampler_of
from doodl.engine.stream import Arrival
from doodl.optimise import LatentState
from doodl.recipes.config import parse_memory

MARGIN = 1.5
"""Over what is kept: gradients on the way back, and what a layer needs while it works. On the CPU
a photo of the pocket model adds 0.90 to 0.95 of what is kept to the peak of live tensors, at 64 and
at 128 px; an accelerator's kernels want more room."""

_CUDA_SHARE = 0.85  # of what is free: an allocator cannot use all of it
_CPU_SHARE = 0.5  # the machine has other things to hold, the photos themselves among them
_MEMORY = Path("/proc/meminfo")
_LIMITS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory"))


class FittingRoom:
    """Says how many photos of a frame's size fit in the memory there is: a `stream.Room`.

    Each frame's size is measured once, by one call of the network and one loss of a photo.

    Args:
        free_bytes: what photos at work may take. limit: never more than so many.
    Attributes:
        latest: what it said last; 1 before.
    """

    def __init__(self, editor: PhotoEditor, free_bytes: int, limit: int) -> None:
        self.editor, self.free_bytes, self.limit = editor, free_bytes, limit
        self.latest = 1
        self._sizes: dict[tuple[int, ...], int] = {}

    def __call__(self, arrival: Arrival) -> int:
        shape = tuple(arrival.view.shape)
        if shape not in self._sizes:
            self._sizes[shape] = photo_bytes(self.editor, arrival)
        mode, budget = parse_memory(self.editor.config.sampler.memory)
        # The budget is for all photos at work together.
        free = self.free_bytes - (budget if mode == "budget" else 0)
        fit = int(free / (MARGIN * max(self._sizes[shape], 1)))
        self.latest = max(1, min(fit, self.limit))
        return self.latest


def photo_bytes(editor: PhotoEditor, arrival: Arrival) -> int:
    """Return the most bytes that autograd keeps of one photo at a time.

    Those of one call of the network, or of the decode and the loss, whose way back ends before the
    calls' begins; where the recipe keeps all calls, of everything. What a budget keeps is not
    counted: it has its own bound.
    """
    latents = editor.backbone.encode(arrival.view)
    state = LatentState.start(latents[0], latents[0], seed=0)
    way, problem = editor.together(
        [Slot(arrival.place, arrival.request, arrival.view, arrival.view, state)]
    )
    schedule, sampler = problem.schedule, editor.config.sampler
    call = activation_bytes(way.predictor, latents, schedule.timesteps[-1].to(latents.device))
    leaf = latents.detach().requires_grad_()
    networks = (editor.backbone.vae, *editor.guidance.networks())
    loss = saved_bytes(
        lambda: problem.judge(problem.decode(leaf), [state.generator]).loss, networks
    )
    if editor.config.optimiser.decode_pair:
        loss *= 2
    if sampler.memory != "full":
        return max(call, loss)
    calls = sum(move.num_calls for move in sampler_of(schedule, sampler, latents))
    return calls * call + loss


def free_bytes(device: torch.device, *, share: float = 1.0) -> int:
    """Return the bytes that the photos at work of one process may take.

    Args:
        share: the process's part of the device, in (0, 1]: of an accelerator's memory that it may
            take in all, of the machine's memory that is free.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_allocated(device)
        # What the allocator holds and does not use is free to it too.
        unused = torch.cuda.memory_reserved(device) - held
        return int(_CUDA_SHARE * max(0, min(free + unused, int(share * total) - held)))
    return int(_CPU_SHARE * share * available_bytes(_MEMORY, _LIMITS))


def available_bytes(memory: Path, limits: Sequence[Path]) -> int:
    """Return the machine's memory that is free, or what is left of a container's; 0 if unknown."""
    try:
        lines = [line.split() for line in memory.read_text().splitlines()]
        found = [int(words[1]) * 1024 for words in lines if words[0] == "MemAvailable:"]
    except (OSError, ValueError, IndexError):
        return 0
    for folder in limits:
        for limit, used in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            try:
                found.append(int((folder / limit).read_text()) - int((folder / used).read_text()))
            except (OSError, ValueError):  # no such file, or "max"
                continue
    return max(0, min(found, default=0))
