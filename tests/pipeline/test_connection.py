"""Starting a private Ray: what a busy machine costs, and what a broken one says."""

import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from pipeline.connection import JobRay, PrivateRay
from pipeline.errors import UnusableEnvironmentError
from tests.clusters import free_ports


def failing(monkeypatch, *errors):
    """Let ray.init raise these errors, one a call, and then do nothing; return the calls."""
    calls, left = [], list(errors)

    def init(**options):
        calls.append(options)
        if left:
            raise left.pop(0)

    monkeypatch.setattr(ray, "init", init)
    return calls


def test_a_node_that_starts_too_slowly_is_started_again(monkeypatch):
    slow = Exception("The current node timed out during startup.")
    calls = failing(monkeypatch, slow, slow)
    here = Path.cwd()
    PrivateRay(1).close()
    assert len(calls) == 3
    assert Path.cwd() == here


@pytest.mark.parametrize(
    ("errors", "tries"),
    [([Exception("timed out during startup")] * 3, 3), ([OSError("no shared memory")], 1)],
)
def test_a_ray_that_cannot_start_is_one_line_and_exit_6(monkeypatch, errors, tries):
    calls = failing(monkeypatch, *errors)
    here = Path.cwd()
    with pytest.raises(UnusableEnvironmentError, match="--runner inline") as caught:
        PrivateRay(1)
    assert caught.value.exit_code == 6
    assert len(calls) == tries
    assert Path.cwd() == here


@pytest.fixture
def hanging(monkeypatch):
    """A Ray whose shutdown never returns."""
    failing(monkeypatch)
    private = PrivateRay(1)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "shutdown", threading.Event().wait)
    monkeypatch.setattr("pipeline.connection._SHUTDOWN_SECONDS", 0.05)
    return private


def test_a_ray_that_does_not_end_is_left_and_not_waited_for_at_exit(hanging, monkeypatch):
    unregistered = []
    monkeypatch.setattr("atexit.unregister", unregistered.append)
    here = Path.cwd()
    hanging.close()
    assert unregistered == [ray.shutdown]
    assert Path.cwd() != here


def test_a_ray_that_does_not_end_is_not_started_again(hanging):
    with pytest.raises(UnusableEnvironmentError, match="does not end"):
        hanging.begin_again()
    hanging.close()


@pytest.fixture
def connected(monkeypatch):
    """A Ray that tells of itself what a test puts here; the handler of SIGTERM it sets is its."""
    told = SimpleNamespace(node={"NodeID": "n"}, gcs_address=None, get_node_id=lambda: "n")

    def init(**_):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": "other"}, told.node])
    monkeypatch.setattr(ray, "get_runtime_context", lambda: told)
    return told


def lost_of(private):
    try:
        return private.watch.lost(now=True)
    finally:
        private.close()


def test_a_version_of_ray_that_tells_no_port_is_used_unwatched(connected):
    assert lost_of(PrivateRay(1)) is None


def test_what_ray_tells_of_its_daemons_is_watched(connected, tmp_path):
    (port,) = free_ports(1)
    connected.node |= {"NodeManagerAddress": "127.0.0.1", "NodeManagerPort": port}
    assert lost_of(PrivateRay(1)) == f"Ray's raylet no longer answers at 127.0.0.1:{port}"
    connected.node["NodeManagerPort"] = 0
    connected.gcs_address = f"127.0.0.1:{port}"
    assert lost_of(PrivateRay(1)) == f"Ray's GCS no longer answers at 127.0.0.1:{port}"
    connected.gcs_address = None
    connected.node["RayletSocketName"] = str(tmp_path / "gone" / "raylet")
    assert lost_of(PrivateRay(1)) == f"Ray's folder {tmp_path / 'gone'} was deleted"


def test_on_a_cluster_the_raylet_is_lost_at_once_and_the_gcs_gets_time(connected):
    (port,) = free_ports(1)
    connected.gcs_address = f"127.0.0.1:{port}"
    assert lost_of(JobRay()) is None
    connected.node |= {"NodeManagerAddress": "127.0.0.1", "NodeManagerPort": port}
    job = JobRay()
    assert "the cluster's raylet no longer answers" in job.watch.lost(now=True)
    with pytest.raises(UnusableEnvironmentError, match="to be mended"):
        job.begin_again()


@pytest.mark.parametrize("connect", [lambda: PrivateRay(1), JobRay])
def test_the_runs_own_handler_of_sigterm_stays(connected, connect):
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        connect().close()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_rays_own_lines_are_printed_but_the_log_of_a_dead_raylet(monkeypatch):
    printed = []
    monkeypatch.setattr(
        ray._private.worker, "print_to_stdstream", lambda data, **_: printed.append(data["lines"])
    )
    failing(monkeypatch)
    for _ in range(2):
        PrivateRay(1).close()
    say = ray._private.worker.print_to_stdstream
    say({"lines": ["1 worker killed for its memory"]}, ignore_prefix=False)
    say({"lines": ["Raylet is terminated. Last 20 lines:\n..."]}, ignore_prefix=False)
    assert printed == [["1 worker killed for its memory"]]
