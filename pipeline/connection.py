"""Which Ray the workers run on: a private one on this machine, or the cluster whose job this is."""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import ray

from manifests.deadline import DeadlineError, within
from pipeline.errors import UnusableEnvironmentError
from pipeline.liveness import UNREACHABLE_SECONDS, Daemon, Watch

_START_TRIES = 3
_ANSWER_SECONDS = 30.0
# Measured with both daemons dead: 16 s. Ray itself ends a driver a minute after its GCS's death.
_SHUTDOWN_SECONDS = 40.0
_TOKEN = "RAY_AUTH_TOKEN"
# One for the process: Ray reads it once.
_private_token = secrets.token_hex(32)
_UNREACHABLE = (OSError, RuntimeError, ValueError, ray.exceptions.RayError)

T = TypeVar("T")


class Connection(Protocol):
    """A Ray this process is connected to. `watch` says whether its daemons still answer."""

    grows: bool
    watch: Watch

    def begin_again(self) -> None:
        """Start it anew, if it is ours. Raises: UnusableEnvironmentError if it is not."""

    def close(self) -> None:
        """Leave it; a private one ends."""


class PrivateRay:
    """A Ray on this machine for one run: no dashboard, no usage statistics, gone with the run.

    Args:
        resources: names beside CPU and GPU that workers ask for; on one's own machine they are
            always there.
    Raises: UnusableEnvironmentError if Ray cannot start (no shared memory).
    """

    grows = False

    def __init__(self, num_cpus: int, resources: Mapping[str, float] | None = None) -> None:
        # Workers get the driver's folder first on sys.path: a user's `jobs/` would shadow ours.
        self._back = Path.cwd()
        self._neutral = tempfile.mkdtemp(prefix="doodl-batch-")
        os.chdir(self._neutral)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        # The private cluster is ours alone; an address in the environment is another's.
        os.environ.pop("RAY_ADDRESS", None)
        # Else Ray makes one in the user's home, where it may not be able to write.
        self._own_token = _TOKEN not in os.environ
        os.environ.setdefault(_TOKEN, _private_token)
        _quiet()
        self._num_cpus, self._resources = num_cpus, dict(resources or {})
        self.watch = Watch([])
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        """Start it, again if need be: on a busy machine its parts miss Ray's own time limits."""
        for attempt in range(_START_TRIES):
            try:
                _init(
                    address="local",
                    num_cpus=self._num_cpus,
                    resources=self._resources,
                    include_dashboard=False,
                    # Only URIs and small rows pass through it; the default is 30 % of the memory.
                    object_store_memory=128 * 2**20,
                )
                self.watch = _watch(own=True)
            except Exception as error:  # Ray raises a bare one where its node starts too slowly
                _shut_down()
                if attempt + 1 < _START_TRIES and not isinstance(error, (OSError, ValueError)):
                    continue
                raise UnusableEnvironmentError(
                    f"Ray cannot start here: {error}; try --runner inline."
                ) from error
            return

    def begin_again(self) -> None:
        """End what is left of it and start it anew, in this same process.

        Raises: UnusableEnvironmentError if it does not end, or cannot start.
        """
        if not _shut_down():
            raise UnusableEnvironmentError("what is left of the private Ray does not end")
        self._start()

    def close(self) -> None:
        """End it, and go back to the folder the run was started in."""
        _shut_down()
        if self._own_token:
            os.environ.pop(_TOKEN, None)
        os.chdir(self._back)
        # Empty, so nothing is lost; a file that something left there stays with its folder.
        if not any(Path(self._neutral).iterdir()):
            Path(self._neutral).rmdir()


class JobRay:
    """The cluster that runs this process as its job: Ray's job runtime has set RAY_ADDRESS.

    Its working_dir, code and environment came with the submission, and the workers inherit them.
    Raises: UnusableEnvironmentError if the cluster cannot be joined.
    """

    grows = True

    def __init__(self) -> None:
        _quiet()
        try:
            _init(address=os.environ.get("RAY_ADDRESS", "auto"))
            self.watch = _watch(own=False)
        except _UNREACHABLE as error:
            raise UnusableEnvironmentError(
                f"the job's Ray cluster cannot be joined: {error}"
            ) from error

    def begin_again(self) -> None:
        """A cluster is not ours to start."""
        raise UnusableEnvironmentError("the cluster is to be mended first")

    def close(self) -> None:
        """Leave the cluster; its actors of this job end."""
        _shut_down()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep this process's own handler of SIGTERM: `ray.init` sets another."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        with suppress(ValueError):  # not the main thread, in which nobody sets one
            signal.signal(signal.SIGTERM, handler)


