"""`retry`, `verify` and `replay`: after a bad night, see what is wrong and put it right."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs import locations

Out = Annotated[Path, locations.argument("OUT", "The output folder of a job.", remote=True)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the program's."""
    for command in (retry, verify, replay):
        app.command()(command)


def retry(
    out: Out,
    failed: Annotated[bool, typer.Option("--failed", help="Every failed row.")] = False,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class", metavar="CLASS", help="Rows that failed with this class; repeatable."
        ),
    ] = None,
    rows: Annotated[
        list[str] | None,
        typer.Option("--row", metavar="ROW", help="This row, whatever it is; repeatable."),
    ] = None,
    damaged: Annotated[
        bool,
        typer.Option("--damaged", help="Rows whose delivered file is missing or changed."),
    ] = False,
    runner: Annotated[
        str, typer.Option(help="auto, submit, local or inline, as for enhance.")
    ] = "auto",
    address: Annotated[
        str | None, typer.Option(help="A Ray cluster.  [default: RAY_ADDRESS]")
    ] = None,
    report: Annotated[bool, typer.Option(help="Write OUT/report at the end.")] = True,
    json: Json = False,
) -> None:
    """Do rows of an output folder again, with the options of its last run.

    Example: doodl-batch retry photos-doodl --class PoisonRow
    """
    from jobs.repairs import retry_rows

    raise typer.Exit(
        retry_rows(
            out, failed=failed, classes=classes or [], rows=rows or [], damaged=damaged,
            runner=runner, address=address, report=report, as_json=json,
        )
    )  # fmt: skip


def verify(
    out: Out,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Put back photos that images/ still has, move damaged tables to "
            "_state/quarantine (their rows are done again by the next run).",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Read everything an output folder holds and name what is missing, changed, orphaned, damaged.

    Example: doodl-batch verify photos-doodl
    """
    from jobs.repairs import verify_folder

    raise typer.Exit(verify_folder(out, repair=repair, as_json=json))


def replay(
    out: Out,
    rows: Annotated[list[str], typer.Argument(metavar="ROW…", help="Rows, by their row_id.")],
    to: Annotated[
        Path | None,
        locations.option("Keep the pictures made again in this folder.", "PATH", "--to"),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or auto.  [default: the row's own]")
    ] = None,
    json: Json = False,
) -> None:
    """Make rows again from their recorded parameters, and say how far they come out the same.

    Nothing in the output folder changes. Exit 0: every pixel is the same; 3: not.

    Example: doodl-batch replay photos-doodl trip/a.jpg
    """
    from jobs.repairs import replay_rows

    raise typer.Exit(replay_rows(out, rows, to, device, as_json=json))
