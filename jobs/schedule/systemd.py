"""A systemd timer and its service, in the user's own units."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from jobs.exits import UsageError
from jobs.schedule.expression import Expression

_SERVICE = """\
# Made by `doodl-batch schedule`: {name}
[Unit]
Description=doodl-batch schedule {name}

[Service]
Type=oneshot
ExecStart=/bin/sh {script}
# Photos in work get their time to finish.
TimeoutStopSec=120
"""

_TIMER = """\
# Made by `doodl-batch schedule`: {name}
[Unit]
Description=When doodl-batch schedule {name} runs

[Timer]
{calendars}
# A night missed while the machine was off is made up for.
Persistent=true

[Install]
WantedBy=timers.target
"""


def unit_name(name: str) -> str:
    return f"doodl-batch-{name}"


def units_folder() -> Path:
    """Return where systemd looks for this user's units."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd" / "user"


def unit_texts(name: str, expression: Expression, script: str) -> dict[str, str]:
    """Return the timer and the service by their file names."""
    calendars = "\n".join(f"OnCalendar={value}" for value in expression.calendars())
    unit = unit_name(name)
    return {
        f"{unit}.service": _SERVICE.format(name=name, script=_quoted(script)),
        f"{unit}.timer": _TIMER.format(name=name, calendars=calendars),
    }


def install(name: str, expression: Expression, script: str) -> list[str]:
    """Write the units and start the timer; return lines about what is left to do by hand."""
    folder = units_folder()
    texts = unit_texts(name, expression, script)
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in texts.items():
        (folder / file).write_bytes(os.fsencode(text))
    timer = f"{unit_name(name)}.timer"
    problem = _systemctl("daemon-reload") or _systemctl("enable", "--now", timer)
    if problem:
        return [
            f"systemd does not answer here ({problem}); the units lie in {folder}; where it "
            f"does, run: systemctl --user daemon-reload && systemctl --user enable --now {timer}"
        ]
    return ["user timers rest while you are logged out, unless you run: loginctl enable-linger"]


def uninstall(name: str) -> bool:
    """Stop the timer and remove the units; return whether there were any."""
    unit, folder = unit_name(name), units_folder()
    files = [folder / f"{unit}.timer", folder / f"{unit}.service"]
    there = any(file.exists() for file in files)
    if there:
        _systemctl("disable", "--now", f"{unit}.timer")
        for file in files:
            with suppress(FileNotFoundError):
                file.unlink()
        _systemctl("daemon-reload")
    return there


def installed(name: str) -> bool:
    """Return whether the timer's file lies where systemd looks."""
    return (units_folder() / f"{unit_name(name)}.timer").is_file()


def _systemctl(*arguments: str) -> str | None:
    """Run `systemctl --user`; return None, or why it did not work."""
    program = shutil.which("systemctl")
    if program is None:
        return "no systemctl"
    try:
        done = subprocess.run(
            [program, "--user", *arguments],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    return " ".join(done.stderr.split())[:200] or f"exit {done.returncode}"


def _quoted(text: str) -> str:
    """Return a word as systemd reads it: % and $ are its own, quotes and backslashes escaped."""
    if any(ord(c) < 0x20 or ord(c) == 0x7F for c in text):
        raise UsageError(f"the path {text!r} holds characters that no unit can carry; rename it.")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped.replace("%", "%%").replace("$", "$$")}"'
