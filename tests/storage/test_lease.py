"""The lease on an object store: one driver at a time, whoever dies, sleeps or is cut off."""

import json
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest

from manifests.commits import OutputFolder
from manifests.errors import CommitError, LeaseLostError, OutputLockedError
from manifests.lease import LEASES, driver_lease, lease_holder
from manifests.lease_store import lease_store
from manifests.storage import ArrowStorage, open_storage

TTL = 2.0


@pytest.fixture
def storage(bucket):
    return open_storage(f"s3://{bucket}/out")


def test_create_succeeds_for_one_of_many(storage):
    store = lease_store(storage, LEASES)
    won = []
    threads = [
        threading.Thread(target=lambda i=i: won.append(store.create("x", b"%d" % i)))
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [False] * 7 + [True]
    data, age = store.read("x")
    assert data in {b"%d" % i for i in range(8)}
    assert 0 <= age < 60


def test_a_second_driver_leaves_by_policy_and_the_first_lets_go(storage):
    with driver_lease(storage, ttl_seconds=TTL) as lease:
        assert lease.epoch == 1
        for policy in ("fail", "skip"):
            with pytest.raises(OutputLockedError, match="pid") as caught:
                driver_lease(storage, if_running=policy, ttl_seconds=TTL).__enter__()
            assert caught.value.if_running == policy
        assert lease_holder(storage)["epoch"] == 1
        time.sleep(1.5 * TTL)  # it is renewed: still held
        lease.check()
        with pytest.raises(OutputLockedError):
            driver_lease(storage, ttl_seconds=TTL).__enter__()
    assert lease_holder(storage) is None
    with driver_lease(storage, ttl_seconds=TTL) as lease:  # at once
        assert lease.epoch == 2


def foreign(storage, **changes):
    """Leave the lease of a driver on another machine."""
    record = {"epoch": 1, "host": "elsewhere", "pid": 7, "ttl_seconds": TTL, **changes}
    data = json.dumps({**record, "released": False, "renewed_at": time.time()}).encode()
    lease_store(storage, LEASES).put("000000001.json", data)


def test_a_dead_driver_of_another_machine_keeps_others_out_for_its_time_to_live(storage):
    foreign(storage)
    begun = time.monotonic()
    with pytest.raises(OutputLockedError, match="host elsewhere"):
        driver_lease(storage, ttl_seconds=TTL).__enter__()
    with driver_lease(storage, if_running="wait", ttl_seconds=TTL) as lease:
        assert lease.epoch == 2
    # The server tells times in whole seconds.
    assert TTL - 1 <= time.monotonic() - begun < TTL + 20


def test_waiting_ends_at_its_timeout(storage):
    foreign(storage, ttl_seconds=3600)
    with pytest.raises(OutputLockedError):
        driver_lease(storage, if_running="wait", timeout_seconds=0.5, ttl_seconds=TTL).__enter__()


def test_a_driver_killed_on_this_machine_lets_go_at_once(storage, bucket):
    code = (
        "import os, signal\n"
        "from manifests.lease import driver_lease\n"
        "from manifests.storage import open_storage\n"
        f"with driver_lease(open_storage('s3://{bucket}/out'), ttl_seconds=3600):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], check=False)
    assert killed.returncode == -9
    with driver_lease(storage, ttl_seconds=TTL) as lease:
        assert lease.epoch == 2


def test_a_driver_that_slept_through_its_lease_writes_nothing_more(storage):
    folder = OutputFolder(storage)
    with folder.lock():
        folder.open_job({"task": "enhance", "params": {}})
        # Another took it over meanwhile, as it may once the time to live is over.
        assert lease_store(storage, LEASES).create("000000002.json", b"{}")
        holder = next(t for t in threading.enumerate() if t.name == "lease")
        holder_lease = holder._target.__self__
        holder_lease.renew()
        for write in (
            lambda: storage.write("results/part-000001.parquet", b"x"),
            lambda: storage.delete("_job.json"),
        ):
            with pytest.raises(LeaseLostError, match="lost the output's lease"):
                write()
    assert not storage.exists("results/part-000001.parquet")
    assert storage.exists("_job.json")


@pytest.mark.parametrize("left", [["000000003.json"], []])
def test_a_lease_whose_successors_came_and_went_is_lost(storage, left):
    store = lease_store(storage, LEASES)
    with driver_lease(storage, ttl_seconds=60) as lease:
        store.delete("000000001.json")  # as the driver of epoch 3 does
        for name in left:
            store.create(name, b"{}")
        lease.renew()
        with pytest.raises(LeaseLostError):
            lease.check()


def test_a_lease_that_cannot_be_renewed_counts_as_lost_before_others_may_take_it(storage):
    with driver_lease(storage, ttl_seconds=1.0) as lease:
        lease._ended.set()  # its thread renews no more: cut off from the store
        lease._thread.join()
        lease.check()
        time.sleep(0.9)
        with pytest.raises(LeaseLostError, match="not renewed"):
            lease.check()


def test_storage_without_a_conditional_create_is_refused(tmp_path):
    out = OutputFolder(ArrowStorage(f"file://{tmp_path}"))
    with pytest.raises(CommitError, match="no lease can be taken"), out.lock():
        pass


def silent_since(hours):
    beat = datetime.now(UTC) - timedelta(hours=hours)
    return {"heartbeat_at": beat.isoformat(), "heartbeat_timeout_seconds": 3600.0}


@pytest.mark.parametrize("policy", ["skip", "wait"])
def test_a_lease_renewed_for_a_driver_that_hangs_is_told(storage, policy):
    foreign(storage, ttl_seconds=3600, **silent_since(3))
    with pytest.raises(OutputLockedError, match=r"3 h ago.*it hangs") as caught:
        driver_lease(storage, if_running=policy, ttl_seconds=TTL).__enter__()
    assert caught.value.hangs
    with pytest.raises(OutputLockedError, match="it hangs"):
        OutputFolder(storage).refuse_hanging(policy)


@pytest.mark.parametrize("silent_hours", [None, 0.5])
def test_a_lease_of_a_driver_at_work_or_of_an_older_version_is_not(storage, silent_hours):
    foreign(storage, ttl_seconds=3600, **(silent_since(silent_hours) if silent_hours else {}))
    with pytest.raises(OutputLockedError, match="wait for it") as caught:
        driver_lease(storage, if_running="skip", ttl_seconds=TTL).__enter__()
    assert not caught.value.hangs
    OutputFolder(storage).refuse_hanging("skip")


def test_the_drivers_sign_of_life_goes_with_the_next_renewal_and_not_by_itself(
    storage, monkeypatch
):
    said = iter(["begun", "at work"])
    monkeypatch.setattr("manifests.locks.utc_now", lambda: next(said))
    monkeypatch.setattr("manifests.lease.utc_now", lambda: next(said))
    with driver_lease(storage, ttl_seconds=60) as lease:
        lease.renew()
        assert lease_holder(storage)["heartbeat_at"] == "begun"
        lease.beat()
        lease.renew()
        assert lease_holder(storage)["heartbeat_at"] == "at work"
