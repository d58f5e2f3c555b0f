"""`study`: pages on which people judge, blind, what a run made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs import console, exits
from jobs.locations import local_only

app = typer.Typer(no_args_is_help=True, help="Pages on which people judge results, blind.")

Out = Annotated[
    Path, typer.Argument(help="The output folder of a job.", parser=local_only, metavar="OUT")
]
Against = Annotated[
    Path | None,
    typer.Option(
        help="Another run's output folder.  \\[default: what was before]",
        parser=local_only,
        metavar="OUT",
    ),
]
Number = Annotated[int, typer.Option(min=1, help="At most so many rows, drawn by --seed.")]
Seed = Annotated[int, typer.Option(help="Of the draw, of left and right, and of names.")]
To = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the page.  \\[default: OUT/study-pairwise, OUT/study-rating]",
        parser=local_only,
        metavar="PATH",
    ),
]
Question = Annotated[str, typer.Option(help="What people are asked.  \\[default: the kind's]")]


@app.command("pairwise")
def pairwise(
    out: Out,
    against: Against = None,
    number: Number = 100,
    seed: Seed = 0,
    question: Question = "",
    to: To = None,
) -> None:
    """Write a page of pairs: which picture looks better, the delivered one or the other?

    Give people the folder page/, not _key.json beside it, which says what is what.

    Example: doodl-batch study pairwise photos-doodl --number 50
    """
    raise typer.Exit(_build("pairwise", out, to, against, number, seed, question))


@app.command("rating")
def rating(
    out: Out,
    against: Against = None,
    number: Number = 100,
    seed: Seed = 0,
    question: Question = "",
    level: Annotated[
        list[str] | None,
        typer.Option(help="Your own words for the four levels, the lowest first; four times."),
    ] = None,
    to: To = None,
) -> None:
    """Write a page of pictures to rate beside photos of their subject, on four levels.

    Example: doodl-batch study rating doodl-generated --number 50
    """
    raise typer.Exit(_build("rating", out, to, against, number, seed, question, level))


def _build(
    kind: str,
    out: Path,
    to: Path | None,
    against: Path | None,
    number: int,
    seed: int,
    question: str,
    levels: list[str] | None = None,
) -> int:
    from jobs.report.study import LEVELS, PAGE, Wanted, build_pairwise, build_rating
    from pipeline.human import KEY_FILE

    if levels is not None and len(levels) != len(LEVELS):
        raise exits.UsageError(f"--level is given {len(levels)} times; give it four times.")
    wanted = Wanted(
        str(out), None if against is None else str(against), number, seed, question,
        LEVELS if levels is None else tuple(levels),
    )  # fmt: skip
    folder = out / f"study-{kind}" if to is None else to
    page = (build_pairwise if kind == "pairwise" else build_rating)(wanted, folder)
    console.result(f"page: {page}")
    console.say(f"give people the folder {PAGE}/; {KEY_FILE} says what is what: keep it back")
    return exits.OK
