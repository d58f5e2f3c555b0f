"""One driver at a time, and none held up by a dead one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from manifests.commits import OutputFolder
from manifests.errors import CommitError, OutputLockedError

HOLD = """
import subprocess, sys, time
from manifests.commits import OutputFolder
with OutputFolder(sys.argv[1]).lock():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
    print(child.pid, flush=True)
    time.sleep(30)
"""


@pytest.mark.parametrize("if_running", ["fail", "skip"])
def test_second_driver_leaves_by_policy(tmp_path: Path, if_running) -> None:
    with OutputFolder(tmp_path).lock():
        began = time.monotonic()
        with (
            pytest.raises(OutputLockedError, match="another driver is running") as error,
            OutputFolder(tmp_path).lock(if_running=if_running),
        ):
            pass
        assert time.monotonic() - began < 1
        assert error.value.if_running == if_running
        assert error.value.holder["pid"] == os.getpid()


def test_waiting_driver_starts_when_the_first_ends(tmp_path: Path) -> None:
    entered = threading.Event()

    def first() -> None:
        with OutputFolder(tmp_path).lock():
            entered.set()
            time.sleep(0.3)

    thread = threading.Thread(target=first)
    thread.start()
    entered.wait()
    with (
        pytest.raises(OutputLockedError),
        OutputFolder(tmp_path).lock(if_running="wait", timeout_seconds=0.05),
    ):
        pass
    with OutputFolder(tmp_path).lock(if_running="wait", timeout_seconds=10):
        pass
    thread.join()


def test_killed_driver_frees_the_folder_at_once_though_its_children_live(tmp_path: Path) -> None:
    driver = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert driver.stdout is not None
    child = int(driver.stdout.readline())
    try:
        with pytest.raises(OutputLockedError), OutputFolder(tmp_path).lock():
            pass
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        os.kill(child, 0)  # it lives
        with OutputFolder(tmp_path).lock():
            pass
    finally:
        driver.kill()
        os.kill(child, signal.SIGKILL)
        driver.stdout.close()


def test_policy_that_is_none_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"if_running \(='perhaps'\)"),
        OutputFolder(tmp_path).lock(if_running="perhaps"),  # type: ignore[arg-type]
    ):
        pass


@pytest.mark.parametrize("act", ["recover", "compact"])
def test_only_the_driver_recovers_and_compacts(tmp_path: Path, act: str) -> None:
    with pytest.raises(CommitError, match=r"inside `with out.lock"):
        getattr(OutputFolder(tmp_path), act)()
