"""The pod that creates a night's RayJob, against a small API server of our own."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from jobs.schedule import rayjob
from jobs.schedule.cluster_options import ClusterOptions
from jobs.schedule.command import Command
from jobs.schedule.kuberay import LABEL, ray_job
from jobs.schedule.rayjob import Api, follow

BASE = "/apis/ray.io/v1/namespaces/night/rayjobs"


class Cluster:
    """What the API server knows: RayJobs, and how each one's state goes on at every look."""

    def __init__(self):
        self.jobs, self.calls, self.script = {}, [], []
        self.outage = 0

    def add(self, name, state, label="n", created="2026-01-01"):
        self.jobs[name] = {
            "metadata": {"name": name, "labels": {LABEL: label}, "creationTimestamp": created},
            "status": {"jobDeploymentStatus": state},
        }

    def answer(self, method, path, query, body):
        self.calls.append((method, path.removeprefix(BASE)))
        if self.outage:
            self.outage -= 1
            return 503, {}
        if method == "GET" and path == BASE:
            label, value = query["labelSelector"][0].split("=")
            labelled = [
                j for j in self.jobs.values() if j["metadata"]["labels"].get(label) == value
            ]
            return 200, {"items": labelled}
        if method == "POST":
            assert body["kind"] == "RayJob"
            name = body["metadata"]["generateName"] + f"{len(self.calls):05d}"
            self.add(name, "", body["metadata"]["labels"][LABEL])
            return 201, self.jobs[name]
        name = path.rsplit("/", 1)[1]
        if name not in self.jobs:
            return 404, {}
        if method == "DELETE":
            return 200, self.jobs.pop(name)
        if self.script:
            self.jobs[name]["status"] = self.script.pop(0)
        return 200, self.jobs[name]


@pytest.fixture
def cluster(tmp_path):
    """An API server that wants the service account's token; yields (cluster, api)."""
    (tmp_path / "token").write_text("secret\n")
    state = Cluster()

    class Handler(BaseHTTPRequestHandler):
        def do(self):
            url = urlsplit(self.path)
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size)) if size else None
            code, value = 401, {}
            if self.headers["Authorization"] == "Bearer secret":
                code, value = state.answer(self.command, url.path, parse_qs(url.query), body)
            self.send_response(code)
            self.end_headers()
            self.wfile.write(json.dumps(value).encode())

        def __getattr__(self, name):
            return self.do if name.startswith("do_") else super().__getattribute__(name)

        log_message = lambda *_: None  # noqa: E731

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield state, Api(f"http://127.0.0.1:{server.server_port}", "night", tmp_path)
    server.shutdown()
    server.server_close()


def night():
    options = ClusterOptions(image="x", volumes=("d:/d",), namespace="night", ray_version="2")
    return ray_job(Command(("enhance",), "/d/p", "/d/o", {}), "n", options)


def ended(job_status, message="", state="Failed"):
    return {"jobDeploymentStatus": state, "jobStatus": job_status, "message": message}


def run(api):
    said = []
    return follow(api, night(), said.append, poll_seconds=0.01), "\n".join(said)


def test_a_night_is_created_followed_and_its_success_is_exit_0(cluster):
    state, api = cluster
    state.script = [
        {"jobDeploymentStatus": "Initializing"},
        {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"},
        ended("SUCCEEDED", state="Complete"),
    ]
    code, said = run(api)
    assert code == 0
    assert re.search(r"doodl-batch-n-\d{5} is created", said)
    assert "Running RUNNING" in said
    assert [method for method, _ in state.calls] == ["GET", "POST", "GET", "GET", "GET"]


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("Job entrypoint command failed with exit code 3, last available logs ...", 3),
        ("Job entrypoint command failed with exit code 143.", 143),
        ("deadline exceeded", 1),
        ("failed with exit code 999", 1),
    ],
)
def test_the_runs_own_exit_code_is_the_pods(cluster, message, code):
    state, api = cluster
    state.script = [ended("FAILED", message)]
    found, said = run(api)
    assert found == code
    assert message[:20] in said


def test_an_unfinished_night_is_joined_and_no_other_created(cluster):
    state, api = cluster
    state.add("other", "Running", label="of another schedule")
    state.add("old", "Running")
    state.script = [ended("SUCCEEDED", state="Complete")]
    code, said = run(api)
    assert (code, "old has not ended yet" in said) == (0, True)
    assert "POST" not in [method for method, _ in state.calls]


def test_finished_nights_are_taken_away_but_for_the_last_few(cluster):
    state, api = cluster
    for day in range(8):
        state.add(f"old-{day}", "Complete", created=f"2026-01-{day + 10}")
    state.script = [ended("SUCCEEDED", state="Complete")]
    assert run(api)[0] == 0
    assert sorted(name for name in state.jobs if name.startswith("old")) == [
        f"old-{day}" for day in range(3, 8)
    ]


def test_an_api_out_of_reach_for_a_while_is_waited_for(cluster):
    state, api = cluster
    job = night()
    name = api.create(job)["metadata"]["name"]
    state.outage = 5
    state.script = [ended("SUCCEEDED", state="Complete")]
    assert rayjob._wait(api, name, lambda _: None, 0.01) == 0


def test_a_night_deleted_by_hand_is_a_failure_and_a_wrong_token_an_error(cluster, tmp_path):
    _, api = cluster
    assert rayjob._wait(api, "gone", lambda _: None, 0.01) == 1
    (tmp_path / "token").write_text("other")
    with pytest.raises(OSError, match="401"):
        run(api)
