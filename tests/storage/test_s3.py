"""S3-compatible storage, end to end against a local server: photos, output, state."""

import io

import boto3
import pandas as pd
import pytest

from manifests.commits import OutputFolder
from manifests.hashes import hash_inputs
from manifests.remote import filesystem_of
from manifests.scan_remote import scan_remote
from pipeline.collection import OutputView
from pipeline.run import run_job
from pipeline.spec import make_spec
from pipeline.verify import verify_output
from tests.fakes import LOG
from tests.photos import jpeg


@pytest.fixture
def s3(bucket, server):
    return boto3.client("s3", endpoint_url=server["AWS_ENDPOINT_URL"])


def upload(s3, bucket, count, prefix="photos"):
    for i in range(count):
        folder = "sub dir/" if i % 2 else ""
        s3.put_object(Bucket=bucket, Key=f"{prefix}/{folder}p{i:03d}#ä.jpg", Body=jpeg(i))


def spec_of(place, out=None, **options):
    return make_spec(place, out, runner="inline", editor="tests.fakes:load_editor", **options)


def keys(s3, bucket, prefix=""):
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return [one["Key"] for page in pages for one in page.get("Contents", ())]


def table_of(s3, bucket, prefix="photos-doodl/results/"):
    parts = [key for key in keys(s3, bucket, prefix) if key.endswith(".parquet")]
    bodies = [s3.get_object(Bucket=bucket, Key=key)["Body"].read() for key in parts]
    return pd.concat([pd.read_parquet(io.BytesIO(body)) for body in bodies]).set_index("row_id")


def test_a_collection_in_a_bucket_is_edited_into_it_and_a_second_night_does_nothing(
    s3, bucket, tmp_path, monkeypatch
):
    log = tmp_path / "edits.log"
    monkeypatch.setenv(LOG, str(log))
    upload(s3, bucket, 4)
    s3.put_object(Bucket=bucket, Key="photos/broken.jpg", Body=b"no photo")
    spec = spec_of(f"s3://{bucket}/photos")
    assert spec.out == f"s3://{bucket}/photos-doodl"
    summary = run_job(spec)
    assert (summary.exit_code, summary.counts["ok"], summary.counts["failed"]) == (3, 4, 1)
    table = table_of(s3, bucket)
    assert sorted(table.index) == sorted(
        k.removeprefix("photos/") for k in keys(s3, bucket, "photos/")
    )
    delivered = keys(s3, bucket, "photos-doodl/edited/")
    assert f"photos-doodl/{table.loc['p000#ä.jpg', 'edited_uri']}" in delivered
    assert verify_output(spec.out).findings == []
    # A new night: one photo more, one changed.
    s3.put_object(Bucket=bucket, Key="photos/new.jpg", Body=jpeg(50))
    s3.put_object(Bucket=bucket, Key="photos/p000#ä.jpg", Body=jpeg(51))
    assert run_job(spec).computed == 2
    assert run_job(spec).computed == 0
    assert len(log.read_text().splitlines()) == 6
    assert len(table_of(s3, bucket)) == 6
    assert OutputView(spec.out).counts() == {
        "ok": 5, "rejected": 0, "skipped": 0, "failed": 1, "pending": 0,
    }  # fmt: skip
    assert OutputView(spec.out).running() is None


def test_what_verify_finds_in_a_bucket_is_put_right(s3, bucket):
    upload(s3, bucket, 2)
    spec = spec_of(f"s3://{bucket}/photos")
    run_job(spec)
    s3.delete_object(Bucket=bucket, Key="photos-doodl/edited/p000#ä.jpg")
    s3.put_object(Bucket=bucket, Key="photos-doodl/edited/sub dir/p001#ä.jpg", Body=b"?")
    assert verify_output(spec.out).counts() == {"missing": 1, "changed": 1}
    from pipeline.repair import repair_output

    assert len(repair_output(spec.out, verify_output(spec.out)).restored) == 2
    assert verify_output(spec.out).findings == []


def test_an_output_inside_the_photos_prefix_is_not_taken_for_photos(s3, bucket):
    upload(s3, bucket, 2)
    spec = spec_of(f"s3://{bucket}/photos", f"s3://{bucket}/photos/out")
    run_job(spec)
    assert scan_remote(f"s3://{bucket}/photos").num_rows == 2
    assert run_job(spec).computed == 0


@pytest.mark.parametrize("name", ["manifest.parquet", "manifest.csv"])
def test_a_manifest_in_a_bucket_names_photos_beside_it(s3, bucket, name):
    upload(s3, bucket, 2, prefix="set")
    frame = pd.DataFrame({"image_uri": ["p000#ä.jpg", f"s3://{bucket}/set/sub dir/p001#ä.jpg"]})
    body = frame.to_csv(index=False).encode() if name.endswith("csv") else frame.to_parquet()
    s3.put_object(Bucket=bucket, Key=f"set/{name}", Body=body)
    spec = spec_of(f"s3://{bucket}/set/{name}")
    assert run_job(spec).counts["ok"] == 2
    assert spec.out == f"s3://{bucket}/set/manifest-doodl"
    assert sorted(table_of(s3, bucket, "set/manifest-doodl/results/").index) == [
        "p000#ä.jpg", "sub dir/p001#ä.jpg",
    ]  # fmt: skip


def test_photos_kept_inside_a_manifest_in_a_bucket_are_read_there(s3, bucket):
    frame = pd.DataFrame({"row_id": ["a.jpg", "b.jpg"], "image": [jpeg(1), jpeg(2)]})
    s3.put_object(Bucket=bucket, Key="m.parquet", Body=frame.to_parquet())
    spec = spec_of(f"s3://{bucket}/m.parquet")
    assert run_job(spec).counts["ok"] == 2


def test_photos_of_a_bucket_that_did_not_change_are_not_read_again(s3, bucket):
    upload(s3, bucket, 3)
    storage = OutputFolder(f"s3://{bucket}/out").storage
    first = hash_inputs(scan_remote(f"s3://{bucket}/photos"), storage)
    for key in keys(s3, bucket, "photos/"):
        assert filesystem_of(f"s3://{bucket}/{key}")[1] == f"{bucket}/{key}"
    assert first["image_hash"].null_count == 0


def test_a_bucket_that_is_not_there_is_one_line(s3, server):
    from manifests.errors import ManifestError

    with pytest.raises(ManifestError, match="s3://no-such-bucket/photos"):
        run_job(spec_of("s3://no-such-bucket/photos"))
