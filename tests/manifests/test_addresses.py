"""Addresses: what is wrong with one is told unasked, and whatever its place does has an end."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import fs

from manifests import deadline, remote
from manifests.addresses import address_problem, reaching
from manifests.errors import AddressError, CommitError, OutOfReachError
from manifests.hashes import hash_inputs
from manifests.identity import hash_bytes
from manifests.inline import hash_input, read_input
from manifests.lease_store import lease_store
from manifests.reader import read_manifest, wrong_addresses
from manifests.storage import ArrowStorage
from manifests.web import fetch
from tests.web_server import (
    drop,
    flood,
    silence,
    trickle_of_bytes,
    trickle_of_headers,
    web_serving,
    with_body,
)

PHOTO = bytes(range(256)) * 1000


@pytest.fixture
def web():
    with web_serving() as web:
        yield web


@pytest.fixture
def hasty(monkeypatch):
    """Return a function that sets the limits of every address."""

    def set_limits(**seconds):
        monkeypatch.setattr(deadline, "LIMITS", deadline.Limits(**seconds))

    return set_limits


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("http://[::1", "host is malformed"),
        ("http://a..b/x.jpg", "host is malformed"),
        ("http://" + "a" * 70 + ".org/x.jpg", "host is malformed"),
        ("http://", "names no file"),
        ("https:///x.jpg", "names no host"),
        ("http://h:99999/x.jpg", "port"),
        ("http://h:0/x.jpg", "port"),
        ("HTTP://h:x/x.jpg", "http:// address whose port"),
        ("http://h/%zz.jpg", "write %25"),
        ("http://h/x.jpg?a=%2", "write %25"),
        ("http://h/a\nb.jpg", "control character"),
        ("http://h/a\\b.jpg", "backslash"),
        ("s3://", "names no file"),
        ("s3:///x.jpg", "names no valid bucket"),
        ("s3://b\x01/x.jpg", "names no valid bucket"),
        ("s3://bucket", "names a bucket and no file"),
        ("s3://key:pa55word@bucket/x.jpg", "credentials come from the environment"),
        ("gs:///x.jpg", "names no valid bucket"),
        ("file://host/x.jpg", "names a machine"),
        ("file:///a%00b.jpg", "NUL"),
        ("file:///100%.jpg", "write %25"),
        ("gopher://x/y.jpg", "no storage known by gopher://"),
        ("data:image/png;base64,AAAA", "data: without //"),
        ("magnet:?xt=urn:btih:1", "magnet: without //"),
        ("http:/h/x.jpg", "http: without //"),
        ("http://exa mple/x.jpg", "host is malformed"),
        ("https://u:pa55word@exa\u3000mple:80/x.jpg", "host is malformed"),
        ("http://h%41/x.jpg", "host is malformed"),
        ("http://a<b>/x.jpg", "host is malformed"),
        ("local:///a.jpg", "local:// names no storage"),
        ("LOCAL://a.jpg", "file:///FOLDER/FILE"),
        ("asynclocal:///a.jpg", "asynclocal:// names no storage"),
        ("dir:///a.jpg", "dir:// names no storage"),
        ("generic://file:///a.jpg", "generic:// names no storage"),
        ("zip://a.jpg", "zip:// names no storage"),
        ("zip://a.jpg::/photos.zip", "zip: addresses chained by ::"),
        ("tar://a.jpg::file:///photos.tar", "tar: addresses chained by ::"),
        ("SimpleCache::/a.jpg", "addresses chained by ::"),
        ("simplecache::file:///a.jpg", "simplecache: addresses chained by ::"),
        ("blockcache::s3://key:pa55word@b/a.jpg", "blockcache: addresses chained by ::"),
        ("filecache::https://h/a.jpg", "addresses chained by ::"),
        ("ftp://u:pa55word@h/a.jpg::/a.jpg", "ftp: addresses chained by ::"),
        ("x://", "x:// is no scheme"),
        ("x://a.jpg", "x:// is no scheme"),
        ("a b://c", "a b:// is no scheme"),
        ("a\nb:pa55word://c", "a\\nb:// is no scheme"),
        ("://c", ":// is no scheme"),
        ("a\x00b.jpg", "NUL"),
    ],
)
def test_what_is_wrong_with_an_address_is_told_in_a_line(uri, words):
    problem = address_problem(uri)
    assert words in problem
    assert problem.isprintable()
    assert "pa55word" not in problem
    with pytest.raises(AddressError):
        read_input(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "/photos/a.jpg", "trip: one/IMG 12:30.jpg", "./data:a.jpg", "a%zz.jpg", "/a\\b\n.jpg",
        "file:///photos/a%20b.jpg", "file://localhost/a.jpg", "FILE:///a.jpg",
        "s3://my-bucket.x/a%zz b.jpg", "s3://k:s@bucket/a.jpg?region=eu", "gs://anonymous@b/a.jpg",
        "abfs://box@account.dfs.core.windows.net/a.jpg", "hf://datasets/a/b/c.jpg",
        "http://h", "http://[::1]:80/a.jpg", "https://u:p@h/a b.jpg?id=%2F&x=é", "http://bücher.de/a",
        "s3://b/a::b.jpg", "http://h/a::b.jpg", "one::two.jpg", "./a b://c", "/x/a b://c",
        "./zip::a.jpg", "http://[fe80::1%eth0]/a", "http://h_1.example-2.org:8080/a.jpg",
        "/m.parquet#row=7", "memory://a.jpg",
    ],
)  # fmt: skip
def test_an_address_that_may_be_read_has_nothing_wrong_with_it(uri):
    assert address_problem(uri) is None


def test_a_web_photo_is_read_and_hashed(web):
    uri = web.uri("/a%20b/%C3%A9.jpg", PHOTO)
    web.answers["/moved"] = "/a%20b/%C3%A9.jpg"
    as_people_write = uri.replace("%20", " ").replace("%C3%A9", "é")
    for address in (uri, as_people_write, f"{web.address}/moved?x=1"):
        assert read_input(address) == PHOTO
        assert hash_input(address) == hash_bytes(PHOTO)


def test_a_user_is_told_to_its_own_host_alone(web):
    told = []

    def protected(handler):
        told.append(handler.headers["Authorization"])
        with_body(PHOTO)(handler)

    with web_serving() as other:
        web.uri("/own", "/photo")
        web.uri("/other", other.uri("/photo", protected))
        web.uri("/photo", protected)
        for path in ("/own", "/other"):
            read_input(f"{web.address}{path}".replace("://", "://me:pa%3Ass@"))
    assert told == ["Basic bWU6cGE6c3M=", None]


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (404, AddressError, "HTTP 404 Not Found"),
        (410, AddressError, "HTTP 410 Gone"),
        (403, AddressError, "HTTP 403 Forbidden"),
        (401, AddressError, "HTTP 401 Unauthorized"),
        (200, OutOfReachError, "answered with nothing"),
        (204, OutOfReachError, "answered with nothing"),
        ("http://[::1", AddressError, "Invalid IPv6 URL"),
        (with_body(b"", 50), OutOfReachError, "answered with nothing"),
        (777, OutOfReachError, "HTTP 777"),
        (408, OutOfReachError, "HTTP 408 Request Timeout"),
        (429, OutOfReachError, "HTTP 429 Too Many Requests"),
        (500, OutOfReachError, "HTTP 500 Internal Server Error"),
        (503, OutOfReachError, "HTTP 503 Service Unavailable"),
        (drop, OutOfReachError, "RemoteDisconnected"),
        (with_body(PHOTO, len(PHOTO) + 5), OutOfReachError, "broke off after 256,000 bytes"),
        (lambda h: h.wfile.write(b"nonsense\r\n\r\n"), OutOfReachError, "BadStatusLine"),
        ("/x.jpg", AddressError, "redirected more than 10 times"),
        ("file:///etc/passwd", AddressError, "redirected to what is no web address"),
        ("http://h:99999/", AddressError, "redirected to what is no web address"),
        (with_body(b"\n<html>", kind="text/html"), AddressError, "a web page, no file"),
        (with_body(PHOTO, 2**40), AddressError, "larger than 300,000 bytes"),
        (flood, AddressError, "larger than 300,000 bytes"),
    ],
)  # fmt: skip
def test_every_answer_is_a_photo_or_an_error_of_its_class(web, monkeypatch, answer, error, words):
    monkeypatch.setattr(remote, "MAX_INPUT_BYTES", 300_000)
    uri = web.uri("/x.jpg", answer).replace("://", "://me:pa55word@") + "?sig=5ecret"
    for ask in (read_input, hash_input):
        with pytest.raises(error) as caught:
            ask(uri)
        assert type(caught.value) is error
        assert words in str(caught.value)
        assert str(caught.value).startswith(f"{web.address}/x.jpg: ")
        assert "pa55word" not in str(caught.value)
        assert "5ecret" not in str(caught.value)


def test_a_photo_that_is_called_a_web_page_is_a_photo(web):
    assert read_input(web.uri("/photo.php", with_body(PHOTO, kind="text/html"))) == PHOTO


def test_a_server_that_refuses_connections_is_out_of_reach(web):
    with web_serving() as gone:
        address = gone.address
    with pytest.raises(OutOfReachError, match=r"a\.jpg: Connection refused"):
        read_input(f"{address}/a.jpg")


def test_a_silent_server_is_not_waited_for(web, hasty):
    hasty(silence_seconds=0.2)
    with pytest.raises(OutOfReachError, match=r"x: silent for 0\.2 s"):
        read_input(web.uri("/x", silence))


@pytest.mark.parametrize("answer", [trickle_of_bytes, trickle_of_headers])
def test_a_server_that_never_ends_is_hung_up_on(web, hasty, answer):
    hasty(total_seconds=0.5)
    with pytest.raises(OutOfReachError, match=r"x: no answer within 0\.5 s"):
        hash_input(web.uri("/x", answer))
    assert web.hung_up.wait(20)


class BrokenFileSystem(MemoryFileSystem):
    """A client that raises what a test has put into `error`."""

    protocol = "broken"
    error: BaseException = None

    def _open(self, path, mode="rb", **kwargs):
        raise self.error

    def info(self, path, **kwargs):
        return {"name": path, "size": 5, "type": "file"}


class AnswerError(Exception):
    """What clients raise of an HTTP status."""

    def __init__(self, status):
        super().__init__(f"https://u:pa55word@h/x answered {status}\nTraceback: more")
        self.status = status


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (AnswerError(404), "AddressError"),
        (AnswerError(403), "AddressError"),
        (AnswerError(429), "OutOfReachError"),
        (AnswerError(502), "OutOfReachError"),
        (RuntimeError("Session is closed"), "OutOfReachError"),
        (ConnectionResetError(104, "Connection reset by peer"), "OutOfReachError"),
        (EOFError(), "OutOfReachError"),
        (TimeoutError(), "OutOfReachError"),
        (OSError("AWS Error ACCESS_DENIED during GetObject operation"), "AddressError"),
        (OSError("AWS Error NETWORK_CONNECTION during GetObject operation"), "OutOfReachError"),
        (FileNotFoundError(2, "No such file"), "AddressError"),
        (ValueError("Invalid repo id"), "AddressError"),
        (TypeError("__init__() missing 1 argument"), "AddressError"),
        (KeyError("pa55word"), "AddressError"),
        (NotImplementedError(), "AddressError"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_whatever_a_client_raises_is_its_rows_error(tmp_path, monkeypatch, error, kind):
    fsspec.register_implementation("broken", BrokenFileSystem, clobber=True)
    monkeypatch.setattr(BrokenFileSystem, "error", error)
    (tmp_path / "good.jpg").write_bytes(PHOTO)
    path = tmp_path / "m.parquet"
    uris = ["broken://x/a.jpg?token=pa55word", "good.jpg"]
    pq.write_table(pa.table({"image_uri": uris}), path)
    bad, good = hash_inputs(read_manifest(path), None).to_pylist()
    assert good["image_hash"] == hash_bytes(PHOTO)
    assert bad["row_error_type"] == kind
    message = bad["row_error"]
    assert message.startswith("photo cannot be read: ")
    assert len(message) > len("photo cannot be read: ")
    assert message.isprintable()
    assert "pa55word" not in message
    assert "Traceback" not in message


def test_a_store_that_never_answers_is_not_waited_for(tmp_path, monkeypatch, hasty):
    never = threading.Event()
    fsspec.register_implementation("broken", BrokenFileSystem, clobber=True)
    monkeypatch.setattr(BrokenFileSystem, "info", lambda self, path, **kwargs: never.wait(30))
    hasty(total_seconds=0.3)
    uris = [f"broken://x/{i}.jpg" for i in range(3)] + ["good.jpg"]
    (tmp_path / "good.jpg").write_bytes(PHOTO)
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"image_uri": uris}), path)
    table = hash_inputs(read_manifest(path), None, workers=1)
    never.set()
    assert table["row_error_type"].to_pylist() == ["OutOfReachError"] * 3 + [None]
    assert "no answer within 0.3 s" in table["row_error"][0].as_py()


@pytest.mark.parametrize("scheme", ["http", "broken"])
def test_whoever_stops_waits_for_no_server(web, tmp_path, monkeypatch, scheme):
    """As by SIGINT: `progress` raises, while not one photo has come."""
    released, asked, ended = threading.Event(), [], []

    def wait(*arguments, **options):
        asked.append(1)
        released.wait(30)
        ended.append(1)

    fsspec.register_implementation("broken", BrokenFileSystem, clobber=True)
    monkeypatch.setattr(BrokenFileSystem, "info", wait)
    monkeypatch.setattr("manifests.hashes._TELL_SECONDS", 0.2)
    names = [f"/{i}.jpg" for i in range(50)]
    uris = [web.uri(name, wait) if scheme == "http" else f"broken:/{name}" for name in names]
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"image_uri": uris}), path)

    def stop(done, total):
        assert (done, total) == (0, 50)
        raise SystemExit(130)

    with pytest.raises(SystemExit):
        hash_inputs(read_manifest(path), None, workers=2, progress=stop)
    assert ended == []
    released.set()
    assert len(asked) <= 2  # what had begun, and nothing after


def test_half_a_character_in_an_address_fails_its_row_alone(tmp_path):
    (tmp_path / "good.jpg").write_bytes(PHOTO)
    path = tmp_path / "m.jsonl"
    path.write_text(
        '{"image_uri": "good.jpg"}\n{"image_uri": "a\\ud800.jpg"}\n'
        '{"image_uri": "http://h/\\udfff.jpg"}\n'
        '{"image_uri": "good.jpg", "subject_uris": ["http://h/\\ud800"]}\n'
    )
    table = hash_inputs(read_manifest(path), None)
    assert table["row_error_type"].to_pylist() == [
        None, "FileNotFoundError", "AddressError", "AddressError",
    ]  # fmt: skip


CREDENTIALS = ("AZURE_", "IDENTITY_", "MSI_")
STAYS_ALIVE = """
from manifests.inline import hash_input, open_table, read_input, stat_input
from manifests.remote import filesystem_of
from manifests.storage import open_storage
uri = "abfs://box@nobody.dfs.core.windows.net/x.jpg"
try:
    {ask}
