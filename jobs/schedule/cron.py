"""The user's crontab: our lines in it, and every other byte as it was."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from jobs.exits import UsageError
from jobs.schedule.entries import config_folder
from pipeline.errors import UnusableEnvironmentError

# The shell that cron starts takes it for a comment.
_MARK = "# doodl-batch schedule "
_OURS = re.compile(rb"# doodl-batch schedule ([A-Za-z0-9._-]+)\n?$")
_DAEMONS = ("cron", "crond", "fcron", "busybox-crond")
_LOCK_SECONDS = 30
_LONGEST_LINE = 900  # Debian's cron takes 998 characters of a command


def cron_line(name: str, expression: str, script: str) -> str:
    """Return the crontab line that starts the script.

    Raises: UsageError if no crontab can hold it.
    """
    command = f"/bin/sh {shlex.quote(script)}"
    if "\n" in command or len(os.fsencode(command)) > _LONGEST_LINE:
        raise UsageError(f"the path {script!r} is too long for a crontab; set XDG_CONFIG_HOME.")
    # To cron % is the end of the command and a new line.
    return f"{expression} {command.replace('%', chr(92) + '%')} {_MARK}{name}\n"


def add_line(name: str, line: str) -> None:
    """Put a schedule's line into the crontab, in place of an older one of that name.

    It goes to the top: settings further down (SHELL, CRON_TZ) are not for it, and a last line
    without its newline stays as it is.
    Raises: UsageError if cron does not take the line; UnusableEnvironmentError without cron.
    """
    with _editing():
        text = read_crontab()
        foreign = _without(text, name)
        write_crontab(os.fsencode(line) + foreign)


def remove_line(name: str) -> bool:
    """Take a schedule's line out of the crontab; return whether there was one."""
    with _editing():
        text = read_crontab()
        foreign = _without(text, name)
        if foreign == text:
            return False
        write_crontab(foreign)
        return True


def lines_by_name() -> dict[str, str]:
    """Return our lines of the crontab by the schedule's name."""
    lines = {}
    for line in read_crontab().splitlines(keepends=True):
        match = _OURS.search(line)
        if match is not None and not line.startswith(b"#"):
            lines[match[1].decode()] = os.fsdecode(line).rstrip("\n")
    return lines


def read_crontab() -> bytes:
    """Return the user's crontab, empty if there is none.

    Raises: UnusableEnvironmentError if there is no cron, or it does not let this user in.
    """
    done = _crontab("-l")
    if done.returncode == 0:
        return done.stdout
    if b"no crontab for" in done.stderr:
        return b""
    raise UnusableEnvironmentError(f"the crontab cannot be read: {_said(done)}.")


def write_crontab(text: bytes) -> None:
    """Put a crontab in place, or none if it is empty.

    Raises: UsageError if cron finds fault with it, nothing being changed then;
        UnusableEnvironmentError if another program has changed it meanwhile.
    """
    done = _crontab("-", data=text) if text else _crontab("-r")
    if done.returncode != 0:
        raise UsageError(f"cron does not take the entry: {_said(done)}; nothing was changed.")
    if read_crontab() != text:
        raise UnusableEnvironmentError(
            "the crontab is not what was just written: another program changes it too; "
            "look at it with: crontab -l"
        )


def daemon_running() -> bool:
    """Return whether a cron daemon is seen among this machine's processes."""
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            if path.read_text().strip() in _DAEMONS:
                return True
        except OSError:  # gone meanwhile
            continue
    return False


def require_cron() -> None:
    """Raise UnusableEnvironmentError if there is no `crontab` program."""
    if shutil.which("crontab") is None:
        raise UnusableEnvironmentError(
            "there is no cron here (no `crontab` program); install it (apt-get install cron), "
            "or use --systemd."
        )


def _without(text: bytes, name: str) -> bytes:
    kept = []
    for line in text.splitlines(keepends=True):
        match = _OURS.search(line)
        ours = match is not None and not line.startswith(b"#") and match[1].decode() == name
        if not ours:
            kept.append(line)
    return b"".join(kept)


@contextmanager
def _editing() -> Iterator[None]:
    """Let one doodl-batch at a time edit the crontab; another program's edit is noticed after."""
    folder = config_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        with FileLock(folder / "crontab.lock", timeout=_LOCK_SECONDS):
            yield
    except Timeout as error:
        raise UnusableEnvironmentError(
            f"another doodl-batch has been editing the crontab for {_LOCK_SECONDS} s "
            f"({error.lock_file}); try again."
        ) from None


def _crontab(*arguments: str, data: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    require_cron()
    try:
        return subprocess.run(
            ["crontab", *arguments],
            input=data,
            stdin=subprocess.DEVNULL if data is None else None,
            capture_output=True,
            timeout=30,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnusableEnvironmentError(f"crontab does not answer: {error}.") from error


def _said(done: subprocess.CompletedProcess[bytes]) -> str:
    text = " ".join((done.stderr or done.stdout).decode(errors="replace").split())
    return text[:300].rstrip(".") or f"exit {done.returncode}"
