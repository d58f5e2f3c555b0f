"""The training loop that every pocket network shares: budget, schedule, averages, checkpoints."""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Average", "Budget", "Checkpointed", "LoopReport", "autocast", "run_loop", "warm_cosine"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Budget:
    """When a training ends: after `iterations` if given, else after `minutes` of work.

    On a CPU the minutes are the process's own processor time (one thread), so that a busy machine
    trains as far as an idle one; on an accelerator they are the clock's.
    A training is reproducible from its seed only under `iterations`: under `minutes` the learning
    rate follows the clock.
    """

    minutes: float = 10.0
    iterations: int | None = None

    def progress(self, step: int, elapsed_seconds: float) -> float:
        """How much of the budget is spent, in [0, 1]."""
        if self.iterations is not None:
            return min(1.0, step / max(1, self.iterations))
        return min(1.0, elapsed_seconds / max(1e-9, self.minutes * 60))


@dataclass
class LoopReport:
    """What a training did: iterations, minutes of work, and the last smoothed losses."""

    iterations: int = 0
    minutes: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpointed:
    """Where a training keeps its state, and everything whose state_dict belongs to it."""

    path: Path
    parts: Mapping[str, Any]

    def save(self, report: LoopReport) -> None:
        """Write the checkpoint beside its place and move it there, so that a kill loses nothing."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state: dict[str, Any] = {name: part.state_dict() for name, part in self.parts.items()}
        state["report"] = json.dumps(vars(report))
        scratch = self.path.with_suffix(".tmp")
        torch.save(state, scratch)
        scratch.replace(self.path)

    def load(self) -> LoopReport:
        """The report of the checkpoint, its parts restored; an empty report if there is none."""
        if not self.path.is_file():
            return LoopReport()
        state = torch.load(self.path, weights_only=True, map_location="cpu")
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        return LoopReport(**json.loads(state["report"]))


class Average:
    """An exponential moving average of a network's floating-point state."""

    def __init__(self, network: nn.Module, decay: float = 0.998) -> None:
        self.decay = decay
        self.values = {name: value.detach().clone() for name, value in self._state(network)}

    @staticmethod
    def _state(network: nn.Module) -> list[tuple[str, Tensor]]:
        return list(network.state_dict().items())

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Move the average toward the network; early steps move it faster."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in self._state(network):
            if value.dtype.is_floating_point:
                self.values[name].lerp_(value, 1 - decay)
            else:
                self.values[name].copy_(value)

    def copy_to(self, network: nn.Module) -> None:
        """Give the network the averaged values."""
        network.load_state_dict(self.values)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged values."""
        return self.values

    def load_state_dict(self, values: Mapping[str, Tensor]) -> None:
        """Take averaged values from a checkpoint."""
        for name, value in values.items():
            self.values[name].copy_(value)


def warm_cosine(progress: float, *, warm: float = 0.03, floor: float = 0.02) -> float:
    """A learning-rate factor: linear warm-up, then a cosine down to `floor`."""
    if progress < warm:
        return (progress + 0.1 * warm) / (1.1 * warm)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (progress - warm) / (1 - warm)))


def autocast(device: torch.device) -> Any:
    """bfloat16 arithmetic where the device has it natively, else nothing."""
    native = device.type == "cuda"
    if device.type == "cpu":
        flags = Path("/proc/cpuinfo")
        native = flags.is_file() and "avx512_bf16" in flags.read_text()
    return torch.autocast(device.type, torch.bfloat16) if native else nullcontext()


def run_loop(
    step_fn: Callable[[int, float], tuple[Tensor, dict[str, float]]],
    optimizer: torch.optim.Optimizer,
    budget: Budget,
    checkpoint: Checkpointed,
    *,
    averages: Mapping[str, tuple[Average, nn.Module]] | None = None,
    checkpoint_seconds: float = 60.0,
    on_cpu: bool = False,
) -> LoopReport:
    """Train until the budget is spent, from the checkpoint on if there is one.

    Args:
        step_fn: (step, progress in [0, 1]) -> (loss, numbers to log). It must draw its random
            numbers from generators seeded by `step`, so that a resumed training goes on alike.
        averages: kept after every step; their state must be among the checkpoint's parts.
        on_cpu: count the budget's minutes in processor time of one thread.
    """
    report = checkpoint.load()
    base_rates = [group.setdefault("base_lr", group["lr"]) for group in optimizer.param_groups]
    weights = [w for group in optimizer.param_groups for w in group["params"]]

    def worked() -> float:
        return time.process_time() / torch.get_num_threads() if on_cpu else time.monotonic()

    started = worked() - report.minutes * 60
    saved = logged = time.monotonic()
    while (progress := budget.progress(report.iterations, worked() - started)) < 1:
        for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
            group["lr"] = rate * warm_cosine(progress)
        loss, numbers = step_fn(report.iterations, progress)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(weights, 1.0)
        if torch.isfinite(norm):
            optimizer.step()
        report.iterations += 1
        for average, network in (averages or {}).values():
            average.update(network, report.iterations)
        for name, value in {"loss": float(loss.detach()), **numbers}.items():
            keep = min(0.98, 1 - 1 / report.iterations)
            report.losses[name] = keep * report.losses.get(name, value) + (1 - keep) * value
        now = time.monotonic()
        report.minutes = (worked() - started) / 60
        if now - logged > 15:
            logged = now
            shown = " ".join(f"{name}={value:.4f}" for name, value in report.losses.items())
            logger.info("%5d %3.0f%% %s", report.iterations, 100 * progress, shown)
        if now - saved > checkpoint_seconds:
            saved = now
            checkpoint.save(report)
    checkpoint.save(report)
    return report
