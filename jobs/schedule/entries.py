"""What this machine's schedules are: a record and a script each, for their owner's eyes only."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from jobs.exits import UsageError
from jobs.schedule.command import Command

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_MAX_LOG_BYTES = 5 * 2**20
_OLD_LOGS = 5

_SCRIPT = """\
#!/bin/sh
# doodl-batch schedule {name}: {expression}
# Made by `doodl-batch schedule add`; take it away with `doodl-batch schedule remove {name}`.
cd / || exit 6
{environment}
photos={photos}
logs={logs}
log=$logs/schedule-{name}.log
# Not where the photos are not: their disk may be missing, and OUT would come to lie below it.
if [ -d "$logs" ] || {{ [ -e "$photos" ] && mkdir -p "$logs"; }}; then
  if [ -f "$log" ] && [ "$(wc -c <"$log")" -gt {max_bytes} ]; then
    for n in {older}; do
      if [ -f "$log.$n" ]; then mv -f "$log.$n" "$log.$((n + 1))"; fi
    done
    mv -f "$log" "$log.1"
  fi
  exec >>"$log" 2>&1
fi
# A signal is the run's to obey: it ends in order, and this script with it.
trap : TERM INT
echo "--- $(date '+%Y-%m-%dT%H:%M:%S%z') begins, pid $$"
{command}
code=$?
echo "--- $(date '+%Y-%m-%dT%H:%M:%S%z') ended, exit $code"
exit "$code"
"""


@dataclass(frozen=True)
class Entry:
    """One schedule of this machine.

    Attributes:
        kind: cron | systemd. expression: when. out, photos: what it works on, for `list`.
        script: what is started; log: where its output goes.
    """

    name: str
    kind: str
    expression: str
    photos: str
    out: str
    script: str
    log: str
    created_at: str


def config_folder() -> Path:
    """Return the folder of this user's settings for doodl-batch."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "doodl-batch"


def entries_folder() -> Path:
    return config_folder() / "schedules"


def checked_name(name: str) -> str:
    """Return the name. Raises: UsageError if a file, a unit or a comment could not carry it."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"--name {name!r} must be at most 63 letters, digits, '.', '_' or '-', "
            "beginning with a letter or a digit."
        )
    return name


def default_name(out: str) -> str:
    """Return a name made from the output folder's."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(out).name).strip("-._")[:63] or "doodl"


def script_path(name: str) -> Path:
    return entries_folder() / f"{checked_name(name)}.sh"


def log_path(command: Command, name: str) -> str:
    return f"{command.out}/_state/logs/schedule-{name}.log"


def script_text(command: Command, name: str, expression: str) -> str:
    """Return the shell script that runs the command once, with its environment, into its log."""
    lines = [f"export {key}={shlex.quote(value)}" for key, value in command.environment.items()]
    if command.env_file is not None:
        lines.append(f"set -a; . {shlex.quote(command.env_file)} || exit 6; set +a")
    return _SCRIPT.format(
        name=name,
        expression=expression,
        environment="\n".join(lines),
        photos=shlex.quote(command.photos),
        logs=shlex.quote(f"{command.out}/_state/logs"),
        max_bytes=_MAX_LOG_BYTES,
        older=" ".join(map(str, range(_OLD_LOGS - 1, 0, -1))),
        command=shlex.join(command.argv()),
    )


def save(entry: Entry, script: str) -> None:
    """Write the entry's script and record, readable by their owner alone: they may hold tokens."""
    folder = entries_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _write_private(Path(entry.script), script)
    _write_private(folder / f"{entry.name}.json", json.dumps(asdict(entry), indent=1) + "\n")


def load(name: str) -> Entry | None:
    """Return the schedule of a name, None if there is none (or its record is damaged)."""
    try:
        return Entry(**json.loads((entries_folder() / f"{name}.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def all_entries() -> Iterator[Entry]:
    """Yield this user's schedules by name."""
    for path in sorted(entries_folder().glob("*.json")):
        entry = load(path.stem)
        if entry is not None:
            yield entry


def forget(name: str) -> None:
    """Remove a schedule's record and script; nothing happens if there is none."""
    for path in (entries_folder() / f"{name}.json", script_path(name)):
        with suppress(FileNotFoundError):
            path.unlink()


def _write_private(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".new")
    with suppress(FileNotFoundError):
        temporary.unlink()
    # File names may hold any bytes; O_EXCL and the mode leave no moment in which others can read.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(os.fsencode(text))
    temporary.replace(path)
