"""Whether Ray's daemons answer: what is lost, what may come back, and calls that never return."""

import errno
import socket
import threading
from types import SimpleNamespace

import pytest

from manifests.deadline import DeadlineError, within
from pipeline.liveness import UNREACHABLE_SECONDS, Daemon, Watch


@pytest.fixture
def clock(monkeypatch):
    """The watch's clock, which stands unless a test moves it."""
    at = SimpleNamespace(now=100.0)
    monkeypatch.setattr("pipeline.liveness.time", SimpleNamespace(monotonic=lambda: at.now))
    return at


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def watched(listener, patience_seconds=0.0):
    return Daemon("Ray's raylet", *listener.getsockname(), patience_seconds)


def test_a_daemon_whose_port_is_closed_is_lost_at_once_and_stays_lost(listener, clock):
    watch = Watch([watched(listener)])
    address = listener.getsockname()
    assert watch.lost(now=True) is None
    assert watch.answering
    listener.close()
    assert watch.lost() is None  # looked a moment ago
    clock.now += 1.0
    line = f"Ray's raylet no longer answers at 127.0.0.1:{address[1]}"
    assert watch.lost() == line
    with socket.create_server(address):
        assert watch.lost(now=True) == line
    assert not watch.answering


def test_one_that_somebody_may_start_again_gets_its_time(listener, clock):
    address = listener.getsockname()
    watch = Watch([watched(listener, patience_seconds=30.0)])
    listener.close()
    assert watch.lost(now=True) is None
    assert not watch.answering  # so nobody calls it meanwhile
    clock.now += 29.0
    assert watch.lost() is None
    with socket.create_server(address):
        assert watch.lost(now=True) is None
        assert watch.answering
    clock.now += 29.0
    assert watch.lost() is None  # its time begins anew
    clock.now += 30.0
    assert "no longer answers" in watch.lost()


@pytest.mark.parametrize("problem", [TimeoutError(), OSError(errno.EHOSTUNREACH, "no route")])
def test_one_out_of_reach_gets_time_whoever_it_is(monkeypatch, clock, problem):
    def fail(*_):
        raise problem

    monkeypatch.setattr(socket, "create_connection", fail)
    watch = Watch([Daemon("the cluster's GCS", "10.0.0.1", 6379)])
    assert watch.lost() is None
    clock.now += UNREACHABLE_SECONDS
    assert watch.lost() == "the cluster's GCS no longer answers at 10.0.0.1:6379"


def test_a_driver_out_of_files_blames_no_daemon(monkeypatch, clock):
    def fail(*_):
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(socket, "create_connection", fail)
    watch = Watch([Daemon("Ray's raylet", "127.0.0.1", 1)])
    for _ in range(3):
        assert watch.lost(now=True) is None
        clock.now += UNREACHABLE_SECONDS
    assert watch.answering


def test_a_folder_that_was_deleted_is_a_loss(tmp_path, clock):
    folder = tmp_path / "sockets"
    folder.mkdir()
    watch = Watch([], folder)
    assert watch.lost(now=True) is None
    folder.rmdir()
    assert watch.lost(now=True) == f"Ray's folder {folder} was deleted"


def test_a_call_gives_what_it_gives_and_one_that_never_returns_is_left():
    assert within(10.0, lambda: 7) == 7
    with pytest.raises(KeyError):
        within(10.0, lambda: {}["none"])
    with pytest.raises(TimeoutError):  # its own, which is no want of an answer
        within(10.0, _time_out)
    with pytest.raises(DeadlineError, match=r"no answer within 0\.05 s"):
        within(0.05, threading.Event().wait)


def _time_out():
    raise TimeoutError
