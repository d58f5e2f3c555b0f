"""What the tests of object storage share: one server, a bucket for each test."""

import uuid

import pytest

from tests.s3_server import make_bucket, s3_server


@pytest.fixture(scope="session")
def server():
    """The environment of somebody who uses a local S3 server."""
    pytest.importorskip("moto")
    with s3_server() as environment:
        yield environment


@pytest.fixture
def bucket(server, monkeypatch):
    """A new bucket's name; the environment reaches it."""
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    name = f"b-{uuid.uuid4().hex[:12]}"
    make_bucket(name)
    return name
