"""One row's address is one row's failure, whatever is wrong with it, and the night goes on."""

from __future__ import annotations

import json
import os

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import manifest as manifest_commands
from manifests import deadline, inline, remote
from manifests.errors import OutOfReachError
from manifests.rows import ManifestRow
from pipeline.generating import ReadSubjects
from pipeline.outcomes import WorkItem
from pipeline.plan import RunChoice
from pipeline.run import run_job
from pipeline.spec import make_spec
from tests.photos import jpeg
from tests.pipeline.conftest import results, spec_of
from tests.web_server import (
    drop,
    flood,
    silence,
    trickle_of_bytes,
    trickle_of_headers,
    web_serving,
    with_body,
)

PASSWORD = "pa55word"
SIGNATURE = "5ecretsignature"

MALFORMED = {
    "open bracket": "http://[::1",
    "port too high": f"http://u:{PASSWORD}@h:99999/a.jpg?sig={SIGNATURE}",
    "port of letters": "https://h:port/a.jpg",
    "no host": "http://",
    "host of dots": "http://a..b/a.jpg",
    "bad escape": "http://h/%zz.jpg",
    "control character": "http://h/a\nb.jpg",
    "no bucket": "s3://",
    "empty bucket": "s3:///x",
    "odd bucket": "s3://b\x01/x",
    "user in a bucket": f"s3://key:{PASSWORD}@bucket/a.jpg",
    "another machine": "file://host/x.jpg",
    "NUL in a file": "file:///a%00b.jpg",
    "unknown scheme": "gopher://x/y",
    "unknown scheme with a user": f"nosuch://u:{PASSWORD}@x/y?token={SIGNATURE}",
    "data": "data:image/png;base64,iVBORw0KGgo=",
    "magnet": "magnet:?xt=urn:btih:c12fe1c06bba254a9dc9f519b335aa7c1367a88a",
    "no repository": "hf://",
    "host with a space": "http://exa mple/x",
    "this machine": "local:///etc/hosts",
    "folder of fsspec": "dir://x",
    "chain": "simplecache::file:///etc/hosts",
    "chain to a path": "zip://a.jpg::/etc/hosts",
    "one letter": "x://",
    "space in a scheme": "a b://c",
}
MISUNDERSTOOD = {
    "client wants more": "github://x/y",
    "nobody listens": f"http://u:{PASSWORD}@127.0.0.1:1/a.jpg?sig={SIGNATURE}",
    "nobody listens to ftp": "ftp://127.0.0.1:1/a.jpg",
    "gone": "gone.jpg",
    "too long": "a" * 5000,
}
ANSWERS = {
    "not found": 404,
    "forbidden": 403,
    "overloaded": 503,
    "dropped": drop,
    "cut off": with_body(jpeg(5), 10**6),
    "web page": with_body(b"<!doctype html><p>log in", kind="text/html; charset=utf-8"),
    "no photo": with_body(b"nothing to see"),
    "round in circles": "/round%20in%20circles",
    "endless": flood,
    "too large": with_body(b"x", 2**40),
}
SLOW = {
    "silent": silence,
    "a byte at a time": trickle_of_bytes,
    "a header for ever": trickle_of_headers,
}
LATER = (
    "nobody listens", "nobody listens to ftp", "overloaded", "dropped", "cut off",
    "silent", "a byte at a time", "a header for ever",
)  # fmt: skip


def be_hasty(patch):
    """Make the limits of every address small."""
    patch.setattr(deadline, "LIMITS", deadline.Limits(10.0, 1.0, 4.0))
    patch.setattr(remote, "MAX_INPUT_BYTES", 10**6)


@pytest.fixture
def hasty(monkeypatch):
    be_hasty(monkeypatch)


def uri_of(web, name, answer):
    path = web.uri("/" + name.replace(" ", "%20"), answer)
    return f"{path}?X-Amz-Signature={SIGNATURE}"


def write_manifest(folder, web, answers):
    """Write a manifest of everything that can be wrong, and two good photos."""
    (folder / "good.jpg").write_bytes(jpeg(1))
    rows = {"good": "good.jpg", **MALFORMED, **MISUNDERSTOOD}
    rows |= {name: uri_of(web, name, answer) for name, answer in answers.items()}
    rows["good on the web"] = uri_of(web, "photo.jpg", jpeg(2))
    path = folder / "manifest.parquet"
    pq.write_table(pa.table({"row_id": list(rows), "image_uri": list(rows.values())}), path)
    return path


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    """What one run makes of all of them: (summary, results, lines said)."""
    folder = tmp_path_factory.mktemp("night")
    said = []

    class Heard:
        def message(self, text):
            said.append(text)

        def start(self, total): ...

        def row(self, row_id, status, detail): ...

    with web_serving() as web, pytest.MonkeyPatch.context() as patch:
        be_hasty(patch)
        spec = spec_of(write_manifest(folder, web, ANSWERS | SLOW))
        summary = run_job(spec, observer=Heard())
    return summary, results(spec), said


