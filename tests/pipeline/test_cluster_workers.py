"""What a cluster's workers ask for, how many there is room for, and which refuse to start."""

import dataclasses
import pickle
import threading
from types import SimpleNamespace

import pytest

from pipeline.cluster import RayPool, _Slot, _Worker, worker_need
from pipeline.connection import capacity, num_gpus
from pipeline.errors import UnusableEnvironmentError
from pipeline.liveness import Watch
from pipeline.shared import MissingPathError
from pipeline.shipping import code_digest
from pipeline.spec import JobSpec, make_spec
from tests.photos import collection


def node(alive=True, **resources):
    return {"Alive": alive, "Resources": resources}


@pytest.fixture
def nodes(monkeypatch):
    found = []
    monkeypatch.setattr("ray.nodes", lambda: found)
    return found


def test_a_worker_asks_for_its_share_and_no_gpu_on_a_cpu():
    shared = JobSpec("/p", "/o", device="cuda", gpus_per_worker=0.5, resources={"a100": 1})
    assert worker_need(shared) == {"CPU": 1.0, "GPU": 0.5, "a100": 1}
    assert worker_need(dataclasses.replace(shared, device="cpu")) == {"CPU": 1.0, "a100": 1}


def test_room_is_counted_node_by_node_by_what_is_scarcest(nodes):
    nodes += [node(CPU=8, GPU=2), node(CPU=1, GPU=4), node(CPU=64), node(alive=False, CPU=8, GPU=8)]
    assert capacity({"CPU": 1, "GPU": 1}) == 3
    assert capacity({"CPU": 1, "GPU": 0.5}) == 5
    assert capacity({"CPU": 2, "GPU": 1}) == 2
    assert capacity({"CPU": 1, "a100": 1}) == 0
    # A fraction that binary numbers cannot say does not lose a worker.
    nodes[:] = [node(CPU=64, GPU=1)]
    assert capacity({"CPU": 1, "GPU": 0.1}) == 10
    assert capacity({"CPU": 1, "GPU": 1 / 3}) == 3


@pytest.mark.parametrize("ask", [lambda: capacity({"CPU": 1}), num_gpus])
def test_a_ray_that_never_answers_is_not_waited_for(monkeypatch, ask):
    monkeypatch.setattr("ray.nodes", threading.Event().wait)
    monkeypatch.setattr("ray.cluster_resources", threading.Event().wait)
    monkeypatch.setattr("pipeline.connection._ANSWER_SECONDS", 0.05)
    with pytest.raises(UnusableEnvironmentError, match="Ray does not answer") as caught:
        ask()
    assert caught.value.exit_code == 6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gpus_per_worker": 1.5}, "gpus_per_worker"),
        ({"gpus_per_worker": 0.0}, "gpus_per_worker"),
        ({"cpus_per_worker": -1.0}, "cpus_per_worker"),
        ({"cpus_per_worker": float("inf")}, "cpus_per_worker"),
        ({"resources": {"gpu": 1}}, "their own options"),
        ({"resources": {"a100": 0}}, "above zero"),
        ({"resources": {"a100": "1"}}, "above zero"),
        ({"resources": {"a100": True}}, "above zero"),
    ],
)
def test_shares_that_ray_cannot_give_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        JobSpec("/p", "/o", **options)


def test_what_workers_ask_for_does_not_change_the_job():
    spec = JobSpec("/p", "/o")
    other = JobSpec("/p", "/o", gpus_per_worker=0.5, cpus_per_worker=2.0, resources={"a": 1.0},
                    device="auto", runner="cluster")  # fmt: skip
    assert other.params() == spec.params()
    assert JobSpec.from_json(other.to_json()) == other


def test_a_worker_refuses_a_node_without_the_jobs_paths_and_one_with_other_code(tmp_path):
    photos = collection(tmp_path / "photos", 1)
    spec = make_spec(photos, runner="cluster", editor="tests.fakes:load_editor")
    with pytest.raises(MissingPathError, match="photos-doodl does not exist on the cluster's node"):
        _Worker(spec.to_json(), "f", {}, code_digest())
    (tmp_path / "photos-doodl").mkdir()
    with pytest.raises(UnusableEnvironmentError, match="runs other code of doodl-batch"):
        _Worker(spec.to_json(), "f", {}, "another digest")


def test_a_workers_complaint_reaches_the_driver_whole():
    error = MissingPathError("/a path", "node-7")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_worker_that_cannot_be_ended_means_that_ray_is_lost(monkeypatch):
    monkeypatch.setattr("ray.kill", lambda actor: threading.Event().wait())
    monkeypatch.setattr("pipeline.cluster._KILL_SECONDS", 0.05)
    ended = []
    watch = Watch([])
    pool = object.__new__(RayPool)
    pool._connection = SimpleNamespace(watch=watch, close=lambda: ended.append("ray"))
    pool._slots = [_Slot(None, None), _Slot(None, None)]
    monkeypatch.setattr(pool, "_kill_process", lambda slot: ended.append("process"))
    pool.close()  # the second is not asked for in vain
    assert watch.lost() == "Ray does not end a worker (no answer within 0.05 s)"
    assert ended == ["process", "ray"]
