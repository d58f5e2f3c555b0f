"""A local S3 server for the tests: moto's, in a process of its own, without a delay of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

from tests.clusters import free_ports

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test-key",
    "AWS_SECRET_ACCESS_KEY": "test-secret-that-is-nowhere-written",
    "AWS_REGION": "us-east-1",
}


@contextmanager
def s3_server():
    """Yield the environment of somebody who uses the server; it ends with the body."""
    (port,) = free_ports(1)
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while not _answers(url):
            assert process.poll() is None, "the S3 server ended"
            assert time.monotonic() < deadline, "the S3 server does not answer"
            time.sleep(0.2)
        yield {**CREDENTIALS, "AWS_ENDPOINT_URL": url}
    finally:
        process.kill()
        process.wait()


def _answers(url):
    try:
        with urllib.request.urlopen(f"{url}/moto-api/", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def make_bucket(name):
    """Make a bucket on the server that the environment names, and return a boto3 client."""
    import boto3

    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    client.create_bucket(Bucket=name)
    return client