def check_row(row):
    assert row["status"] == "failed"
    message = row["error_message"]
    assert message.isprintable()
    assert len(message) <= 500
    for word in (PASSWORD, SIGNATURE, "Traceback", 'File "'):
        assert word not in message
    for word in (PASSWORD, SIGNATURE):
        assert word not in str(row["image_uri"])


def test_the_good_rows_are_done_and_the_run_ends_in_order(night):
    summary, table, said = night
    assert summary.exit_code == 3
    assert table.query("status == 'ok'").index.tolist() == ["good", "good on the web"]
    assert summary.counts["failed"] == len(table) - 2 >= 20
    assert PASSWORD not in "".join(said)
    assert SIGNATURE not in "".join(said)


@pytest.mark.parametrize("name", [*MALFORMED, *MISUNDERSTOOD, *ANSWERS, *SLOW])
def test_each_bad_address_is_its_rows_failure(night, name):
    _, table, said = night
    row = table.loc[name]
    check_row(row)
    local = {"gone": "FileNotFoundError", "too long": "OSError", "no photo": "UnreadablePhotoError"}
    wanted = local.get(name, "OutOfReachError" if name in LATER else "AddressError")
    assert row["error_type"] == wanted
    if name not in local:
        scheme = {**MALFORMED, **MISUNDERSTOOD}.get(name, "http:").partition(":")[0]
        assert f"{scheme}:" in row["error_message"]
        assert f"failed: {name}: {row['error_message']}" in said


def test_a_ray_run_goes_on_past_bad_addresses_too(tmp_path, hasty):
    with web_serving() as web:
        answers = ANSWERS | SLOW | {"gone when a worker reads it": [jpeg(3), 503]}
        path = write_manifest(tmp_path, web, answers)
        spec = make_spec(path, editor="tests.fakes:load_editor", num_workers=1, runner="local")
        summary = run_job(spec)
    table = results(spec)
    assert summary.exit_code == 3
    assert table.query("status == 'ok'").index.tolist() == ["good", "good on the web"]
    bad = table.drop(index=["good", "good on the web"])
    assert set(bad.index) == {*MALFORMED, *MISUNDERSTOOD, *answers}
    for _, row in bad.iterrows():
        check_row(row)
    late = bad.loc["gone when a worker reads it"]
    assert late["error_type"] == "OutOfReachError"
    assert "HTTP 503 Service Unavailable" in late["error_message"]


def test_check_names_what_is_wrong_as_written_and_asks_nobody(tmp_path, capsys):
    with web_serving() as web:
        path = write_manifest(tmp_path, web, ANSWERS)
        assert manifest_commands.check(path, as_json=True) == 3
        found = json.loads(capsys.readouterr().out)["invalid"]
        assert {row["row_id"] for row in found} == set(MALFORMED)
        assert all(row["error"].isprintable() for row in found)
        assert PASSWORD not in json.dumps(found)
        assert manifest_commands.check(path, as_json=False) == 3
        assert "gopher://" in capsys.readouterr().out
        assert web.asked == []


@pytest.mark.parametrize(
    "answer", [503, 429, 204, drop, silence, with_body(b"\xff\xd8", 100), 404, 403,
               with_body(b"<html>back soon", kind="text/html")]
)  # fmt: skip
def test_a_web_photo_out_of_reach_for_a_night_keeps_its_result(tmp_path, edits, hasty, answer):
    path = tmp_path / "m.parquet"
    with web_serving() as web:
        uris = [web.uri("/a.jpg", jpeg(1)), web.uri("/b.jpg", jpeg(2))]
        pq.write_table(pa.table({"image_uri": uris}), path)
        spec = spec_of(path)
        run_job(spec)
        before = results(spec)
        web.answers["/a.jpg"] = answer
        summary = run_job(spec)
        assert summary.exit_code == 3
        assert (summary.counts["ok"], summary.counts["failed"]) == (1, 0)
        assert summary.counts["pending"] == 1
        pd.testing.assert_frame_equal(results(spec), before)
        web.answers["/a.jpg"] = jpeg(1)
        assert run_job(spec).exit_code == 0
    assert edits() == 2


