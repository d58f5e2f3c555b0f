"""A cheap stand-in for the editor, where a test is about the pipeline and not about pixels."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from doodl.edit import EditResult
from doodl.images import encode_photo

LOG = "DOODL_TEST_LOG"
SECONDS = "DOODL_TEST_SECONDS"


class FakeEditor:
    """Inverts the photo's colours; a log file gets a line per edit, to count them."""

    def __init__(self, software: str) -> None:
        self.software = software

    def edit(self, requests, *, on_iteration=None):
        return [self._edit(request) for request in requests]

    def _edit(self, request):
        time.sleep(float(os.environ.get(SECONDS, "0")))
        if (log := os.environ.get(LOG)) is not None:
            with Path(log).open("a") as stream:
                stream.write(f"{request.seed}\n")
        if request.prompt == "kill the worker":
            os.kill(os.getpid(), signal.SIGKILL)
        if request.prompt == "fail":
            raise RuntimeError("asked to fail")
        return EditResult(
            encoded=encode_photo(request.photo, 255 - request.photo.pixels, software=self.software),
            status="ok",
            score_before=5.0,
            score_after=6.0 if request.aim.direction == "up" else 4.0,
            judge_before=5.0,
            judge_after=6.0,
            psnr_db=20.0,
            ssim=0.9,
            inversion_error=1e-6,
            num_optim_steps=3,
            stop_reason="steps",
            loss_curve=[1.0, 0.5],
        )


def load_editor(model, config, *, device="cpu", software="doodl-batch"):
    return FakeEditor(software)


def load_dying_editor(model, config, *, device="cpu", software="doodl-batch"):
    os.kill(os.getpid(), signal.SIGKILL)


class LoggingEditor:
    """The real editor; the log gets `seed iteration` for each iteration it makes."""

    def __init__(self, editor) -> None:
        self.editor = editor

    def edit(self, requests, *, on_iteration=None):
        def logged(index, state):
            with Path(os.environ[LOG]).open("a") as stream:
                stream.write(f"{requests[index].seed} {state.iteration}\n")
            if on_iteration is not None:
                on_iteration(index, state)

        return self.editor.edit(requests, on_iteration=logged)

    def scores(self, photo):
        return self.editor.scores(photo)


def load_logging_editor(model, config, *, device="cpu", software="doodl-batch"):
    from doodl import edit

    return LoggingEditor(edit.load_editor(model, config, device=device, software=software))
