"""Real Ray clusters of two nodes on this machine: submitted, followed, stopped, killed.

The edit is a cheap stand-in; the code on the workers is the wheel that the submission ships.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from jobs import exits
from pipeline.spec import make_spec
from tests.clusters import (
    RAY,
    StartedCluster,
    UtilsCluster,
    bare_environment,
    port_is_free,
    wait_for,
)
from tests.photos import collection

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

DOODL_BATCH = Path(sys.executable).parent / "doodl-batch"
TESTS = Path(__file__).parent.parent
TOKEN = "a-token-of-the-tests"
LONG = 600

FAKES = """
import os
from pathlib import Path
import doodl, jobs
from tests.fakes import load_editor as load

def load_editor(*arguments, **options):
    Path(os.environ["CODE_LOG"]).write_text(f"{doodl.__file__}\\n{os.getcwd()}")
    return load(*arguments, **options)
"""


class Job:
    """A collection, its spec and its runtime environment; commands on it from another folder."""

    def __init__(self, folder, address, count, seconds, **environment):
        self.folder, self.address, self.environment = folder, address, environment
        folder.mkdir(parents=True, exist_ok=True)
        self.photos = collection(folder / "photos", count)
        # Only the stand-ins come by path: the program itself must come as the wheel.
        fakes = folder / "fakes" / "tests"
        fakes.mkdir(parents=True)
        shutil.copy(TESTS / "fakes.py", fakes)
        (fakes / "__init__.py").touch()
        (folder / "fakes" / "cluster_fakes.py").write_text(FAKES)
        self.spec = make_spec(self.photos, editor="cluster_fakes:load_editor", grace_seconds=20)
        self.out = Path(self.spec.out)
        (folder / "spec.json").write_text(self.spec.to_json())
        self.edits_path, self.code_path = folder / "edits.log", folder / "code.log"
        self.slow_down(seconds)
        self.home = folder / "elsewhere"
        self.home.mkdir()
        (self.home / "jobs.py").write_text("raise SystemExit('the wrong jobs')")

    def slow_down(self, seconds):
        variables = {
            "PYTHONPATH": str(self.folder / "fakes"),
            "DOODL_TEST_SECONDS": str(seconds),
            "DOODL_TEST_LOG": str(self.edits_path),
            "CODE_LOG": str(self.code_path),
        }
        (self.folder / "env.json").write_text(json.dumps({"env_vars": variables}))

    def start(self, *arguments, **options):
        return subprocess.Popen(
            [DOODL_BATCH, *map(str, arguments)],
            cwd=self.home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=bare_environment(
                PYTHONPATH=str(TESTS.parent), RAY_ADDRESS=self.address, **self.environment
            ),
            **options,
        )  # fmt: skip

    def call(self, *arguments):
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=LONG)
        return process.returncode, output

    def submit(self, *arguments):
        """Start `run`, which follows the job."""
        return self.start(
            "run", self.folder / "spec.json", "--runtime-env", self.folder / "env.json", *arguments
        )

    def submitted(self, *arguments):
        process = self.submit(*arguments)
        output, _ = process.communicate(timeout=LONG)
        return process.returncode, output

    def status(self):
        code, output = self.call("status", self.out, "--json")
        assert code in (exits.OK, exits.ROWS_FAILED), output
        return json.loads(output)

    def staged(self):
        return len(list((self.out / "_state" / "staging").glob("*.parquet")))

    def edits(self):
        return len(self.edits_path.read_text().splitlines()) if self.edits_path.exists() else 0

    def results(self):
        return pd.read_parquet(self.out / "results").set_index("row_id").sort_index()

    def ledger(self):
        return pd.read_parquet(self.out / "_state" / "ledger")

    def wait_for_edits(self, count):
        wait_for(lambda: self.edits() >= count, f"{count} edits", 300)


def until(process, words):
    """Return the output up to the line that holds the words."""
    seen = ""
    for line in process.stdout:
        seen += line
        if words in line:
            return seen
    raise AssertionError(f"never said {words!r}:\n{seen}")


@pytest.fixture(scope="module")
def cluster():
    running = UtilsCluster()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def job(cluster, tmp_path_factory):
    """A job that has run once on the cluster."""
    made = Job(tmp_path_factory.mktemp("job"), cluster.url, 4, 0)
    code, output = made.submitted()
    assert code == exits.OK, output
    return made


def test_the_submitter_is_killed_and_the_job_finishes_on_both_nodes(cluster, tmp_path):
    job = Job(tmp_path / "job", cluster.url, 12, 1.0)
    first = job.submit()
    said = until(first, "submitted as ")
    assert f"cluster at {job.address} (RAY_ADDRESS)" in said
    job.wait_for_edits(1)
    second = job.submit()
    said = until(second, "is at work on it already")
    first.send_signal(signal.SIGKILL)
    first.wait()
    status = job.status()
    assert status["submission"]["ray_status"] == "RUNNING"
    assert status["running"]["alive"]
    output, _ = second.communicate(timeout=LONG)
    assert second.returncode == exits.OK, output
    assert "12 computed" in output
    assert "submitted as" not in said + output
    table = job.results()
    assert (table["status"] == "ok").all()
    assert (len(table), job.edits()) == (12, 12)
    assert job.status()["submission"]["exit_code"] == 0
    assert job.ledger()["node"].nunique() == 2


def test_workers_run_the_shipped_wheel_in_an_empty_folder(job):
    code, folder = job.code_path.read_text().split("\n")
    assert "runtime_resources/py_modules_files" in code
    assert "runtime_resources/working_dir_files" in folder
    assert list(Path(folder).iterdir()) == []


def test_logs_show_the_last_job_again(job):
    code, output = job.call("logs", job.out)
    assert code == exits.OK
    assert f"results: {job.out}" in output
    code, followed = job.call("logs", job.out, "--follow")
    assert code == job.status()["submission"]["exit_code"]
    assert followed.startswith(output)


def test_a_finished_job_is_followed_by_its_next_attempt_which_computes_nothing(job):
    before, attempt = job.edits(), job.status()["submission"]["attempt"]
    code, output = job.submitted("--json")
    assert code == exits.OK, output
    said = json.loads(output)
    assert said["attempt"] == attempt + 1
    assert (said["ray_status"], said["exit_code"]) == ("SUCCEEDED", 0)
    assert said["counts"]["ok"] == 4
    assert job.edits() == before
    assert "0 computed" in job.call("logs", job.out)[1]


def test_no_secret_and_no_unlisted_variable_reaches_the_cluster(job, cluster, monkeypatch):
    from ray.job_submission import JobSubmissionClient

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    job.environment = {"HF_TOKEN": "s3cret", "RAY_AUTH_TOKEN": "s3cret"}
    try:
        code, output = job.submitted()
    finally:
        job.environment = {}
    assert code == exits.OK, output
    assert "s3cret" not in output
    jobs = JobSubmissionClient(cluster.url).list_jobs()
    assert len(jobs) >= 2
    assert "s3cret" not in str(jobs)


def test_photos_added_are_computed_alone_and_a_bad_one_is_exit_3(job):
    collection(job.photos, 2, first_seed=100)
    (job.photos / "cut.jpg").write_bytes(b"\xff\xd8 no photo")
    before = job.edits()
    code, output = job.submitted()
    assert code == exits.ROWS_FAILED, output
    assert job.edits() == before + 2
    assert job.results().loc["cut.jpg", "status"] == "failed"


def test_ctrl_c_leaves_the_job_and_says_how_to_go_on_and_stop_ends_it_in_order(cluster, tmp_path):
    job = Job(tmp_path / "it's", cluster.url, 40, 2.0)
    process = job.submit()
    until(process, "loading model")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=LONG)
    assert process.returncode == exits.SIGINT, output
    assert "doodl-batch logs " in output
    assert "doodl-batch stop " in output
    assert "Traceback" not in output
    job.wait_for_edits(2)
    assert job.status()["submission"]["ray_status"] == "RUNNING"
    code, output = job.call("stop", job.out)
    assert code == exits.OK, output
    status = job.status()
    assert status["submission"]["ray_status"] == "STOPPED"
    assert status["counts"]["ok"] >= 2
    assert status["counts"]["pending"] > 0
    assert job.staged() == 0  # published, not only staged: it ended in order
    assert f"{status['counts']['ok']:,} photos are committed" in output
    code, output = job.call("logs", job.out, "-f")
    assert (code, "stopped by SIGTERM" in output) == (exits.SIGTERM, True)
    job.slow_down(0)
    code, output = job.submitted("--detach")
    assert (code, output.strip().splitlines()[-1][-2:]) == (exits.OK, "-2"), output
    code, output = job.call("logs", job.out, "--follow")
    assert code == exits.OK, output
    assert (job.results()["status"] == "ok").all()
    # Of the first attempt, only the rows in flight may have been done again.
    assert job.edits() <= 40 + 2


def test_a_path_that_the_cluster_does_not_see_is_one_line_and_nothing_is_submitted(
    cluster, tmp_path
):
    job = Job(tmp_path / "job", cluster.url, 2, 0)
    # A folder that only processes holding this descriptor see at this path.
    folder = os.open(job.folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.dup2(folder, 90)
        here = "/proc/self/fd/90"
        spec = {**json.loads(job.spec.to_json()), "photos": f"{here}/photos", "out": f"{here}/out"}
        (job.folder / "spec.json").write_text(json.dumps(spec))
        process = job.start("run", job.folder / "spec.json", pass_fds=[90])
        output, _ = process.communicate(timeout=LONG)
        doctor = job.start("doctor", "--out", f"{here}/out", "--json", pass_fds=[90])
        checks = json.loads(doctor.communicate(timeout=LONG)[0])
    finally:
        os.close(folder)
        os.close(90)
    assert process.returncode == exits.ENVIRONMENT, output
    assert output.count("error:") == 1
    assert f"{here}/out/_state/submissions/" in output
    assert "does not exist on the cluster's node" in output
    assert "submitted as" not in output
    assert [c["state"] for c in checks if c["name"] == "shared path"] == ["bad"]
    assert list((job.folder / "out" / "_state" / "submissions").iterdir()) == []


def test_a_worker_that_asks_for_more_than_any_node_has_is_named(cluster, tmp_path):
    job = Job(tmp_path / "job", cluster.url, 2, 0)
    spec = {**json.loads(job.spec.to_json()), "resources": {"a100": 0.5}}
    (job.folder / "spec.json").write_text(json.dumps(spec))
    code, output = job.submitted()
    assert code == exits.ENVIRONMENT, output
    assert "asks for, 1 CPU, 0.5 a100; ask for less, or let the cluster grow" in output


def test_an_environment_that_cannot_be_made_is_exit_6_with_its_reason(cluster, tmp_path):
    job = Job(tmp_path / "job", cluster.url, 2, 0)
    (job.folder / "env.json").write_text('{"py_modules": ["https://127.0.0.1:9/no-such.zip"]}')
    code, output = job.submitted()
    assert code == exits.ENVIRONMENT, output
    assert " failed: " in output.split("error:")[-1]
    assert "Traceback" not in output.split("error:")[-1]


def test_a_cluster_grows_to_max_workers_and_runs_the_images_code(tmp_path):
    if not port_is_free(6379):
        pytest.skip("the provider of growing nodes needs port 6379, and another has it")
    growing = StartedCluster(RAY_AUTH_MODE="disabled", PYTHONPATH=str(TESTS.parent))
    try:
        job = Job(tmp_path / "job", growing.start_growing(2).url, 30, 1.0)
        spec = {**json.loads(job.spec.to_json()), "editor": "tests.fakes:load_editor"}
        (job.folder / "spec.json").write_text(json.dumps(spec))
        code, output = job.submitted("--code", "image")
        assert code == exits.ENVIRONMENT, output
        assert "no node of this cluster has what one worker asks for, 1 CPU" in output
        # One more than there will ever be room for: it is not waited for.
        (job.folder / "spec.json").write_text(json.dumps({**spec, "num_workers": 3}))
        code, output = job.submitted("--code", "image")
        assert code == exits.OK, output
        assert job.edits() == 30
        # Both nodes of one CPU came to be: two photos were in work at once.
        ledger = job.ledger().sort_values("started_at")
        assert (ledger["started_at"].shift(-1) < ledger["finished_at"]).any()
    finally:
        growing.stop()


@pytest.fixture(scope="module")
def started():
    """`ray start --head` and a second node, both behind a token."""
    running = StartedCluster(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN)
    try:
        yield running.start(1, 1)
    finally:
        running.stop()


def test_a_started_cluster_wants_its_token_and_says_so(started, tmp_path):
    job = Job(tmp_path / "job", started.gcs, 2, 0)
    none = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}
    for environment, words in (
        (none, "asks for a token"),
        ({**none, "RAY_AUTH_TOKEN": "wr0ng"}, "refuses the token of RAY_AUTH_TOKEN"),
    ):
        for address in (started.gcs, started.url):
            job.environment, job.address = environment, address
            code, output = job.submitted()
            assert code == exits.ENVIRONMENT, output
            # Ray's client, asked by a head's own port, says a line of its own before.
            assert [line.startswith("error: ") for line in output.splitlines()].count(True) == 1
            assert (words if address == started.url else "asks for a token") in output
            assert "wr0ng" not in output
    job.environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    job.address = started.gcs
    code, output = job.submitted()
    assert code == exits.OK, output
    assert TOKEN not in output
    job.environment, job.address = none, started.url
    checks = json.loads(job.call("doctor", "--json")[1])
    assert [c["state"] for c in checks if c["name"] == "cluster token"] == ["bad"]


def test_a_draining_node_gets_no_new_rows_and_the_job_finishes(started, tmp_path):
    job = Job(tmp_path / "job", started.url, 16, 2.0, RAY_AUTH_TOKEN=TOKEN)
    process = job.submit()
    until(process, "loading model")
    job.wait_for_edits(4)
    nodes = subprocess.run(
        [RAY, "list", "nodes", "--format", "json", "--address", started.url],
        env=bare_environment(**started.environment), capture_output=True, text=True, timeout=120,
        check=True,
    )  # fmt: skip
    (node,) = [n["node_id"] for n in json.loads(nodes.stdout) if not n["is_head_node"]]
    drained = subprocess.run(
        [RAY, "drain-node", "--address", started.gcs, "--node-id", node, "--reason",
         "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "test",
         "--deadline-remaining-seconds", "1200"],
        env=bare_environment(**started.environment), capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert drained.returncode == 0, drained.stdout + drained.stderr
    at = pd.Timestamp.now("UTC")
    output, _ = process.communicate(timeout=LONG)
    assert process.returncode == exits.OK, output
    assert f":{node[:8]} is draining" in output
    ledger = job.ledger()
    on_it = ledger[ledger["node"].str.endswith(node[:8])]
    assert len(on_it) >= 1
    # The driver looks every five seconds, and a row in work is finished.
    assert on_it["started_at"].max() < at + pd.Timedelta(seconds=10)
    assert (job.results()["status"] == "ok").all()
    assert job.edits() == 16


def test_a_killed_head_and_a_new_cluster_cost_no_committed_row(tmp_path):
    clusters = [StartedCluster(RAY_AUTH_MODE="disabled") for _ in range(2)]
    try:
        job = Job(tmp_path / "job", clusters[0].start(1, 1).url, 24, 1.0)
        process = job.submit()
        until(process, "loading model")
        wait_for(lambda: len(done_files(job)) >= 6, "committed photos", 300)
        clusters[0].kill_head()
        output, _ = process.communicate(timeout=LONG)
        assert process.returncode == exits.ENVIRONMENT, output
        assert "stopped answering; what is committed stays" in output
        time.sleep(3)  # the other node's worker may finish the photo it holds
        committed = done_files(job)
        assert 6 <= len(committed) < 24
        status = job.status()  # with no cluster at all
        assert status["submission"]["ray_status"] is None
        before = job.edits()
        job.slow_down(0.2)
        job.address = clusters[1].start(1, 1).url
        code, output = job.submitted()
        assert code == exits.OK, output
        assert f"{24 - len(committed)} computed" in output
        assert (job.results()["status"] == "ok").all()
        assert len(job.results()) == 24
        after = done_files(job)
        assert {name: after[name] for name in committed} == committed
        assert job.edits() - before == 24 - len(committed)
        print(f"{len(committed)} committed at the kill, {job.edits() - 24} edits done twice")
        assert job.status()["submission"]["attempt"] == 2
    finally:
        for one in clusters:
            one.stop()


def done_files(job):
    """The committed photos by name: when they were written, and how long they are.

    A photo is committed by its staged row, or by a results part once that is gone.
    """
    rows = [*(job.out / "_state" / "staging").glob("*.parquet"), *(job.out / "results").glob("*")]
    names = set()
    for path in rows:
        try:
            names.update(pd.read_parquet(path, columns=["row_id"])["row_id"])
        except FileNotFoundError:  # published in between
            continue
    files = {name: job.out / "edited" / name for name in names}
    return {name: (p.stat().st_mtime_ns, p.stat().st_size) for name, p in files.items()}
