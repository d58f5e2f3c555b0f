"""`schedule add`, `list` and `remove`: this machine's schedules, as a person sees them."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jobs import console, exits
from jobs.schedule import cron, entries, systemd
from jobs.schedule.command import make_command
from jobs.schedule.expression import Expression, parse
from pipeline.errors import UnusableEnvironmentError

_ENDED = re.compile(r"^--- (\S+) ended, exit (\d+)$", re.M)
_TAIL_BYTES = 20_000


def add(
    text: str,
    words: Sequence[str],
    *,
    name: str | None,
    use_systemd: bool,
    environment: Sequence[str],
    env_file: Path | None,
) -> int:
    """Install a schedule, say when it fires next, and return an exit code."""
    expression = parse(text)
    if not use_systemd:
        cron.require_cron()
    command, lines = make_command(words, environment=environment, env_file=env_file)
    name = entries.checked_name(name or entries.default_name(command.out))
    known = entries.load(name) is not None or systemd.installed(name)
    if known or (not use_systemd and name in cron.lines_by_name()):
        raise exits.UsageError(
            f"there is a schedule {name!r} already; remove it first "
            f"(doodl-batch schedule remove {name}), or choose another --name."
        )
    entry = entries.Entry(
        name=name,
        kind="systemd" if use_systemd else "cron",
        expression=expression.text,
        photos=command.photos,
        out=command.out,
        script=str(entries.script_path(name)),
        log=entries.log_path(command, name),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    # What the person is to see of it fails before anything is installed, not after.
    line = "" if use_systemd else cron.cron_line(name, expression.text, entry.script)
    entries.save(entry, entries.script_text(command, name, expression.text))
    try:
        if use_systemd:
            lines += systemd.install(name, expression, entry.script)
        else:
            cron.add_line(name, line)
            if not cron.daemon_running():
                lines.append(
                    "no cron daemon runs here, so nothing will fire; start it "
                    "(service cron start, or systemctl start cron)"
                )
    except BaseException:
        entries.forget(name)
        raise
    console.result(f"schedule {name}: {expression.text} ({entry.kind})")
    console.result(f"  runs    doodl-batch {_shown(command.arguments)}")
    console.result(f"  next    {_next(expression)}")
    console.result(f"  log     {entry.log}")
    for note in lines:
        console.say(f"note: {note}")
    return exits.OK


def show(*, as_json: bool) -> int:
    """Print this user's schedules and return an exit code."""
    lines = _crontab_lines()
    found: list[dict[str, Any]] = []
    for entry in entries.all_entries():
        expression = parse(entry.expression)
        there = systemd.installed(entry.name) if entry.kind == "systemd" else entry.name in lines
        ended = _last_end(entry.log)
        found.append(
            {
                **asdict(entry),
                "installed": there,
                "next": [t.isoformat(timespec="minutes") for t in expression.next_times(3)],
                "last_ended_at": ended[0],
                "last_exit": ended[1],
            }
        )
    named = {row["name"] for row in found}
    for name, line in lines.items():
        if name not in named:
            found.append({"name": name, "kind": "cron", "installed": True, "expression": line})
    if as_json:
        console.print_json(found)
        return exits.OK
    if not found:
        console.say("no schedules; make one with: doodl-batch schedule add '0 2 * * *' -- PHOTOS")
        return exits.OK
    rows = [
        (
            row["name"],
            row["expression"],
            row["kind"] if row["installed"] else f"{row['kind']}: ENTRY MISSING",
            (row.get("next") or ["-"])[0],
            "-" if row.get("last_exit") is None
            else f"exit {row['last_exit']} at {row['last_ended_at']}",
            row.get("out"),
        )
        for row in found
    ]  # fmt: skip
    console.print_table("", ("name", "when", "by", "next", "last", "out"), rows)
    return exits.OK


def remove(name: str) -> int:
    """Take a schedule away, its log and results staying, and return an exit code."""
    entries.checked_name(name)
    entry = entries.load(name)
    gone = systemd.uninstall(name)
    if entry is None or entry.kind == "cron":
        gone = cron.remove_line(name) or gone
    entries.forget(name)
    if entry is None and not gone:
        raise exits.UsageError(f"there is no schedule {name!r}; see: doodl-batch schedule list")
    console.result(f"schedule {name} is removed; its results and its log stay")
    return exits.OK


def _next(expression: Expression) -> str:
    times = expression.next_times(3)
    if not times:
        return "when cron starts"
    return ", ".join(f"{t:%a %Y-%m-%d %H:%M %Z}" for t in times)


def _shown(arguments: Sequence[str]) -> str:
    """Return the command for a person: what may hold a token is not shown."""
    hidden = ("--on-finish=",)
    return shlex.join(
        next((f"{option}..." for option in hidden if word.startswith(option)), word)
        for word in arguments
    )


def _crontab_lines() -> dict[str, str]:
    try:
        return cron.lines_by_name()
    except UnusableEnvironmentError:  # no cron here: there is nothing in it either
        return {}


def _last_end(log: str) -> tuple[str | None, int | None]:
    """Return when the last firing ended, and its exit code, from the end of the log."""
    try:
        with Path(log).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            ends = _ENDED.findall(file.read().decode(errors="replace"))
    except OSError:
        return None, None
    return (ends[-1][0], int(ends[-1][1])) if ends else (None, None)
