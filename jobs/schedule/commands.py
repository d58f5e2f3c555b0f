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
Name = Annotated[str | None, typer.Option(help="Its name.  \\[default: the output folder's]")]
Environment = Annotated[
    list[str] | None,
    typer.Option(
        "--env", metavar="NAME[=VALUE]", help="Keep this variable too, as it is now; repeatable."
    ),
]
EnvFile = Annotated[
    Path | None,
    typer.Option(help="A file of NAME=value lines, chmod 600, read at each run: for tokens."),
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
    env_file: EnvFile = None,
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


@app.command("render")
def render(
    expression: Expression,
    words: Words,
    target: Annotated[str, typer.Option(help="kuberay, airflow, systemd or cron.")],
    name: Name = None,
    env: Environment = None,
    env_file: EnvFile = None,
    image: Annotated[str, typer.Option(help="kuberay: with doodl-batch and Ray in it.")] = "",
    pvc: Annotated[
        list[str] | None,
        typer.Option(metavar="CLAIM:/PATH", help="kuberay: a volume of the pods; repeatable."),
    ] = None,
    namespace: Annotated[str, typer.Option(help="kuberay.")] = "default",
    service_account: Annotated[
        str | None,
        typer.Option(help="kuberay: an account that is there, to create the RayJobs."),
    ] = None,
    secret: Annotated[
        str | None, typer.Option(help="kuberay: a Secret whose entries become variables.")
    ] = None,
    gpus: Annotated[int, typer.Option(help="kuberay: of a worker pod.")] = 1,
    cpus: Annotated[str, typer.Option(help="kuberay: of a worker pod.")] = "4",
    memory: Annotated[str, typer.Option(help="kuberay: of a worker pod.")] = "16Gi",
    max_workers: Annotated[int, typer.Option(help="kuberay: worker pods at most.")] = 1,
    time_zone: Annotated[
        str | None, typer.Option(help="kuberay: as Europe/Berlin.  \\[default: the cluster's]")
    ] = None,
    ray_version: Annotated[
        str | None, typer.Option(help="kuberay: the image's.  \\[default: this machine's]")
    ] = None,
    deadline_hours: Annotated[
        float, typer.Option(min=0.1, help="kuberay, airflow: a night's end, whatever is left.")
    ] = 12.0,
    starting_deadline_seconds: Annotated[
        int, typer.Option(help="kuberay: how late a night may still begin.")
    ] = 3600,
    backoff_limit: Annotated[
        int, typer.Option(min=0, help="kuberay, airflow: tries after a fault.")
    ] = 1,
    python: Annotated[
        str | None,
        typer.Option(
            help="kuberay, airflow: the interpreter there.  \\[default: python; this one]"
        ),
    ] = None,
) -> None:
    """Print the same nightly run for KubeRay, Airflow, systemd or cron; nothing is installed.

    Example: doodl-batch schedule render "0 2 * * *" --target kuberay --image IMAGE --pvc data:/data -- /data/photos --out /data/edited
    """  # noqa: E501 (a line to paste)
    from jobs.schedule.render import render as show

    raise typer.Exit(
        show(
            target, expression, words, name=name, environment=env or [], env_file=env_file,
            cluster={
                "image": image, "volumes": tuple(pvc or ()), "namespace": namespace,
                "service_account": service_account, "secret": secret, "gpus": gpus, "cpus": cpus,
                "memory": memory, "max_workers": max_workers, "time_zone": time_zone,
                "ray_version": ray_version, "deadline_seconds": round(deadline_hours * 3600),
                "starting_deadline_seconds": starting_deadline_seconds,
                "backoff_limit": backoff_limit, "python": python,
            },
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
