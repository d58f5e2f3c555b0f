"""What a plan will take: worker hours, time and money, and what the figures rest on."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifests.commits import OutputFolder
from manifests.identity import params_fingerprint
from manifests.ledger import ledger_runs, read_ledger
from manifests.plan import Plan
from manifests.schemas import DONE_STATUSES
from pipeline.hardware import count_devices, device_name
from pipeline.plan import work_items
from pipeline.spec import JobSpec
from pipeline.stages import DecodePhotos, EditPhotos

_ENOUGH_ROWS = 500


@dataclass(frozen=True)
class Calibration:
    """Measured seconds of a worker per photo.

    Attributes:
        seconds: one a photo. basis: where they come from, for a person.
        load_seconds: what loading the models took; None if it was not measured.
    """

    seconds: tuple[float, ...]
    basis: str
    load_seconds: float | None = None


@dataclass(frozen=True)
class Estimate:
    """What computing a number of rows will take.

    Attributes:
        rows, workers: to compute, by so many workers at a time.
        median_seconds, p90_seconds, mean_seconds: of one worker's time for one photo.
        worker_hours: rows × mean, as a total goes with the mean; GPU-hours on an accelerator.
            `worker_hours_p90`: were every photo as slow as the slowest tenth.
        eta_seconds: on the clock, loading included where it was measured.
        cost: worker_hours × the price of one; None without a price.
        basis: what it rests on. All but rows and workers are None if nothing is known.
    """

    rows: int
    workers: int
    basis: str
    median_seconds: float | None = None
    p90_seconds: float | None = None
    mean_seconds: float | None = None
    worker_hours: float | None = None
    worker_hours_p90: float | None = None
    eta_seconds: float | None = None
    cost: float | None = None


def estimate(
    rows: int,
    calibration: Calibration | None,
    *,
    workers: int,
    price_per_hour: float | None = None,
    why_unknown: str = "",
) -> Estimate:
    """Return the estimate of so many rows from measured seconds.

    Args:
        price_per_hour: of one worker's accelerator (or core), in any currency.
    """
    workers = max(1, min(workers, rows))
    if rows == 0:
        free = None if price_per_hour is None else 0.0
        return Estimate(0, workers, "nothing to compute", None, None, None, 0.0, 0.0, 0.0, free)
    if calibration is None:
        return Estimate(rows, workers, why_unknown)
    seconds = np.asarray(calibration.seconds)
    mean, p90 = float(seconds.mean()), float(np.quantile(seconds, 0.9))
    hours = rows * mean / 3600
    # No worker computes less than whole photos.
    eta = math.ceil(rows / workers) * mean + (calibration.load_seconds or 0.0)
    return Estimate(
        rows=rows,
        workers=workers,
        basis=calibration.basis,
        median_seconds=float(np.median(seconds)),
        p90_seconds=p90,
        mean_seconds=mean,
        worker_hours=hours,
        worker_hours_p90=rows * p90 / 3600,
        eta_seconds=eta,
        cost=None if price_per_hour is None else hours * price_per_hour,
    )


def workers_of(spec: JobSpec) -> int:
    """Return how many workers a run on this machine takes."""
    if spec.runner == "inline":
        return 1
    return spec.num_workers or count_devices(spec.device)


def from_ledger(spec: JobSpec, folders: Sequence[OutputFolder]) -> Calibration | None:
    """Return what earlier runs of this model on this kind of device took, None if none did.

    The newest attempts count, about _ENOUGH_ROWS of them. Attempts with the job's own options are
    preferred to those with others (a recipe of other steps takes another time).
    Args:
        folders: whose ledgers are read: the job's own, first, and any others.
    """
    device, fingerprint = device_name(spec.device), params_fingerprint(spec.params())
    others: list[float] = []
    for folder in folders:
        own: list[float] = []
        for run_id in reversed(ledger_runs(folder.storage)):
            mine, same = _seconds(read_ledger(folder.storage, run_id), spec, device, fingerprint)
            own += mine
            others += same
            if len(own) >= _ENOUGH_ROWS or len(others) >= 4 * _ENOUGH_ROWS:
                break
        if own:
            return Calibration(
                tuple(own), f"{len(own):,} photos of earlier runs with these options on {device}"
            )
    if others:
        return Calibration(
            tuple(others),
            f"{len(others):,} photos of earlier runs of {spec.model}, with other options, "
            f"on {device}",
        )
    return None


def _seconds(
    attempts: pa.Table, spec: JobSpec, device: str, fingerprint: str
) -> tuple[list[float], list[float]]:
    """Return worker seconds of (attempts with these options, those with others)."""
    finished = pc.is_in(attempts["state"], value_set=pa.array(DONE_STATUSES))
    alike = pc.and_(pc.equal(attempts["device"], device), pc.equal(attempts["model"], spec.model))
    usable = pc.and_(pc.and_(finished, alike), pc.is_valid(attempts["worker_seconds"]))
    attempts = attempts.filter(pc.fill_null(usable, False))
    own = pc.fill_null(pc.equal(attempts["params_fingerprint"], fingerprint), False)
    seconds = attempts["worker_seconds"]
    return seconds.filter(own).to_pylist(), seconds.filter(pc.invert(own)).to_pylist()


def probe(spec: JobSpec, plan: Plan, count: int) -> Calibration | None:
    """Edit a few photos of a plan in this process, keep nothing of them, and return the seconds.

    They are those of the middle of the plan by size. None if there is no photo to try, or none
    could be edited.
    Raises: ModelError if the model cannot be loaded.
    """
    todo = plan.to_compute()
    order = pc.sort_indices(todo, sort_keys=[("size_bytes", "ascending")])
    first = max(0, (len(order) - count) // 2)
    decode, edit = DecodePhotos(spec), EditPhotos(spec)
    started = time.monotonic()
    edit.setup()
    load_seconds = time.monotonic() - started
    seconds = []
    for item in work_items(todo.take(order.slice(first, count))):
        started = time.monotonic()
        try:
            results = edit(
                [item], [decode(item)], load_checkpoint=_no_checkpoint, save_checkpoint=_kept_not
            )
        except Exception:  # the row boundary; what there is to say of it, the run will say
            continue
        if not isinstance(results[0], Exception):
            seconds.append(time.monotonic() - started)
    if not seconds:
        return None
    noun = "photo" if len(seconds) == 1 else "photos"
    basis = f"{len(seconds)} {noun} measured just now on {device_name(spec.device)}"
    return Calibration(tuple(seconds), basis, load_seconds)


def _no_checkpoint(work_key: str) -> bytes | None:  # noqa: ARG001 (a probe begins anew)
    return None


def _kept_not(work_key: str, data: bytes) -> None: ...
