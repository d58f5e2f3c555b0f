"""Where a job runs, and giving it to a cluster: `--runner`, `--address` and what goes with them."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs import console, exits
from jobs.submitted import JobLines, counts, facts, last_line
from manifests.commits import OutputFolder
from manifests.identity import params_fingerprint
from manifests.submissions import (
    Submission,
    attempt_of,
    read_submissions,
    remove_submission,
    spec_path,
    submission_name,
    write_submission,
)
from pipeline.plan import RunChoice, refuse_folder
from pipeline.preflight import Cluster, ClusterError, find_cluster
from pipeline.shared import in_ray_job, shared_paths
from pipeline.shipping import CODE, read_runtime_env
from pipeline.spec import JobSpec

if TYPE_CHECKING:
    from pipeline.submission import JobServer, JobState

RUNNERS = ("auto", "local", "submit", "inline")
# What a stopped job gets beyond its photos' grace, to publish what is committed.
STOP_MARGIN_SECONDS = 60.0


@dataclass(frozen=True)
class Where:
    """What was asked about the place of a run: `runner`, `address`, and what travels to it."""

    runner: str = "auto"
    address: str | None = None
    code: str = "wheel"
    runtime_env: Path | None = None
    detach: bool = False


@dataclass(frozen=True)
class Place:
    """Where a run goes: `runner` is a job spec's, or `submit` with the cluster that answered."""

    runner: str
    why: str
    cluster: Cluster | None = None
    address: str = ""


def find_place(where: Where, *, spec_runner: str | None = None) -> Place:
    """Return where to run, and a line that says so and why.

    Args:
        spec_runner: a written spec's own runner: `inline` stands, the others are found anew.
    Raises: UsageError; ClusterError if the address does not answer, never another place instead.
    """
    _check(where)
    place = _place(where, spec_runner)
    if where.detach and place.runner != "submit":
        raise exits.UsageError("--detach needs a cluster: give --address or RAY_ADDRESS.")
    return place


def _place(where: Where, spec_runner: str | None) -> Place:
    runner = "inline" if where.runner == "auto" and spec_runner == "inline" else where.runner
    if runner == "inline":
        return Place("inline", "in this process, without Ray")
    if in_ray_job() and runner != "local":
        return Place("cluster", "as this Ray job's driver, on its cluster")
    given = os.environ.get("RAY_ADDRESS", "")
    if runner == "local":
        note = "; RAY_ADDRESS is set and not used" if given else ""
        return Place("local", f"on a private Ray on this machine: --runner local{note}")
    address = where.address or given
    if address in ("", "local"):
        if runner == "submit":
            raise exits.UsageError(
                "--runner submit needs a cluster: give --address or RAY_ADDRESS."
            )
        why = "RAY_ADDRESS is local" if address else "neither --address nor RAY_ADDRESS is set"
        return Place("local", f"on a private Ray on this machine: {why}")
    try:
        cluster = find_cluster(address)
    except ValueError as error:
        if where.address:
            raise exits.UsageError(f"--address: {error}") from error
        raise ClusterError("address", f"RAY_ADDRESS: {error}") from error
    source = "--address" if where.address else "RAY_ADDRESS"
    why = f"as a job of the Ray {cluster.ray_version} cluster at {cluster.url} ({source})"
    return Place("submit", why, cluster, address)


def _check(where: Where) -> None:
    for name, value, choices in (("runner", where.runner, RUNNERS), ("code", where.code, CODE)):
        if value not in choices:
            raise exits.UsageError(f"--{name} {value!r} must be one of {', '.join(choices)}.")
    if where.address and where.runner in ("local", "inline"):
        raise exits.UsageError(
            f"--address goes with --runner submit or auto, not with {where.runner}."
        )


def submit_run(
    spec: JobSpec, choice: RunChoice, place: Place, where: Where, *, report: bool, as_json: bool
) -> int:
    """Give the run to the cluster, or find it there; follow it, and return its exit code."""
    from pipeline.submission import JobServer

    assert place.cluster is not None
    with exits.usage_errors():
        user_env = {} if where.runtime_env is None else read_runtime_env(where.runtime_env)
    folder = OutputFolder(spec.out)
    refuse_folder(folder, spec, choice)
    server = JobServer(place.cluster)
    name = submission_name(spec.out, params_fingerprint(spec.params()))
    submitting = _Submitting(server, folder, spec, choice, place, where.code, user_env, report)
    say = _nowhere if as_json else console.say
    state = _running(server, name)
    if state is not None:
        if choice.if_running == "skip":
            folder.refuse_hanging("skip")
            say(f"{state.submission_id} is at work on it already; left to itself")
            return exits.OK
        say(f"{state.submission_id} is at work on it already; nothing new is submitted")
        submission_id = state.submission_id
    else:
        submission_id = submitting.submit(name)
        say(f"submitted as {submission_id}")
    if where.detach:
        _print_detached(submission_id, spec.out, as_json)
        return exits.OK
    code = _follow_and_tell(server, submission_id, spec.out, as_json)
    if state is not None and choice.if_running == "wait":
        submission_id = submitting.submit(name)
        say(f"submitted as {submission_id}")
        code = _follow_and_tell(server, submission_id, spec.out, as_json)
    return code


