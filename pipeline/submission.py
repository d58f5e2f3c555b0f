"""A job given to a Ray cluster: submitted, followed, stopped, through Ray's JobSubmissionClient."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.exceptions
from ray.job_submission import JobStatus, JobSubmissionClient

from manifests.submissions import attempt_of
from pipeline.entrypoint import entrypoint, probe_command
from pipeline.preflight import Cluster, ClusterError, find_cluster
from pipeline.shared import MissingPathError, parse_problem
from pipeline.shipping import build_wheel, runtime_env
from pipeline.spec import version

STOPPED_EXIT = 143
LOST_EXIT = 6

# A quiet cluster starts a job's shell in two seconds; the job itself looks again.
_PROBE_SECONDS = 8.0
_POLL_SECONDS = 0.2
_STARTING_SECONDS = 120.0
_SILENCE_SECONDS = 30.0
# Versions of Ray before tokens have no such error.
_REFUSALS: tuple[type[Exception], ...] = tuple(
    {getattr(ray.exceptions, "AuthenticationError", PermissionError)}
)
_ADDRESS_VARIABLES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")


@dataclass(frozen=True)
class JobState:
    """What the cluster says of a job. `exit_code` is the job's own, None if it never gave one."""

    submission_id: str
    status: str
    exit_code: int | None
    message: str

    @property
    def ended(self) -> bool:
        return JobStatus(self.status).is_terminal()

    @property
    def outcome(self) -> int:
        """The exit code that a follower gives for an ended job."""
        if self.status == JobStatus.STOPPED:
            return STOPPED_EXIT
        if self.exit_code is None:
            # Its environment could not be made, or its head is gone: the cluster's fault.
            return 0 if self.status == JobStatus.SUCCEEDED else LOST_EXIT
        return self.exit_code if self.exit_code >= 0 else 128 - self.exit_code


class JobServer:
    """A cluster's job server. Raises: ClusterError if it stops answering."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        _quiet()
        with _asking(cluster), _own_address():
            self._client = JobSubmissionClient(cluster.url, headers=cluster.headers)

    def attempts(self, name: str) -> list[JobState]:
        """Return the jobs whose id is `name`-attempt, by attempt."""
        with _asking(self.cluster):
            jobs = self._client.list_jobs()
        ours = [job for job in jobs if str(job.submission_id).startswith(f"{name}-")]
        found = [_state(job) for job in ours if attempt_of(job.submission_id) > 0]
        return sorted(found, key=lambda state: attempt_of(state.submission_id))

    def state(self, submission_id: str) -> JobState | None:
        """Return a job's state, None if the cluster knows no such job (it may be a new one)."""
        found = self.attempts(submission_id.rpartition("-")[0])
        return next((state for state in found if state.submission_id == submission_id), None)

    def missing_path(self, paths: Sequence[str]) -> MissingPathError | None:
        """Return the first of the paths that the cluster's head lacks, None if it has them all.

        A job of a line of shell, and so without our code, tells within seconds.
        """
        probe = f"doodl-batch-check-{secrets.token_hex(8)}"
        with _asking(self.cluster):
            self._submit(entrypoint=probe_command(paths), submission_id=probe)
            deadline = time.monotonic() + _PROBE_SECONDS
            while not self._client.get_job_status(probe).is_terminal():
                if time.monotonic() > deadline:
                    self._client.stop_job(probe)
                    return None
                time.sleep(_POLL_SECONDS)
            # It stays in the cluster's list: deleted at once, it comes back there as a failed job.
            return parse_problem(self._client.get_job_logs(probe))

    def submit(
        self,
        submission_id: str,
        arguments: Sequence[str],
        *,
        user_env: dict[str, Any],
        code: str,
        stop_wait_seconds: float,
    ) -> None:
        """Start `doodl-batch run ARGUMENTS` as a job of this id.

        Args:
            user_env: of `read_runtime_env`. code: `wheel` ships this installation's packages,
                `image` takes those of the same version that the cluster has.
        Raises: IdTakenError if the cluster has a job of this id.
        """
        with tempfile.TemporaryDirectory(prefix="doodl-batch-") as folder:
            empty = Path(folder, "empty")
            empty.mkdir()
            wheel = build_wheel(Path(folder)) if code == "wheel" else None
            environment = runtime_env(user_env, empty, wheel, stop_wait_seconds)
            with _asking(self.cluster):
                try:
                    self._submit(
                        entrypoint=self._entrypoint(arguments, user_env, code),
                        submission_id=submission_id,
                        runtime_env=environment,
                        metadata={"doodl_batch_version": version()},
                    )
                except RuntimeError as error:
                    if "already exists" in str(error):
                        raise IdTakenError(submission_id) from error
                    raise

    def _submit(self, **job: Any) -> None:
        """Submit, patiently with a cluster that answers and whose parts are still starting."""
        deadline = time.monotonic() + _STARTING_SECONDS
        while True:
            try:
                self._client.submit_job(**job)
                return
            except RuntimeError as error:
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(1)

    def _entrypoint(self, arguments: Sequence[str], user_env: dict[str, Any], code: str) -> str:
        candidates = ['"$VIRTUAL_ENV/bin/python"', '"$CONDA_PREFIX/bin/python"', "python"]
        candidates += ["python3", shlex.quote(sys.executable)]
        if "py_executable" in user_env:
            candidates = [shlex.quote(str(user_env["py_executable"]))]
        return entrypoint(arguments, candidates, self.cluster.ray_version, in_image=code == "image")

    def logs(self, submission_id: str) -> str:
        """Return what a job has said so far."""
        with _asking(self.cluster):
            return self._client.get_job_logs(submission_id)

    def follow(
        self, submission_id: str, show: Callable[[str], None], tell: Callable[[str], None]
    ) -> JobState:
        """Show a job's logs as they come, and return its state once it has ended.

        Args:
            tell: where a line goes on why there are no logs yet.
        Raises: ClusterError if the cluster is gone for longer than a moment.
        """
        shown = 0
        while True:
            try:
                shown = asyncio.run(self._tail(submission_id, show, tell, shown))
            except _BrokenTailError as broken:
                shown = broken.shown
            state = self.state(submission_id)
            if state is None:
                raise ClusterError(
                    "address", f"the cluster at {self.cluster.url} has lost job {submission_id}."
                )
            if state.ended:
                return state
            time.sleep(1)
            self._check_alive()

    def _check_alive(self) -> None:
        trusted = self.cluster.token is not None
        try:
            find_cluster(self.cluster.url, check_versions=False, with_token=trusted)
        except ClusterError as error:
            raise _silent(self.cluster) from error

    async def _tail(
        self,
        submission_id: str,
        show: Callable[[str], None],
        tell: Callable[[str], None],
        skip: int,
    ) -> int:
        """Show the logs from character `skip` on until they end; return how many were seen."""
        seen = 0
        chunks = self._client.tail_job_logs(submission_id).__aiter__()
        try:
            while True:
                following = asyncio.ensure_future(chunks.__anext__())
                while not (await asyncio.wait({following}, timeout=_SILENCE_SECONDS))[0]:
                    # A head that vanished without a word sends nothing, ever.
                    await asyncio.to_thread(self._check_alive)
                    state = await asyncio.to_thread(self.state, submission_id)
                    if state is not None and state.status == JobStatus.PENDING:
                        tell(" ".join(state.message.split()))
                text = following.result()
                fresh = text[max(0, skip - seen) :]
                seen += len(text)
                if fresh:
                    show(fresh)
        except StopAsyncIteration:
            return max(seen, skip)
        except ClusterError:
            raise
        except Exception as error:  # the tail is a web socket: whatever broke it, look again
            raise _BrokenTailError(max(seen, skip)) from error

    def stop(self, submission_id: str, timeout_seconds: float) -> JobState | None:
        """Ask a job to end in order, and return its state once it has, or after the timeout."""
        with _asking(self.cluster):
            self._client.stop_job(submission_id)
        deadline = time.monotonic() + timeout_seconds
        while True:
            state = self.state(submission_id)
            if state is None or state.ended or time.monotonic() > deadline:
                return state
            time.sleep(_POLL_SECONDS)


