"""`evaluate human`: what people chose on a study's page, as the figures of a human study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs import console, exits
from jobs.locations import local_only

Study = Annotated[
    Path, typer.Argument(help="The folder of the study.", parser=local_only, metavar="STUDY")
]
Choices = Annotated[
    list[Path],
    typer.Argument(
        help="What its page saved, or folders of it.", parser=local_only, metavar="CHOICES..."
    ),
]


def register(app: typer.Typer) -> None:
    """Add `human` to the `evaluate` commands."""

    @app.command("human")
    def human(
        study: Annotated[
            Path,
            typer.Argument(help="The folder of the study.", parser=local_only, metavar="STUDY"),
        ],
        choices: Annotated[
            list[Path],
            typer.Argument(
                help="What its page saved, or folders of it.",
                parser=local_only,
                metavar="CHOICES...",
            ),
        ],
        accept: Annotated[
            int, typer.Option(help="Ratings: the lowest level that accepts a picture.")
        ] = 3,
        json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    ) -> None:
        """Turn people's choices on a study's page into win-draw-loss or rating figures.

        Example: doodl-batch evaluate human study/ choices-anna.json choices-ben.json
        """
        raise typer.Exit(show_human(study, choices, accept, as_json=json))


def show_human(study: Path, choices: Sequence[Path], accept: int, *, as_json: bool) -> int:
    """Print the figures of a study and return an exit code."""
    from pipeline.human import (
        choice_files,
        pairwise_figures,
        rating_figures,
        read_key,
        read_votes,
    )

    key = read_key(study)
    votes = [vote for path in choice_files(choices) for vote in read_votes(path, key)]
    if not votes:
        raise exits.UsageError("there is no choice in these files; give what the page saved.")
    if key["kind"] == "pairwise":
        first, second = key["methods"]
        _show_pairs(pairwise_figures(votes, first, second), first, second, as_json=as_json)
    else:
        with exits.usage_errors():
            figures = rating_figures(votes, num_levels=len(key["levels"]), accept=accept)
        _show_ratings(figures, key["levels"], accept, as_json=as_json)
    return exits.OK


def _show_pairs(figures: Any, first: str, second: str, *, as_json: bool) -> None:
    ways = {name: getattr(figures, name) for name in ("aggregate", "majority", "unanimous")}
    score, kappa = figures.score, figures.kappa
    if as_json:
        counts = {
            name: {"win": w.wins, "draw": w.draws, "loss": w.losses, "undecided": w.undecided}
            for name, w in ways.items()
        }
        console.print_json(
            {"kind": "pairwise", "win_is": second, "loss_is": first, **counts,
             "score": _interval(score), "items": figures.num_items,
             "raters": figures.num_raters, "kappa": kappa}
        )  # fmt: skip
        return
    rows = [
        (name, _share(w.wins, w.total), _share(w.draws, w.total), _share(w.losses, w.total),
         w.undecided)
        for name, w in ways.items()
    ]  # fmt: skip
    console.print_table(
        f"{second} against {first}: {figures.num_items} pairs, {figures.num_raters} raters",
        ("votes", "win", "draw", "loss", "undecided"),
        rows,
    )
    console.result(
        f"score (win 1, draw 0.5, loss 0): {score.mean:.3f} [{score.low:.3f}, {score.high:.3f}], "
        "95 % over pairs"
    )
    console.result(_agreement(kappa))


def _show_ratings(
    figures: Sequence[Any], levels: Sequence[str], accept: int, *, as_json: bool
) -> None:
    if as_json:
        methods = [
            {"method": f.method, "items": f.num_items, "counts": list(f.counts),
             "mean": _interval(f.mean), "aggregate": f.aggregate, "majority": f.majority,
             "unanimous": f.unanimous, "kappa": f.kappa}
            for f in figures
        ]  # fmt: skip
        console.print_json(
            {"kind": "rating", "levels": list(levels), "accept": accept, "methods": methods}
        )
        return
    rows = [
        (f.method, f.num_items, " / ".join(map(str, f.counts)),
         f"{f.mean.mean:.2f} [{f.mean.low:.2f}, {f.mean.high:.2f}]",
         f"{f.aggregate:.1%}", f"{f.majority:.1%}", f"{f.unanimous:.1%}")
        for f in figures
    ]  # fmt: skip
    console.print_table(
        f"Accepted is level {accept} ({levels[accept - 1]}) or higher",
        ("method", "pictures", f"votes on 1 to {len(levels)}", "mean level", "aggregate",
         "majority", "unanimous"),
        rows,
    )  # fmt: skip
    for figure in figures:
        console.result(f"{figure.method}: {_agreement(figure.kappa)}")


def _share(count: int, total: int) -> str:
    return f"{count} ({count / total:.1%})" if total else "0"


def _interval(value: Any) -> dict[str, float] | None:
    return None if value is None else {"mean": value.mean, "low": value.low, "high": value.high}


def _agreement(kappa: float | None) -> str:
    if kappa is None:
        return "agreement: not measured (one rater, or nothing to tell chance by)"
    return f"agreement (Fleiss's kappa): {kappa:.2f}"
