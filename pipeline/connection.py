"""Which Ray the workers run on: a private one on this machine, or the cluster whose job this is."""

from __future__ import annotations

import logging
import os
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import ray

from pipeline.errors import UnusableEnvironmentError

_START_TRIES = 3
_TOKEN = "RAY_AUTH_TOKEN"
# One for the process: Ray reads it once.
_private_token = secrets.token_hex(32)
_UNREACHABLE = (OSError, RuntimeError, ValueError, ray.exceptions.RayError)


class Connection(Protocol):
    """A Ray this process is connected to."""

    grows: bool

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
        try:
            self._start(num_cpus, resources)
        except BaseException:
            self.close()
            raise

    @staticmethod
    def _start(num_cpus: int, resources: Mapping[str, float] | None) -> None:
        """Start it, again if need be: on a busy machine its parts miss Ray's own time limits."""
        for attempt in range(_START_TRIES):
            try:
                ray.init(
                    address="local",
                    num_cpus=num_cpus,
                    resources=dict(resources or {}),
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    # Only URIs and small rows pass through it; the default is 30 % of the memory.
                    object_store_memory=128 * 2**20,
                    configure_logging=False,
                )
            except Exception as error:  # Ray raises a bare one where its node starts too slowly
                ray.shutdown()
                if attempt + 1 < _START_TRIES and not isinstance(error, (OSError, ValueError)):
                    continue
                raise UnusableEnvironmentError(
                    f"Ray cannot start here: {error}; try --runner inline."
                ) from error
            return

    def close(self) -> None:
        """End it, and go back to the folder the run was started in."""
        if ray.is_initialized():
            ray.shutdown()
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
            ray.init(
                address=os.environ.get("RAY_ADDRESS", "auto"),
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=False,
            )
        except _UNREACHABLE as error:
            raise UnusableEnvironmentError(
                f"the job's Ray cluster cannot be joined: {error}"
            ) from error

    def close(self) -> None:
        """Leave the cluster; its actors of this job end."""
        if ray.is_initialized():
            ray.shutdown()


def num_gpus() -> int:
    """Return how many accelerators the connected Ray has now."""
    return int(ray.cluster_resources().get("GPU", 0))


def capacity(need: Mapping[str, float]) -> int:
    """Return how many workers of this need the connected Ray's live nodes hold now."""
    return sum(
        int(min(node["Resources"].get(name, 0) / amount for name, amount in need.items()) + 1e-9)
        for node in ray.nodes()
        if node["Alive"]
    )


def draining_nodes() -> frozenset[str]:
    """Return the ids of the nodes that are about to go (spot reclaim, scale-down, `drain-node`).

    Ray 2.60 has no public call for it: `ray.nodes()` and the state API know alive and dead only.
    This is what its own Data and Train libraries ask; where a version lacks it, nothing drains,
    and a node's end is met as the death of its workers.
    """
    try:
        return frozenset(ray._private.state.state.get_draining_nodes())
    except (AttributeError, *_UNREACHABLE):
        return frozenset()


def _quiet() -> None:
    # It says at each start that a private cluster has a token, on a run's own output.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