def _running(server: JobServer, name: str) -> JobState | None:
    return next((state for state in server.attempts(name) if not state.ended), None)


@dataclass(frozen=True)
class _Submitting:
    """What every attempt at submitting a job has in common."""

    server: JobServer
    folder: OutputFolder
    spec: JobSpec
    choice: RunChoice
    place: Place
    code: str
    user_env: dict[str, Any]
    report: bool

    def submit(self, name: str) -> str:
        """Submit the next attempt and return its id; that of a quicker one if there is one."""
        from pipeline.submission import IdTakenError

        storage, server = self.folder.storage, self.server
        known = [state.submission_id for state in server.attempts(name)]
        known += [s.submission_id for s in read_submissions(storage)]
        numbers = [attempt_of(i) for i in known if i.startswith(f"{name}-")]
        submission_id = f"{name}-{max(numbers, default=0) + 1}"
        spec_file = f"{self.spec.out}/{spec_path(submission_id)}"
        submission = Submission(
            submission_id=submission_id,
            address=self.place.address,
            url=server.cluster.url,
            session=server.cluster.session,
            submitted_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            arguments=[spec_file, *run_arguments(self.choice, report=self.report)],
        )
        write_submission(storage, submission, self.spec.to_json())
        try:
            # The spec is new and its name is ours alone: who sees it sees the same storage.
            missing = server.missing_path([spec_file, *shared_paths(self.spec)])
            if missing is not None:
                raise missing
            server.submit(
                submission_id,
                submission.arguments,
                user_env=self.user_env,
                code=self.code,
                stop_wait_seconds=self.spec.grace_seconds + STOP_MARGIN_SECONDS,
            )
        except IdTakenError:
            return submission_id
        except BaseException:
            remove_submission(storage, submission_id)
            raise
        return submission_id


def run_arguments(choice: RunChoice, *, report: bool) -> list[str]:
    """Return the options of `doodl-batch run` that say the same as the choice."""
    flags = {
        "--redo": choice.redo, "--moved": choice.moved, "--force": choice.force,
        "--retry-failed": choice.retry_failed, "--only-failed": choice.only_failed,
        "--no-report": not report,
    }  # fmt: skip
    values = {
        "--since": choice.since, "--limit": choice.limit,
        "--max-gpu-hours": choice.max_gpu_hours, "--if-running": choice.if_running,
    }  # fmt: skip
    given = [name for name, value in flags.items() if value]
    given += [f"--class={name}" for name in choice.only_classes]
    given += [f"--row={row_id}" for row_id in choice.only_rows or ()]
    return given + [f"{name}={value}" for name, value in values.items() if value is not None]


def _follow_and_tell(server: JobServer, submission_id: str, out: str, as_json: bool) -> int:
    lines = JobLines(_nowhere if as_json else console.say)
    try:
        state = server.follow(submission_id, lines, _nowhere if as_json else console.say)
    except KeyboardInterrupt:
        quoted = shlex.quote(out)
        console.say(f"{submission_id} goes on without this terminal")
        console.say(f"follow it again: doodl-batch logs {quoted} --follow")
        console.say(f"stop it:         doodl-batch stop {quoted}")
        return exits.SIGINT
    lines.end()
    if as_json:
        console.print_json({**facts(state), "exit_code": state.outcome, "out": out,
                            "counts": counts(out)})  # fmt: skip
    elif state.exit_code is None and state.outcome:
        console.error(f"{submission_id} {state.status.lower()}: {last_line(state.message)}")
    return state.outcome


def _nowhere(line: str) -> None:
    """Show nothing: stdout is for one JSON value, and stderr for a person."""


def _print_detached(submission_id: str, out: str, as_json: bool) -> None:
    if as_json:
        console.print_json({"submission_id": submission_id, "out": out})
    else:
        console.result(submission_id)
