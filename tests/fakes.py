"""A cheap stand-in for the editor, where a test is about the pipeline and not about pixels."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path

from doodl.editing.requests import EditResult
from doodl.images import encode_photo

LOG = "DOODL_TEST_LOG"
SECONDS = "DOODL_TEST_SECONDS"
DIE = "DOODL_TEST_DIE"


def _fail(editor):
    raise RuntimeError("asked to fail")


def _no_memory(editor):
    raise MemoryError


def _no_memory_after_others(editor):
    if editor.edits > 1:
        raise MemoryError


def _broken_device(editor):
    raise RuntimeError("CUDA error: device-side assert triggered")


def _segfault(editor):
    """What a decoder does that reads where it must not."""
    ctypes.string_at(0)


def _hang(editor):
    """Hold the interpreter's lock in C for ever: no signal handler of Python's own would run."""
    libc = ctypes.PyDLL(None)
    while True:
        libc.sleep(3600)


FAULTS = {
    "kill the worker": lambda editor: os.kill(os.getpid(), signal.SIGKILL),
    "fail": _fail,
    "no memory": _no_memory,
    "no memory after others": _no_memory_after_others,
    "broken device": _broken_device,
    "segfault": _segfault,
    "hang": _hang,
}


class FakeEditor:
    """Inverts the photo's colours; a log file gets a line per edit, to count them.

    A prompt may ask for a fault: see FAULTS.
    """

    def __init__(self, software: str) -> None:
        self.software = software
        self.edits = 0

    def edit(self, requests, *, on_iteration=None):
        if len(requests) > 1 and any(r.prompt == "large batch" for r in requests):
            raise MemoryError
        return [self._edit(request) for request in requests]

    def _edit(self, request):
        self.edits += 1
        time.sleep(float(os.environ.get(SECONDS, "0")))
        if (log := os.environ.get(LOG)) is not None:
            with Path(log).open("a") as stream:
                stream.write(f"{request.seed}\n")
        if (fault := FAULTS.get(request.prompt)) is not None:
            fault(self)
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


def load_editor_at_second_try(model, config, *, device="cpu", software="doodl-batch"):
    """Return the editor, but for the first time, when a file seems out of reach for a moment."""
    tried = Path(os.environ[LOG] + ".tried")
    if not tried.exists():
        tried.touch()
        raise FileNotFoundError(2, "No such file or directory")
    return FakeEditor(software)


def load_editor_slowly(model, config, *, device="cpu", software="doodl-batch"):
    Path(os.environ[LOG] + ".loading").touch()
    time.sleep(5.0)
    return FakeEditor(software)


class SlowEditor(FakeEditor):
    """Tells of 20 iterations of 0.1 s a photo; needs checkpoint_every=0, having no state."""

    def edit(self, requests, *, on_iteration=None):
        for index in range(len(requests)):
            for _ in range(20):
                time.sleep(0.1)
                on_iteration(index, None)
        return super().edit(requests)


def load_slow_editor(model, config, *, device="cpu", software="doodl-batch"):
    return SlowEditor(software)


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
    from doodl.editing import editor as edit

    return LoggingEditor(edit.load_editor(model, config, device=device, software=software))


class FakeGenerator:
    """Makes a picture of one colour, told by the seed; the log gets a line per picture."""

    def __init__(self, image_format: str) -> None:
        self.image_format = image_format

    def check_size(self, width_px, height_px): ...

    def generate(self, requests, *, on_iteration=None):
        return [self._generate(request) for request in requests]

    def _generate(self, request):
        import torch

        from doodl.errors import RequestError
        from doodl.generation.pictures import encode_picture
        from doodl.generation.requests import GenerateResult

        if (log := os.environ.get(LOG)) is not None:
            with Path(log).open("a") as stream:
                stream.write(f"{request.seed} {request.prompt}\n")
        if request.prompt == "fail":
            raise RuntimeError("asked to fail")
        if request.guide_row.label == "cactus":
            return RequestError("no class cactus; known are tulips and roses.")
        grey = torch.full((3, request.height_px, request.width_px), (request.seed % 7) / 7)

        def encoded(image):
            return encode_picture(image, self.image_format, software="fake", note="fake")

        flagged = request.prompt == "flag me"
        return GenerateResult(
            encoded=encoded(grey),
            unguided=encoded(-grey),
            status="rejected" if flagged else "ok",
            width_px=request.width_px,
            height_px=request.height_px,
            score_before=0.1,
            score_after=0.3,
            guide_values_before={str(guide): 0.1 for guide in request.guides},
            guide_values_after={str(guide): 0.3 for guide in request.guides},
            judge_before=0.2,
            judge_after=0.25,
            safety="flagged" if flagged else "passed",
            num_optim_steps=2,
            stop_reason="flagged" if flagged else "steps",
            loss_curve=[1.0, 0.5],
            rejection="the model's safety checker flagged the picture" if flagged else None,
        )


def load_generator(
    model,
    config,
    *,
    guides=(),
    device="cpu",
    safety_checker="auto",
    image_format="PNG",
    software="",
):
    return FakeGenerator(image_format)


class DyingGenerator:
    """The real generator; the log gets a line per iteration, and one picture is interrupted."""

    def __init__(self, generator) -> None:
        self.generator = generator
        self.check_size = generator.check_size

    def generate(self, requests, *, on_iteration=None):
        def logged(index, state):
            with Path(os.environ[LOG]).open("a") as stream:
                stream.write(f"{requests[index].seed} {state.iteration}\n")
            on_iteration(index, state)
            if DIE in os.environ and requests[index].seed == 1 and state.iteration == 2:
                raise KeyboardInterrupt

        return self.generator.generate(requests, on_iteration=logged)


def load_dying_generator(*arguments, **options):
    from doodl.generation import load_generator as load

    return DyingGenerator(load(*arguments, **options))
