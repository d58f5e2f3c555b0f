"""What the CronJob's pod runs: create the night's RayJob, or join the one that still runs.

`python -m jobs.schedule.rayjob FILE`, inside a cluster: FILE holds the RayJob as JSON. Exit code:
the run's own where Ray tells it, else 0 or 1. Only the standard library: the pod needs little.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
POLL_SECONDS = 15.0
# How long the API may be out of reach (an upgrade of the control plane) before the pod gives up.
PATIENCE_SECONDS = 900.0
_KEPT = 5
_TERMINAL = ("Complete", "Failed")
_EXIT_CODE = re.compile(r"exit code:? (\d{1,3})")


class Api:
    """The RayJobs of one namespace, as this pod's service account may see them.

    Args:
        server: the API's address. account: the folder with the token and the certificate.
    """

    def __init__(self, server: str, namespace: str, account: Path = ACCOUNT) -> None:
        self._base = f"{server}/apis/ray.io/v1/namespaces/{quote(namespace)}/rayjobs"
        self._account = account
        certificate = account / "ca.crt"
        trusted = ssl.create_default_context(
            cafile=str(certificate) if certificate.exists() else None
        )
        # Never through a proxy: the API is inside the cluster.
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trusted)
        )

    def list(self, label: str, value: str) -> list[dict[str, Any]]:
        """Return the RayJobs with that label, oldest first."""
        items = self._call("GET", f"?labelSelector={quote(f'{label}={value}')}")["items"]
        return sorted(items, key=lambda job: job["metadata"].get("creationTimestamp") or "")

    def create(self, job: dict[str, Any]) -> dict[str, Any]:
        return self._call("POST", "", job)

    def get(self, name: str) -> dict[str, Any]:
        return self._call("GET", f"/{quote(name)}")

    def delete(self, name: str) -> None:
        self._call("DELETE", f"/{quote(name)}")

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        token = (self._account / "token").read_text().strip()  # it is renewed while we wait
        request = urllib.request.Request(
            self._base + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
            method=method,
        )
        with self._opener.open(request, timeout=30) as answer:
            return json.loads(answer.read())


def follow(
    api: Api, job: dict[str, Any], say: Callable[[str], None], *, poll_seconds: float = POLL_SECONDS
) -> int:
    """Create the RayJob, or join an unfinished one of its schedule; return its exit code."""
    ((label, value),) = job["metadata"]["labels"].items()
    earlier = api.list(label, value)
    unfinished = [old for old in earlier if _state(old) not in _TERMINAL]
    if unfinished:
        name = unfinished[-1]["metadata"]["name"]
        say(f"{name} has not ended yet; no other is created")
    else:
        for old in earlier[: -_KEPT or None]:
            api.delete(old["metadata"]["name"])
        name = api.create(job)["metadata"]["name"]
        say(f"{name} is created")
    return _wait(api, name, say, poll_seconds)


def _wait(api: Api, name: str, say: Callable[[str], None], poll_seconds: float) -> int:
    shown, heard = "", time.monotonic()
    while True:
        try:
            job = api.get(name)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                say(f"{name} was deleted before it ended")
                return 1
            if error.code in (401, 403) or time.monotonic() - heard > PATIENCE_SECONDS:
                raise
        except OSError:
            if time.monotonic() - heard > PATIENCE_SECONDS:
                raise
        else:
            heard = time.monotonic()
            state, status = _state(job), job.get("status", {})
            if state != shown:
                shown = state
                say(f"{name}: {state or 'new'} {status.get('jobStatus') or ''}".rstrip())
            if state in _TERMINAL:
                return _exit_code(status, say)
        time.sleep(poll_seconds)


def _state(job: dict[str, Any]) -> str:
    return job.get("status", {}).get("jobDeploymentStatus") or ""


def _exit_code(status: dict[str, Any], say: Callable[[str], None]) -> int:
    if status.get("jobStatus") == "SUCCEEDED":
        return 0
    message = " ".join(str(status.get("message") or status.get("reason") or "").split())
    say(message[:1000] or "the run failed")
    match = _EXIT_CODE.search(message)
    code = int(match[1]) if match else 1
    return code if 0 < code < 256 else 1


def main() -> int:
    job = json.loads(Path(sys.argv[1]).read_text())
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    host = f"[{host}]" if ":" in host else host
    api = Api(f"https://{host}:{port}", job["metadata"]["namespace"])

    def say(line: str) -> None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    try:
        return follow(api, job, say)
    except OSError as error:
        say(f"error: the cluster's API does not answer as it should: {error}")
        return 6


if __name__ == "__main__":
    sys.exit(main())
