"""What is recorded of a run as a whole: how it began and how it ended."""

from __future__ import annotations

import dataclasses
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from manifests.storage import Storage
from pipeline.hardware import device_name
from pipeline.metrics import RunMetrics
from pipeline.observers import Broadcast
from pipeline.plan import RunChoice
from pipeline.runlog import RunLog
from pipeline.spec import JobSpec, version

if TYPE_CHECKING:
    from pipeline.run import RunSummary


class Recording:
    """A run's log and meters: nothing before `begin`, for the folder may be another job's."""

    def __init__(self, observer: Broadcast, summary: RunSummary) -> None:
        self._observer, self._summary = observer, summary
        self._started = time.monotonic()
        self._log: RunLog | None = None

    def begin(self, storage: Storage, spec: JobSpec, choice: RunChoice, fingerprint: str) -> None:
        """Open the log and say what is being run."""
        self._log = RunLog(storage, self._summary.run_id)
        self._observer.recorders += [self._log, RunMetrics(Path(spec.out).name)]
        chosen = dataclasses.asdict(choice)
        self._observer.event(
            "started", version=version(), task=spec.task, model=spec.model,
            model_revision=spec.model_revision, params_fingerprint=fingerprint,
            device=spec.device, device_name=device_name(spec.device), runner=spec.runner,
            workers=spec.num_workers, batch_size=spec.batch_size or "auto",
            node=socket.gethostname(), pid=os.getpid(),
            choice={k: v for k, v in chosen.items() if v not in (None, False, ())},
        )  # fmt: skip

    @contextmanager
    def until_end(self) -> Iterator[None]:
        """Say how the body ends, in order or not, and close the log."""
        try:
            yield
        except SystemExit as end:  # a signal before there was a plan
            self._observer.event(
                "finished", exit_code=end.code, seconds=self._seconds(),
                stopped_by="stopped while the photos were being read",
            )  # fmt: skip
            raise
        except BaseException as error:
            self._observer.event(
                "crashed", error_type=type(error).__name__, error=str(error),
                seconds=self._seconds(),
            )  # fmt: skip
            raise
        else:
            summary = self._summary
            summary.seconds = self._seconds()
            self._observer.event(
                "finished", exit_code=summary.exit_code, seconds=summary.seconds,
                computed=summary.computed, copied=summary.copied, rows=summary.statuses,
                counts=summary.counts, stopped_by=summary.stopped_by,
            )  # fmt: skip
        finally:
            if self._log is not None:
                self._log.close()

    def _seconds(self) -> float:
        return round(time.monotonic() - self._started, 3)
