"""`schedule render`: the same nightly run for another scheduler, as text to look at and apply."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs import console, exits
from jobs.schedule import cron, entries, systemd
from jobs.schedule.airflow import dag_text
from jobs.schedule.cluster_options import ClusterOptions
from jobs.schedule.command import Command, make_command, refuse_secret_urls
from jobs.schedule.expression import Expression, parse
from jobs.schedule.kuberay import manifests
from pipeline.errors import UnusableEnvironmentError

TARGETS = ("kuberay", "airflow", "systemd", "cron")
_HEADER = """\
# doodl-batch schedule {name}: {expression}
# Apply with: kubectl apply -f THIS_FILE. Needs the KubeRay operator; the image needs doodl-batch.
"""


def render(
    target: str,
    text: str,
    words: Sequence[str],
    *,
    name: str | None,
    environment: Sequence[str],
    env_file: Path | None,
    cluster: dict[str, Any],
) -> int:
    """Print what the target takes and return an exit code.

    Args:
        cluster: of `ClusterOptions`; `deadline_seconds`, `backoff_limit` and `python` (None: this
            interpreter) are Airflow's too.
    """
    if target not in TARGETS:
        raise exits.UsageError(f"--target {target!r} must be one of {', '.join(TARGETS)}.")
    expression = parse(text)
    here = target in ("systemd", "cron")
    command, lines = make_command(
        words,
        check=here,
        environment=environment,
        env_file=env_file,
        capture_here=target != "kuberay",
    )
    refuse_secret_urls(command.arguments)
    name = entries.checked_name(name or _default_name(command.out, target))
    if target == "kuberay":
        rendered = _kuberay(command, name, expression, env_file, cluster)
    elif target == "airflow":
        rendered = dag_text(
            command, name, expression, deadline_seconds=cluster["deadline_seconds"],
            retries=cluster["backoff_limit"], python=cluster["python"],
        )  # fmt: skip
    else:
        rendered = _local(target, command, name, expression)
    console.verbatim(rendered)
    for note in lines if target != "kuberay" else []:
        console.say(f"note: {note}")
    return exits.OK


def _default_name(out: str, target: str) -> str:
    name = entries.default_name(out)
    return re.sub(r"[._]", "-", name.lower())[:29].strip("-") if target == "kuberay" else name


def _kuberay(
    command: Command,
    name: str,
    expression: Expression,
    env_file: Path | None,
    cluster: dict[str, Any],
) -> str:
    if env_file is not None:
        raise exits.UsageError(
            "--env-file is of this machine; name a Secret of the cluster with --secret."
        )
    if not cluster["image"]:
        raise exits.UsageError("--image is needed: one that has doodl-batch and Ray installed.")
    given = {key: value for key, value in cluster.items() if value is not None}
    objects = manifests(command, name, expression, ClusterOptions(**given))
    header = _HEADER.format(name=name, expression=expression.text)
    return header + _yaml(objects)


def _yaml(objects: Sequence[dict[str, Any]]) -> str:
    """Return the objects as YAML documents; text of several lines as it is, every other escaped."""
    try:
        import yaml
    except ImportError:
        raise UnusableEnvironmentError(
            "rendering needs the package PyYAML; pip install 'doodl-batch[schedule]'."
        ) from None

    class Dumper(yaml.SafeDumper):
        pass

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        style = "|" if "\n" in value else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    return yaml.dump_all(objects, Dumper=Dumper, sort_keys=False, width=100, allow_unicode=True)


def _local(target: str, command: Command, name: str, expression: Expression) -> str:
    script = str(entries.script_path(name))
    files = {script: entries.script_text(command, name, expression.text)}
    if target == "cron":
        files["crontab"] = cron.cron_line(name, expression.text, script)
    else:
        folder = systemd.units_folder()
        units = systemd.unit_texts(name, expression, script)
        files |= {str(folder / file): unit for file, unit in units.items()}
    return "\n".join(f"# --- {path}\n{content}" for path, content in files.items())