except OSError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    "ask",
    [
        "read_input(uri)", "hash_input(uri)", "stat_input(uri)", "open_table(uri)",
        "read_input(uri + '.parquet#row=0')", "open_storage(uri).read('_job.json')",
        "open_storage(uri).open('_job.json')", "filesystem_of(uri)[0].get_file_info('box')",
    ],
)  # fmt: skip
def test_a_store_without_credentials_is_an_error_and_no_end_of_the_process(ask):
    """Arrow's client of Azure calls `terminate` as it opens a file."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(CREDENTIALS)}
    done = subprocess.run(
        [sys.executable, "-c", STAYS_ALIVE.format(ask=ask)],
        capture_output=True, text=True, timeout=120, check=False, env=env | {"PATH": "/nowhere"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("OutOfReachError abfs://nobody.dfs.core.windows.net/")


@pytest.mark.parametrize("uri", ["http://exa mple/x", "http://u:p@a b:80/x", "https://h\x7f/x"])
def test_a_host_that_no_client_takes_is_a_wrong_address(uri):
    with pytest.raises(AddressError) as caught, reaching(uri):
        fetch(uri, print, max_bytes=1)
    assert type(caught.value) is AddressError


@pytest.mark.parametrize("scheme", ["local", "LOCAL", "simplecache", "zip", "dir"])
def test_no_chain_and_no_local_file_reaches_fsspec(monkeypatch, scheme):
    reached = []
    monkeypatch.setattr(fsspec.core, "url_to_fs", reached.append)
    for uri in (f"{scheme}:///etc/hosts", f"{scheme}://x::/etc/hosts", "memory://x::/etc/hosts"):
        with pytest.raises(AddressError):
            remote.filesystem_of(uri)
    assert reached == []


def test_a_lease_is_taken_on_no_chain():
    storage = ArrowStorage("gs://box/a::/etc", fs.LocalFileSystem())
    with pytest.raises(CommitError, match="chained by ::"):
        lease_store(storage, "_state/lease")


PARTS = (
    "http://", "https://h", "s3://", "file://", "hf://", "data:", "a", "b.c", "..", "/", ":", ":80",
    "::", "x://", "zip",
    ":0", ":99999", "%", "%20", "%zz", "\n", "\\", "é", "?", "#", "[", "@", " ", "x" * 64, "h.org/",
)  # fmt: skip


@given(st.lists(st.lists(st.sampled_from(PARTS), min_size=1, max_size=6).map("".join), min_size=1))
def test_a_table_of_addresses_is_judged_as_each_of_them(uris):
    found = wrong_addresses(pa.chunked_array([uris]), None)
    each = {row: address_problem(uri) for row, uri in enumerate(uris)}
    assert found == {row: f"photo cannot be read: {p}" for row, p in each.items() if p}


def test_a_manifests_addresses_are_judged_as_written(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text(
        "row_id,image_uri\na,data:image/png;base64\nb,./data:x.jpg\nc,s3:///x\nd,s3://b/x.jpg\n"
    )
    table = read_manifest(path)
    assert table["row_error_type"].to_pylist() == ["AddressError", None, "AddressError", None]


def test_bad_subject_addresses_are_their_rows_error(web, tmp_path):
    good = web.uri("/subject.jpg", PHOTO)
    (tmp_path / "good.jpg").write_bytes(PHOTO)
    subjects = [[good], [good, "gopher://x/y"], [web.uri("/gone", 404)], ["s3:///x"], [good]]
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"image_uri": ["good.jpg"] * 5, "subject_uris": subjects}), path)
    table = hash_inputs(read_manifest(path), None)
    wrong = "AddressError"
    assert table["row_error_type"].to_pylist() == [None, wrong, wrong, wrong, None]
    assert all(e.startswith("subject photo") for e in table["row_error"].to_pylist() if e)


def test_a_damaged_manifest_of_photos_fails_its_rows(tmp_path):
    """Its photos were hashed as it was read; it is damaged when one is asked for."""
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"image": [PHOTO]}), path)
    uri = read_manifest(path)["image_uri"][0].as_py()
    path.write_bytes(b"PAR1 no more PAR1")
    with pytest.raises(OSError, match="row=0: "):
        read_input(uri)
