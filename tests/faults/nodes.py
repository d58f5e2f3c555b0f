"""A cluster of several nodes on this machine, for the faults that only a cluster has."""

import contextlib
import subprocess
import sys
import uuid
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.clusters import MARK, START_TRIES, bare_environment, kill_marked
from tests.faults.harness import NICE, ROOT, running


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

    @contextmanager
    def command(self, spec):
        """Run `doodl-batch run` on the cluster, as Ray runs a submitted job's command."""
        kept = {name: value for name, value in self.environment.items() if name != MARK}
        in_job = {"RAY_ADDRESS": self.address, "RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}
        with running(spec, self.folder, **kept, **in_job) as run:
            yield run

    def processes(self, name):
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and name in " ".join(process.cmdline()):
                    yield process

    def stop(self):
        kill_marked(self.mark)
        self.process.wait()
