"""The `schedule` commands: options in, one call out. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Unattended runs, every night or whenever you say.")

Expression = Annotated[
    str,
    typer.Argument(
        metavar="EXPR", help="Five cron fields in quotes, as '0 2 * * *'; or @daily and its like."
    ),
]
Words = Annotated[
    list[str],
    typer.Argument(metavar="-- PHOTOS [OPTIONS]", help="After --: what `enhance` is given."),
]
Name = Annotated[str | None, typer.Option(help="Its name.  [default: the output folder's]")]
Environment = Annotated[
    list[str] | None,
    typer.Option("--env", metavar="NAME", help="Keep this variable as it is now; repeatable."),
]


@app.command("add")
def add(
    expression: Expression,
    words: Words,
    name: Name = None,
    systemd: Annotated[
        bool, typer.Option("--systemd", help="A timer of systemd instead of a crontab entry.")
    ] = False,
    env: Environment = None,
    env_file: Annotated[
        Path | None,
        typer.Option(help="A file of NAME=value lines, chmod 600, read at each run: for tokens."),
    ] = None,
) -> None:
    """Have `enhance` run by cron (or systemd): only what is new or changed is computed.

    Example: doodl-batch schedule add "0 2 * * *" -- photos/ --direction up
    """
    from jobs.schedule import actions

    raise typer.Exit(
        actions.add(
            expression, words, name=name, use_systemd=systemd,
            environment=env or [], env_file=env_file,
        )
    )  # fmt: skip


@app.command("list")
def list_schedules(
    json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """List your schedules: when each fires next and how its last run ended.

    Example: doodl-batch schedule list
    """
    from jobs.schedule import actions

    raise typer.Exit(actions.show(as_json=json))


@app.command("remove")
def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `schedule list` shows it.")],
) -> None:
    """Take a schedule away; its results and its log stay.

    Example: doodl-batch schedule remove photos-doodl
    """
    from jobs.schedule import actions

    raise typer.Exit(actions.remove(name))