class IdTakenError(Exception):
    """The cluster has a job of this id already: somebody was quicker."""


class _BrokenTailError(Exception):
    """The logs stopped coming; `shown` characters of them are known."""

    def __init__(self, shown: int) -> None:
        self.shown = shown


def dashboard_url(address: str, token: str | None) -> str:
    """Return the URL of the job server of the cluster whose head is at `host:port` or `auto`.

    Raises: ClusterError if the head wants a token and is shown none, or a wrong one.
    """
    headers = Cluster(address, "", token=token).headers
    try:
        with _own_address():
            return JobSubmissionClient(address, headers=headers).get_address()
    except _REFUSALS as error:
        raise ClusterError(
            "token",
            f"the Ray head at {address} asks for a token, and refuses what RAY_AUTH_MODE and "
            "RAY_AUTH_TOKEN give it; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or give the "
            "dashboard's address, such as http://HOST:8265.",
        ) from error


def _state(job: Any) -> JobState:
    return JobState(
        job.submission_id, JobStatus(job.status).value, job.driver_exit_code, job.message or ""
    )


def _silent(cluster: Cluster) -> ClusterError:
    return ClusterError(
        "address",
        f"the cluster at {cluster.url} stopped answering; what is committed stays, and once it is "
        "back the same command follows the job, or goes on where it ended.",
    )


def _quiet() -> None:
    # Each upload and each closed socket is a line of theirs among a person's own.
    for name in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk"):
        logging.getLogger(f"ray.{name}").setLevel(logging.WARNING)
    logging.getLogger("ray._private.runtime_env.packaging").setLevel(logging.WARNING)


@contextmanager
def _own_address() -> Iterator[None]:
    """Let Ray's client take the address it is given: the environment's would override it."""
    kept = {name: os.environ.pop(name) for name in _ADDRESS_VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


@contextmanager
def _asking(cluster: Cluster) -> Iterator[None]:
    """Turn what Ray's client raises into one line."""
    import requests

    try:
        yield
    except _REFUSALS as error:
        raise ClusterError("token", f"the cluster at {cluster.url} refuses our token.") from error
    except (requests.RequestException, OSError) as error:
        raise _silent(cluster) from error
    except RuntimeError as error:
        said = " ".join(str(error).split())[-300:]
        raise ClusterError("address", f"the cluster at {cluster.url} says: {said}") from error