@pytest.mark.parametrize(
    ("answer", "error", "again"),
    [
        (503, "OutOfReachError", True),
        (408, "OutOfReachError", True),
        (429, "OutOfReachError", True),
        (drop, "OutOfReachError", True),
        (silence, "OutOfReachError", True),
        (with_body(b"\xff\xd8", 100), "OutOfReachError", True),
        (404, "AddressError", False),
        (410, "AddressError", False),
        (403, "AddressError", False),
        (401, "AddressError", False),
    ],
)
def test_what_was_out_of_reach_is_tried_again_the_next_night(tmp_path, hasty, answer, error, again):
    """The photo is there when the night is planned, and gone when a worker reads it."""
    path = tmp_path / "m.parquet"
    with web_serving() as web:
        uri = web.uri("/a.jpg", [jpeg(1), answer])
        pq.write_table(pa.table({"image_uri": [uri]}), path)
        spec = spec_of(path)
        assert run_job(spec).counts["failed"] == 1
        assert results(spec)["error_type"].tolist() == [error]
        web.answers["/a.jpg"] = jpeg(1)
        assert run_job(spec).counts["ok"] == again
        assert run_job(spec, RunChoice(retry_failed=True)).counts["ok"] == 1


def test_memory_that_ran_out_in_the_plan_is_tried_again(tmp_path, monkeypatch):
    path = tmp_path / "m.parquet"
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    (tmp_path / "b.jpg").write_bytes(jpeg(2))
    pq.write_table(pa.table({"image_uri": ["a.jpg", "b.jpg"]}), path)
    spec = spec_of(path)
    real = inline.hash_file

    def short_of_memory(name):
        if name.endswith("a.jpg"):
            raise MemoryError
        return real(name)

    with monkeypatch.context() as patch:
        patch.setattr(inline, "hash_file", short_of_memory)
        assert run_job(spec).exit_code == 3
    table = results(spec)
    assert table["status"].tolist() == ["failed", "ok"]
    assert table["error_message"].iloc[0] == "photo cannot be read: out of memory"
    assert table["error_type"].iloc[0] in RunChoice().options().retryable
    assert run_job(spec).exit_code == 0


def test_a_subject_photo_out_of_reach_of_a_worker_is_named_without_its_signature(tmp_path):
    with web_serving() as web:
        uri = uri_of(web, "subject.jpg", 503)
        item = WorkItem(ManifestRow("a", subject_uris=(uri,)), "key", "key", None, ("hash",))
        with pytest.raises(OutOfReachError) as caught:
            ReadSubjects(spec_of(tmp_path))(item)
    assert str(caught.value) == (
        f"subject photo cannot be read: {web.address}/subject.jpg: HTTP 503 Service Unavailable"
    )


@pytest.mark.parametrize("name", ["gone.jpg", "folder"])
def test_a_local_subject_photo_keeps_its_own_class_of_error(tmp_path, name):
    (tmp_path / "folder").mkdir()
    uri = str(tmp_path / name)
    item = WorkItem(ManifestRow("a", subject_uris=(uri,)), "key", "key", None, ("hash",))
    with pytest.raises((FileNotFoundError, IsADirectoryError)) as caught:
        ReadSubjects(spec_of(tmp_path))(item)
    assert uri in str(caught.value)


def test_masks_that_cannot_be_read_fail_their_photos_alone(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for index, name in enumerate("abcd"):
        (photos / f"{name}.jpg").write_bytes(jpeg(index))
    masks = tmp_path / "masks"
    masks.mkdir()
    os.mkfifo(masks / "a.png")
    (masks / "b.png").symlink_to("nowhere.png")
    (masks / "c.png").mkdir()  # no file: no mask
    summary = run_job(spec_of(photos, protect=str(masks)))
    assert (summary.exit_code, summary.counts["ok"], summary.counts["failed"]) == (3, 2, 2)
    table = results(spec_of(photos, protect=str(masks)))
    errors = table["error_message"].dropna().tolist()
    assert [error.rpartition(": ")[2] for error in errors] == [
        "not a regular file", "No such file or directory",
    ]  # fmt: skip


@pytest.mark.parametrize("uri", ["gopher://x/y", "http://[::1", "s3:///x", None])
def test_photos_inside_a_manifest_need_no_good_address(tmp_path, uri):
    image = [{"bytes": jpeg(1), "path": uri}, {"bytes": None, "path": uri}]
    table = {"row_id": ["inside", "nowhere"], "image": image, "image_uri": [uri, uri]}
    path = tmp_path / "m.parquet"
    kinds = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = [pa.array(table["row_id"]), pa.array(image, kinds), pa.array([uri, uri], pa.string())]
    pq.write_table(pa.table(columns, names=list(table)), path)
    spec = spec_of(path)
    assert run_job(spec).exit_code == 3
    assert results(spec)["status"].to_dict() == {"inside": "ok", "nowhere": "failed"}
    kind = results(spec)["error_type"]["nowhere"]
    assert kind == ("InvalidRow" if uri is None else "AddressError")
