"""One driver at a time, and none held up by a dead one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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


@pytest.fixture
def held(tmp_path: Path):
    """A folder somebody has, and a function that ages what its holder says of itself."""
    note = tmp_path / "_state" / "driver.json"

    def age(**facts: Any) -> Path:
        holder = json.loads(note.read_text())
        if (hours := facts.pop("silent_hours", None)) is not None:
            beat = datetime.now(UTC) - timedelta(hours=hours)
            holder["heartbeat_at"] = beat.isoformat(timespec="seconds")
        note.write_text(json.dumps({k: v for k, v in (holder | facts).items() if v is not None}))
        return tmp_path

    with OutputFolder(tmp_path).lock(heartbeat_timeout_seconds=7200.0):
        yield age


def kept_out(folder: Path, if_running: str) -> OutputLockedError:
    with (
        pytest.raises(OutputLockedError) as error,
        OutputFolder(folder).lock(if_running=if_running),  # type: ignore[arg-type]
    ):
        pass
    return error.value


@pytest.mark.parametrize("if_running", ["skip", "fail", "wait"])
def test_a_holder_silent_for_longer_than_it_may_hangs(held, if_running) -> None:
    error = kept_out(held(silent_hours=5.0), if_running)
    assert error.hangs
    assert f"pid {os.getpid()}" in str(error)
    assert "last sign of life 5 h ago); none for over 2 h: it hangs; end its process" in str(error)


@pytest.mark.parametrize(("hours", "told"), [(0.5, "30 min ago"), (1.9, "114 min ago")])
def test_a_holder_at_work_is_told_with_its_last_sign_of_life(held, hours, told) -> None:
    error = kept_out(held(silent_hours=hours), "skip")
    assert not error.hangs
    assert f"last sign of life {told}); wait for it" in str(error)


@pytest.mark.parametrize(
    "facts",
    [
        {"heartbeat_at": None, "heartbeat_timeout_seconds": None},  # of the version before
        {"heartbeat_at": "yesterday"},
        {"heartbeat_timeout_seconds": None, "silent_hours": 5.0},
        {"heartbeat_timeout_seconds": "long", "silent_hours": 5.0},
        {"silent_hours": 5.0, "pid": 2**22 + 1},  # left by a dead one: the holder's is to come
    ],
)
def test_a_note_that_tells_no_time_makes_nobody_hang(held, facts) -> None:
    assert not kept_out(held(**facts), "skip").hangs


def test_a_folder_whose_holder_hangs_is_refused_before_it_is_locked(held) -> None:
    folder = held(silent_hours=1.0)
    OutputFolder(folder).refuse_hanging("skip")
    held(silent_hours=3.0)
    with pytest.raises(OutputLockedError, match="it hangs") as error:
        OutputFolder(folder).refuse_hanging("skip")
    assert error.value.hangs


def test_a_sign_of_life_is_written_at_most_once_a_minute(tmp_path: Path, monkeypatch) -> None:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(
        "manifests.locks.time", SimpleNamespace(time=lambda: clock.now, monotonic=time.monotonic)
    )
    said = iter("abcdefgh")
    monkeypatch.setattr("manifests.locks.utc_now", lambda: next(said))
    folder = OutputFolder(tmp_path)
    note = tmp_path / "_state" / "driver.json"
    seen = []
    folder.beat()  # nobody's driver: nothing is written
    assert not note.exists()
    with folder.lock():
        # The last one: a machine that slept and whose clock is put right.
        for now in (1000.0, 1059.0, 1060.0, 1061.0, 1119.0, 1120.0, 500.0):
            clock.now = now
            folder.beat()
            seen.append(json.loads(note.read_text())["heartbeat_at"])
    assert seen == ["a", "a", "b", "b", "b", "c", "d"]
    assert not note.exists()
