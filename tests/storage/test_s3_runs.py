"""Whole runs on S3-compatible storage: real Ray, killed drivers, two drivers and the lease."""

import json
import time
from contextlib import suppress

import boto3
import pytest

from manifests.lease import lease_holder
from manifests.storage import open_storage
from pipeline.spec import make_spec
from pipeline.verify import verify_output
from tests.clusters import kill_marked
from tests.faults.harness import Run, running, wait_until
from tests.photos import jpeg
from tests.storage.test_s3 import keys, table_of

pytestmark = pytest.mark.slow


@pytest.fixture
def s3(bucket, server):
    return boto3.client("s3", endpoint_url=server["AWS_ENDPOINT_URL"])


def job(s3, bucket, count, **options):
    for i in range(count):
        s3.put_object(Bucket=bucket, Key=f"photos/p{i:03d}.jpg", Body=jpeg(i, (32, 40)))
    return make_spec(
        f"s3://{bucket}/photos", editor="tests.fakes:load_editor", num_workers=2, **options
    )


def sound(s3, bucket, spec, count):
    table = table_of(s3, bucket)
    assert len(table) == count
    assert table.index.is_unique
    assert (table["status"] == "ok").all()
    assert not set(verify_output(spec.out).counts()) - {"orphaned"}


def test_a_job_runs_on_ray_and_a_second_night_computes_nothing(s3, bucket, server, tmp_path):
    spec = job(s3, bucket, 12)
    with running(spec, tmp_path) as run:
        assert run.wait() == 0, run.output
        assert "no report" not in run.output  # --no-report was asked for
    sound(s3, bucket, spec, 12)
    with running(spec, tmp_path) as run:
        assert run.wait() == 0, run.output
        assert "0 computed" in run.output
    for key in keys(s3, bucket, "photos-doodl/"):
        body = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        assert server["AWS_SECRET_ACCESS_KEY"].encode() not in body, key


def photos_there(s3, bucket):
    return len(keys(s3, bucket, "photos-doodl/edited/"))


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_a_killed_driver_is_resumed_at_once_here_and_after_the_lease_elsewhere(
    s3, bucket, tmp_path, where
):
    spec = job(s3, bucket, 40)
    first = Run(spec, tmp_path, DOODL_LEASE_SECONDS="10")
    try:
        wait_until(lambda: photos_there(s3, bucket) >= 4, "photos", run=first)
        first.kill()
        kill_marked(first.mark)
        if where == "elsewhere":
            _move_holder(s3, bucket)
        begun = time.monotonic()
        with running(spec, tmp_path, DOODL_LEASE_SECONDS="10") as second:
            code = second.wait()
        if where == "elsewhere":
            assert code == 5, second.output
            assert "A killed one lets go after" in second.output
            wait_until(lambda: _free(spec), "the lease's end", 60)
            assert time.monotonic() - begun < 60
            with running(spec, tmp_path, DOODL_LEASE_SECONDS="10") as third:
                assert third.wait() == 0, third.output
        else:
            assert code == 0, second.output
        print(f"resumed {where} after {time.monotonic() - begun:.1f} s")
    finally:
        first.clean()
    sound(s3, bucket, spec, 40)


def _move_holder(s3, bucket):
    """Let the newest lease be that of another machine, whose processes cannot be seen from here."""
    key = keys(s3, bucket, "photos-doodl/_state/lease/")[-1]
    record = json.loads(s3.get_object(Bucket=bucket, Key=key)["Body"].read())
    record |= {"host": "elsewhere", "boot": "another"}
    s3.put_object(Bucket=bucket, Key=key, Body=json.dumps(record).encode())


def _free(spec):
    from manifests.errors import OutputLockedError
    from manifests.lease import driver_lease

    with suppress(OutputLockedError), driver_lease(open_storage(spec.out), ttl_seconds=10.0):
        return True
    time.sleep(1.0)
    return False


def test_of_two_drivers_at_once_one_leaves_and_nothing_is_done_twice(s3, bucket, tmp_path):
    spec = job(s3, bucket, 20)
    with running(spec, tmp_path) as first, running(spec, tmp_path) as second:
        codes = sorted([first.wait(), second.wait()])
    assert codes == [0, 5], first.output + second.output
    sound(s3, bucket, spec, 20)
    assert len((tmp_path / "edits.log").read_text().splitlines()) == 20
    assert lease_holder(open_storage(spec.out)) is None


def test_a_driver_that_slept_past_its_lease_stops_and_the_other_finishes(s3, bucket, tmp_path):
    spec = job(s3, bucket, 40)
    with running(spec, tmp_path, DOODL_LEASE_SECONDS="4") as first:
        wait_until(lambda: photos_there(s3, bucket) >= 4, "photos", run=first)
        first.process.send_signal(19)  # SIGSTOP
        _move_holder(s3, bucket)
        wait_until(lambda: _free(spec), "the lease's end", 60)
        with running(spec, tmp_path, DOODL_LEASE_SECONDS="4") as second:
            wait_until(lambda: lease_holder(open_storage(spec.out)), "the second", run=second)
            first.process.send_signal(18)  # SIGCONT
            assert second.wait() == 0, second.output
        assert first.wait() == 5, first.output
        assert "lost the output's lease" in first.output
    sound(s3, bucket, spec, 40)
