"""Passwords, tokens and signatures reach no table, no log and no line a person may send on."""

import http.server
import threading
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import console
from manifests.secrets import scrub_uri
from pipeline.plan import RunChoice
from pipeline.run import run_job
from tests.photos import jpeg
from tests.pipeline.conftest import results, spec_of

SIGNATURE = "5ecretsignature"
PASSWORD = "pa55word"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("/photos/a?b=c@d.jpg", "/photos/a?b=c@d.jpg"),
        ("s3://bucket/a@b.jpg", "s3://bucket/a@b.jpg"),
        ("s3://key:secret@bucket/a.jpg?region=eu", "s3://bucket/a.jpg?region=eu"),
        ("https://u:p@h/a.jpg", "https://h/a.jpg"),
        ("https://u:p@ss:w@rd@h/a@b.jpg?id=1", "https://h/a@b.jpg?id=1"),
        ("https://h/img?id=7&width=100", "https://h/img?id=7&width=100"),
        ("https://h/img?id=7&X-Amz-Signature=ab&X-Amz-Date=1", "https://h/img?id=7"),
        ("https://h/a.jpg?sv=2024&sig=ab%3D&se=2030&sp=r", "https://h/a.jpg"),
        ("https://h/a.jpg?Expires=1&Signature=x&Key-Pair-Id=y", "https://h/a.jpg"),
        ("https://h/a.jpg?access_token=x&n=1", "https://h/a.jpg?n=1"),
        ("https://h/a.jpg?x%2damz%2dsignature=x", "https://h/a.jpg"),
    ],
)
def test_of_an_address_stays_what_names_the_photo(uri, shown):
    assert scrub_uri(uri) == shown


@pytest.fixture
def web():
    """A server that hands out photos by id to those who bring the signature."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            query = parse_qs(urlsplit(self.path).query)
            good = query.get("X-Amz-Signature") == [SIGNATURE]
            body = jpeg(int(query["id"][0])) if good else b""
            self.send_response(200 if good else 403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_HEAD(self):  # as of a signature for GET alone
            self.send_response(403)
            self.end_headers()

        def log_message(self, *arguments): ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def everything_below(folder):
    """The bytes of every file, Parquet files as the values they hold."""
    for path in Path(folder).rglob("*"):
        if path.is_file():
            yield path, path.read_bytes()
            if path.suffix == ".parquet":
                yield path, repr(pq.read_table(path).to_pylist()).encode()


def test_signed_photos_are_read_and_their_signatures_written_nowhere(web, tmp_path, caplog):
    uris = [f"{web}/photo?id={i}&X-Amz-Signature={SIGNATURE}" for i in range(2)]
    uris.append(f"{web}/photo?id=2&X-Amz-Signature=0123wrong{SIGNATURE}")
    uris.append(f"nosuchstore://user:{PASSWORD}@bucket/a.jpg")
    path = tmp_path / "manifest.parquet"
    pq.write_table(pa.table({"image_uri": uris}), path)
    spec = spec_of(path)
    summary = run_job(spec)
    assert (summary.counts["ok"], summary.counts["failed"]) == (2, 2)
    table = results(spec)
    assert table.query("status == 'ok'")["image_uri"].tolist() == [
        f"{web}/photo?id=0", f"{web}/photo?id=1",
    ]  # fmt: skip
    for file, data in everything_below(spec.out):
        assert SIGNATURE.encode() not in data, file
        assert PASSWORD.encode() not in data, file
    assert SIGNATURE not in caplog.text
    # Signed anew each night, it is the same photo: nothing is computed again.
    fresh = [uri.replace("?", f"?X-Amz-Date={i}&") for i, uri in enumerate(uris)]
    pq.write_table(pa.table({"image_uri": fresh}), path)
    assert run_job(spec, RunChoice()).computed == 0


def test_what_a_person_is_shown_holds_no_secret(capsys):
    console.say(f"reading https://u:{PASSWORD}@h/a.jpg?sig={SIGNATURE}")
    console.say(f"reading https://u:begins@{PASSWORD}@h/a.jpg")
    console.error(f"AWS_SECRET_ACCESS_KEY={PASSWORD} is wrong", f"ask https://h/?sig={SIGNATURE}")
    shown = capsys.readouterr().err
    assert PASSWORD not in shown
    assert SIGNATURE not in shown


@pytest.mark.parametrize(
    "place", [f"s3://k:{PASSWORD}@bucket/photos", f"s3://bucket/photos?sig={SIGNATURE}"]
)
def test_places_with_secrets_in_them_are_refused_without_saying_them(place):
    from jobs.exits import UsageError
    from jobs.locations import location

    with pytest.raises(UsageError, match="environment") as caught:
        location(place)
    assert PASSWORD not in str(caught.value)
    assert SIGNATURE not in str(caught.value)