def _init(**options: Any) -> None:
    with _own_signals():
        ray.init(
            log_to_driver=False, logging_level=logging.ERROR, configure_logging=False, **options
        )


def _shut_down() -> bool:
    """Leave Ray, and end its daemons if they are ours; return whether that came to an end."""
    if not ray.is_initialized():
        return True
    try:
        within(_SHUTDOWN_SECONDS, ray.shutdown)
    except DeadlineError:
        # Ray would do the same once more as this process ends, and wait again.
        atexit.unregister(ray.shutdown)
        with suppress(AttributeError):  # its daemons also end with this process, by the kernel
            ray._private.worker._global_node.kill_all_processes(check_alive=False)
        return False
    return True


def _watch(*, own: bool) -> Watch:
    """Return a watch on the daemons that this process depends on, and on an `own` Ray's folder.

    By `ray.nodes()` and the runtime context, both public; what a version does not tell is not
    looked at.
    """
    if not ray.is_initialized():
        return Watch([])
    context = ray.get_runtime_context()
    node_id = context.get_node_id()
    nodes: list[dict[str, Any]] = answered(ray.nodes)
    node = next((n for n in nodes if n["NodeID"] == node_id), {})
    whose = "Ray's" if own else "the cluster's"
    daemons = []
    if node.get("NodeManagerPort"):
        daemons.append(
            Daemon(f"{whose} raylet", node["NodeManagerAddress"], node["NodeManagerPort"])
        )
    host, _, port = (getattr(context, "gcs_address", None) or "").rpartition(":")
    if host and port.isdigit():
        # A cluster may have somebody who starts its GCS again.
        patience = 0.0 if own else UNREACHABLE_SECONDS
        daemons.append(Daemon(f"{whose} GCS", host.strip("[]"), int(port), patience))
    socket_path = Path(node.get("RayletSocketName") or "")
    return Watch(daemons, socket_path.parent if own and socket_path.is_absolute() else None)


def answered(call: Callable[[], T]) -> T:
    """Return what a call of Ray returns. Raises: UnusableEnvironmentError if it never does."""
    try:
        return within(_ANSWER_SECONDS, call)
    except DeadlineError as error:
        raise UnusableEnvironmentError(
            f"Ray does not answer ({error}); the same command again goes on from here."
        ) from None


def num_gpus() -> int:
    """Return how many accelerators the connected Ray has now."""
    return int(answered(ray.cluster_resources).get("GPU", 0))


def capacity(need: Mapping[str, float]) -> int:
    """Return how many workers of this need the connected Ray's live nodes hold now."""
    return sum(
        int(min(node["Resources"].get(name, 0) / amount for name, amount in need.items()) + 1e-9)
        for node in answered(ray.nodes)
        if node["Alive"]
    )


def draining_nodes() -> frozenset[str]:
    """Return the ids of the nodes that are about to go (spot reclaim, scale-down, `drain-node`).

    Ray 2.60 has no public call for it: `ray.nodes()` and the state API know alive and dead only.
    This is what its own Data and Train libraries ask; where a version lacks it, nothing drains,
    and a node's end is met as the death of its workers.
    """
    try:
        return frozenset(answered(ray._private.state.state.get_draining_nodes))
    except (AttributeError, *_UNREACHABLE):
        return frozenset()


def _quiet() -> None:
    # It says at each start that a private cluster has a token, on a run's own output.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    # When its raylet dies it prints twenty lines of that one's log, where we say one.
    # Not public: a version that has no such function prints what it likes.
    with suppress(AttributeError):
        print_lines = ray._private.worker.print_to_stdstream
        if not isinstance(print_lines, _AllButObituaries):
            ray._private.worker.print_to_stdstream = _AllButObituaries(print_lines)


@dataclass(frozen=True)
class _AllButObituaries:
    print_lines: Callable[..., None]

    def __call__(self, data: Mapping[str, Any], *arguments: Any, **options: Any) -> None:
        if not any("Raylet is terminated" in line for line in data.get("lines", ())):
            self.print_lines(data, *arguments, **options)
