"""SIGKILL at random times to workers and drivers; nodes lost; workers that sleep and wake."""

import contextlib
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest

from tests.clusters import MARK, START_TRIES, bare_environment, kill_marked
from tests.fakes import LOG, SECONDS
from tests.faults.harness import (
    NICE,
    ROOT,
    Standing,
    all_recoveries,
    delivered,
    kill_rounds,
    make_job,
    running,
    wait_until,
)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("rounds", "count"),
    [pytest.param(2, 100, marks=pytest.mark.slow), pytest.param(20, 1000, marks=pytest.mark.slow)],
)
def test_random_kills_of_workers_and_drivers_lose_no_row_and_double_none(
    tmp_path, faults, rounds, count
):
    spec = make_job(tmp_path, count)
    drivers, workers = kill_rounds(spec, tmp_path, rounds, seed=rounds)
    standing = Standing(spec, count)
    standing.check()
    assert standing.statuses == {"ok": count}
    # At most the rows in flight, one to a worker, are edited twice for each kill.
    edits = len((tmp_path / "edits.log").read_text().splitlines())
    assert edits <= count + rounds * spec.num_workers
    again = f"{edits - count} edits done twice"
    faults.add(f"SIGKILL of the driver, {(rounds + 1) // 2} times", standing, drivers, again)
    faults.add(f"SIGKILL of a worker, {rounds // 2} times", standing, workers)


@pytest.mark.slow
def test_a_worker_that_sleeps_past_its_deadline_is_killed_for_real(tmp_path, faults):
    spec = make_job(tmp_path, 20, row_timeout_seconds=3.0)
    with running(spec, tmp_path) as run:
        wait_until(lambda: delivered(spec) >= 2, "photos", run=run)
        worker = run.workers()[0]
        worker.send_signal(signal.SIGSTOP)
        begun = time.monotonic()
        gone = wait_until(lambda: not _lives(worker), "its end", run=run)
        assert run.wait() in (0, 3), run.output
        assert time.monotonic() - begun < 120
    standing = Standing(spec, 20)
    standing.check()
    assert set(standing.errors) <= {"RowTimeout"}
    faults.add("SIGSTOP of a worker, --row-timeout 3", standing, gone, "its process is gone")


def _lives(process):
    with contextlib.suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


class Nodes:
    """Ray's own test cluster: a head without CPUs and nodes of one CPU that come and go."""

    SCRIPT = """
import sys
from ray.cluster_utils import Cluster
small = dict(num_gpus=0, object_store_memory=100_000_000)
cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=0, **small))
nodes = [cluster.add_node(num_cpus=1, **small) for _ in range(2)]
print(cluster.address, flush=True)
for line in sys.stdin:
    if line == "lose\\n":
        cluster.remove_node(nodes.pop(), allow_graceful=False)
    if line == "add\\n":
        nodes.append(cluster.add_node(num_cpus=1, **small))
    print("done", flush=True)
cluster.shutdown()
"""

    def __init__(self, folder):
        self.folder, self.mark = Path(folder), uuid.uuid4().hex
        self.environment = bare_environment(
            **{MARK: self.mark}, **NICE, RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0",
            RAY_health_check_initial_delay_ms="0", RAY_health_check_period_ms="1000",
            RAY_health_check_timeout_ms="2000", RAY_health_check_failure_threshold="5",
        )  # fmt: skip
        for _ in range(START_TRIES):
            self._start()
            if self.address:
                return
            self.stop()
        raise AssertionError("Ray's test cluster does not start")

    def _start(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.SCRIPT], cwd=self.folder, text=True, env=self.environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.address = self.process.stdout.readline().strip()

    def say(self, word):
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline().strip() == "done"

    def drive(self, spec, seconds):
        """Start a driver that joins the cluster, as a submitted job's does."""
        path = self.folder / "job.json"
        path.write_text(spec.to_json())
        code = (
            "import sys\nfrom pathlib import Path\nfrom pipeline.run import run_job\n"
            "from pipeline.spec import JobSpec\n"
            "sys.exit(run_job(JobSpec.from_json(Path(sys.argv[1]).read_text())).exit_code)"
        )
        return subprocess.Popen(
            [sys.executable, "-c", code, str(path)], cwd=ROOT,
            env={**self.environment, "RAY_ADDRESS": self.address, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def processes(self, name):
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and name in " ".join(process.cmdline()):
                    yield process

    def stop(self):
        kill_marked(self.mark)
        self.process.wait()


@pytest.fixture
def nodes(tmp_path, monkeypatch):
    # What the fake edit is told reaches the workers by the nodes' own environment.
    monkeypatch.setenv(SECONDS, "0.2")
    monkeypatch.setenv(LOG, str(tmp_path / "edits.log"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    cluster = Nodes(tmp_path)
    cluster.environment["PYTHONPATH"] = str(ROOT)
    yield cluster
    cluster.stop()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_lost_node_costs_no_row_and_a_new_one_takes_its_place(tmp_path, nodes, faults):
    spec = make_job(tmp_path, 60, runner="cluster")
    driver = nodes.drive(spec, 0.2)
    wait_until(lambda: delivered(spec) >= 5, "photos")
    nodes.say("lose")
    nodes.say("add")
    assert driver.wait(600) == 0
    standing = Standing(spec, 60)
    standing.check()
    assert standing.statuses == {"ok": 60}
    recoveries = all_recoveries(spec)
    assert recoveries
    faults.add("a node lost, another added", standing, recoveries)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_worker_given_up_for_dead_that_wakes_up_doubles_no_row(tmp_path, nodes, faults):
    """Its node answers no more, its row is done elsewhere; then it goes on where it was."""
    spec = make_job(tmp_path, 60, runner="cluster")
    driver = nodes.drive(spec, 0.2)
    wait_until(lambda: delivered(spec) >= 5, "photos")
    worker = next(nodes.processes("ray::_Worker"))
    raylet = psutil.Process(worker.ppid())
    raylet.suspend()
    time.sleep(0.1)
    worker.suspend()
    try:
        wait_until(lambda: died_and_done_again(spec), "the row done elsewhere", 300)
    finally:
        worker.resume()  # its daemon still sleeps: it finishes its photo and commits it
        time.sleep(2.0)
        raylet.resume()
    assert driver.wait(600) == 0
    standing = Standing(spec, 60)
    standing.check()
    assert standing.statuses == {"ok": 60}
    faults.add("zombie worker: SIGSTOP, requeue, SIGCONT", standing, all_recoveries(spec))


def died_and_done_again(spec):
    """Whether a worker has died and photos have gone on since, as the run's log tells."""
    died = False
    for path in Path(spec.out).glob("_state/logs/*.jsonl"):
        for line in path.read_text().splitlines():
            died |= '"worker_died"' in line
            if died and '"attempt": 2' in line and '"ok"' in line:
                return True
    return False


@pytest.mark.slow
def test_of_two_drivers_at_once_one_leaves(tmp_path, faults):
    spec = make_job(tmp_path, 30)
    with running(spec, tmp_path) as first, running(spec, tmp_path) as second:
        codes = sorted([first.wait(), second.wait()])
        said = first.output + second.output
    assert codes == [0, 5], said
    assert "another driver is running" in said
    standing = Standing(spec, 30)
    standing.check()
    faults.add("two drivers at once", standing, None, "the second leaves with exit 5")
