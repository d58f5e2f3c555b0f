"""Ray clusters for the tests: real ones, in their own processes, ended by what they carry.

Every process of a cluster inherits a mark in its environment; nothing else is ever signalled.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import psutil
import requests

MARK = "DOODL_TEST_CLUSTER"
RAY = Path(sys.executable).parent / "ray"
MEMORY_BYTES = 100_000_000
START_SECONDS = 180
START_TRIES = 4


def free_ports(count):
    """Return ports that nothing listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def port_is_free(port):
    with socket.socket() as one:
        return one.connect_ex((_own_ip(), port)) != 0


def bare_environment(**more):
    """The environment of somebody who has set nothing of Ray's and has our venv on the PATH."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") and k != "PYTHONPATH"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    return {**kept, "PATH": path, **more}


def kill_marked(mark):
    """SIGKILL every process that carries the mark, and what they started, until there is none."""
    while True:
        marked = [p for p in psutil.process_iter() if _carries(p, mark)]
        if not marked:
            return
        for process in list(marked):
            # Ray's agents write their names over their environments, marks and all.
            with contextlib.suppress(psutil.Error):
                marked += process.children(recursive=True)
        for process in marked:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(marked, timeout=5)


def _carries(process, mark):
    try:
        return process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


class StartedCluster:
    """`ray start --head` and further nodes, each with its own mark and temporary folder."""

    def __init__(self, **environment):
        # Short: Ray's sockets lie in it, and a socket's path has 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="ray"))
        self.environment = environment
        self.marks = []
        self.port, self.dashboard_port = free_ports(2)
        self.url = f"http://127.0.0.1:{self.dashboard_port}"
        self.gcs = f"{_own_ip()}:{self.port}"

    def start(self, *nodes_cpus, more=()):
        """Start a head and further nodes, with so many CPUs each."""
        agent, client = free_ports(2)
        self._ray_start(
            "--head", "--port", self.port, "--dashboard-port", self.dashboard_port,
            "--dashboard-agent-listen-port", agent, "--ray-client-server-port", client,
            "--num-cpus", nodes_cpus[0], *more,
        )  # fmt: skip
        for cpus in nodes_cpus[1:]:
            (agent,) = free_ports(1)
            self._ray_start(
                "--address", self.gcs, "--num-cpus", cpus, "--dashboard-agent-listen-port", agent
            )
        wait_for(lambda: _answers(self.url), "the dashboard", START_SECONDS)
        return self

    def start_growing(self, most_nodes):
        """Start a head of no CPU whose autoscaler adds nodes of one, up to so many.

        With the provider of Ray's own tests, which starts them on this machine; not by its
        AutoscalingCluster, which first ends every Ray there is.
        """
        cpu = {"node_config": {}, "resources": {"CPU": 1}, "min_workers": 0}
        config = {
            "cluster_name": "growing",
            "max_workers": most_nodes,
            "idle_timeout_minutes": 5,
            "upscaling_speed": 10.0,
            "provider": {
                "type": "fake_multinode", "use_node_id_as_ip": True, "disable_node_updaters": True,
                "disable_launch_config_check": True,
            },
            "available_node_types": {
                "cpu": {**cpu, "max_workers": most_nodes},
                "ray.head.default": {
                    "node_config": {}, "resources": {"CPU": 0}, "max_workers": 0,
                },
            },
            "head_node_type": "ray.head.default",
            "auth": {}, "file_mounts": {}, "cluster_synced_files": [],
            "file_mounts_sync_continuously": False, "rsync_exclude": [], "rsync_filter": [],
            "initialization_commands": [], "setup_commands": [], "head_setup_commands": [],
            "worker_setup_commands": [], "head_start_ray_commands": [],
            "worker_start_ray_commands": [],
        }  # fmt: skip
        self.port = 6379  # the provider knows no other
        self.gcs = f"{_own_ip()}:{self.port}"
        path = self.folder / "growing.json"
        path.write_text(json.dumps(config))
        self.environment = {
            **self.environment, "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"
        }  # fmt: skip
        return self.start(0, more=["--autoscaling-config", path])

    def _ray_start(self, *arguments):
        """Start a node, again if it was too slow: Ray gives its own parts 30 s, however busy."""
        for _ in range(START_TRIES):
            mark = uuid.uuid4().hex
            result = subprocess.run(
                [RAY, "start", *map(str, arguments), "--disable-usage-stats", "--num-gpus", "0",
                 "--object-store-memory", str(MEMORY_BYTES), "--temp-dir", self.folder / mark[:8]],
                env=bare_environment(**{MARK: mark}, **self.environment),
                cwd=self.folder, capture_output=True, text=True, timeout=300, check=False,
            )  # fmt: skip
            if result.returncode == 0:
                self.marks.append(mark)
                return
            kill_marked(mark)
        raise AssertionError(result.stdout + result.stderr)

    def kill_head(self):
        """SIGKILL the head's machine, as it were: the driver and the workers on it too."""
        kill_marked(self.marks[0])

    def stop(self):
        for mark in self.marks:
            kill_marked(mark)
        shutil.rmtree(self.folder, ignore_errors=True)


class UtilsCluster:
    """Ray's own test cluster of two nodes, in another process."""

    def __init__(self):
        for _ in range(START_TRIES):
            self._start()
            if self.gcs:
                break
            said = (self.folder / "err").read_text()
            self.stop()
        assert self.gcs, said
        try:
            wait_for(lambda: _answers(self.url), "the dashboard", START_SECONDS)
        except BaseException:
            self.stop()
            raise

    def _start(self):
        self.folder = Path(tempfile.mkdtemp(prefix="ray"))
        self.mark = uuid.uuid4().hex
        (self.dashboard_port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self.dashboard_port}"
        script = (
            "import sys, ray\n"
            "from ray.cluster_utils import Cluster\n"
            f"head = dict(num_cpus=1, num_gpus=0, include_dashboard=True, "
            f"dashboard_port={self.dashboard_port}, object_store_memory={MEMORY_BYTES})\n"
            "cluster = Cluster(initialize_head=True, head_node_args=head)\n"
            # Of its own, as on a second machine: two nodes in one folder undo each other's
            # installed wheels (Ray 2.60).
            f"cluster.add_node(num_cpus=1, num_gpus=0, object_store_memory={MEMORY_BYTES}, "
            f"temp_dir={str(self.folder / 'second')!r})\n"
            "print(cluster.address, flush=True)\n"
            "sys.stdin.read()\n"
            "cluster.shutdown()\n"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", script], cwd=self.folder, text=True,
            env=bare_environment(
                **{MARK: self.mark}, RAY_AUTH_MODE="disabled", RAY_TMPDIR=str(self.folder),
                RAY_USAGE_STATS_ENABLED="0",
            ),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=(self.folder / "err").open("w"),
        )  # fmt: skip
        self.gcs = self.process.stdout.readline().strip()

    def stop(self):
        self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        kill_marked(self.mark)
        shutil.rmtree(self.folder, ignore_errors=True)


def _answers(url):
    try:
        # 401: it asks for a token.
        return requests.get(f"{url}/api/version", timeout=2).status_code in (200, 401)
    except requests.RequestException:
        return False


def _own_ip():
    import ray

    return ray.util.get_node_ip_address()


def wait_for(condition, what, seconds):
    """Wait until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.1)
