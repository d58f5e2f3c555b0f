"""An Airflow DAG of one task.

The task is a BashOperator: it needs no provider of its own, the line it runs is the one that cron
runs, and its exit code is the task's. A worker with the accelerator runs it there; one that only
reaches a Ray cluster submits to it (RAY_ADDRESS). On Kubernetes without such workers use the
kuberay target, which needs no Airflow.
"""

from __future__ import annotations

import shlex
from datetime import UTC, datetime

from jobs.schedule.command import Command
from jobs.schedule.expression import Expression

_DAG = '''\
"""doodl-batch {name}: made by `doodl-batch schedule render --target airflow`."""

from datetime import datetime, timedelta, timezone

from airflow import DAG

try:
    from airflow.providers.standard.operators.bash import BashOperator
except ImportError:  # Airflow 2
    from airflow.operators.bash import BashOperator

COMMAND = {command}

with DAG(
    dag_id={dag_id},
    schedule={schedule},
    start_date=datetime({year}, {month}, {day}, tzinfo=timezone.utc),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(seconds={deadline}),
    tags=["doodl-batch"],
):
    BashOperator(
        task_id="enhance",
        bash_command=COMMAND,
        # A run stopped in the middle goes on where it was; rows that cannot be done stay failed.
        retries={retries},
        retry_delay=timedelta(minutes=10),
        execution_timeout=timedelta(seconds={deadline}),
        append_env=True,
    )
'''


def dag_text(
    command: Command,
    name: str,
    expression: Expression,
    *,
    deadline_seconds: int,
    retries: int,
    python: str | None,
    today: datetime | None = None,
) -> str:
    """Return the DAG's file. Times are UTC, as everywhere in Airflow."""
    today = datetime.now(UTC) if today is None else today
    return _DAG.format(
        name=name,
        command=_lines(_untemplated(_shell(command, python))),
        dag_id=repr(f"doodl-batch-{name}"),
        schedule=repr(expression.portable()),
        year=today.year,
        month=today.month,
        day=today.day,
        deadline=deadline_seconds,
        retries=retries,
    )


def _shell(command: Command, python: str | None) -> str:
    words = [f"{key}={shlex.quote(value)}" for key, value in command.environment.items()]
    line = " ".join(["cd / &&", "env", *words, shlex.join(command.argv(python))])
    if command.env_file is not None:
        return f"set -a; . {shlex.quote(command.env_file)} || exit 6; set +a; {line}"
    return line


def _untemplated(line: str) -> str:
    """Return the shell line such that Airflow's templates see none in it.

    A brace stands inside single quotes, as `shlex.quote` leaves it: closing and opening them
    between two characters changes nothing for the shell, and `{{`, `{%` and `{#` are gone.
    """
    return line.replace("{", "{''")


def _lines(text: str, width: int = 80) -> str:
    """Return a string as a Python expression of several lines."""
    parts = [text[i : i + width] for i in range(0, len(text), width)]
    return "(\n" + "".join(f"    {part!r}\n" for part in parts) + ")"
