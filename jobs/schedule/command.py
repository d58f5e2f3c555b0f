"""The one command that every scheduled run is: `enhance` with everything said absolutely."""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jobs.exits import UsageError

ENVIRONMENT = (
    "PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "XDG_CACHE_HOME", "PYTHONPATH", "LD_LIBRARY_PATH",
    "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT", "TORCH_HOME",
    "RAY_ADDRESS", "RAY_TMPDIR", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH",
    "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "OMP_NUM_THREADS",
    "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "http_proxy", "https_proxy", "no_proxy",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
)  # fmt: skip
"""What a run may need and cron does not hand on."""

# The words of names that hold secrets: HF_TOKEN, AWS_SECRET_ACCESS_KEY, MY_PASSWORD.
_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_KEY", re.I)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_AGAIN = ("redo", "force")


@dataclass(frozen=True)
class Command:
    """A run as a scheduler starts it.

    Attributes:
        arguments: of `doodl-batch`, absolute, the same each time: `enhance`, its options, PHOTOS.
        photos, out: the absolute paths among them.
        environment: what it needs, by name. env_file: a shell file of further ones (tokens).
    """

    arguments: tuple[str, ...]
    photos: str
    out: str
    environment: Mapping[str, str]
    env_file: str | None = None

    def argv(self, python: str | None = None) -> list[str]:
        """Return the whole command line, run by this interpreter or by another's."""
        # -P: a folder of the user's with one of our packages' names is not to be imported.
        return [python or sys.executable, "-P", "-m", "jobs.cli", *self.arguments]


def make_command(
    words: Sequence[str],
    *,
    check: bool = True,
    environment: Sequence[str] = (),
    env_file: Path | None = None,
    capture_here: bool = True,
) -> tuple[Command, list[str]]:
    """Return the command of `enhance`'s words, and lines about what it leaves out.

    Args:
        check: build the job as the run will, so that what makes no sense is said now.
        environment: further variables to keep, by NAME, or as NAME=value. env_file: see `Command`.
        capture_here: keep this machine's ENVIRONMENT; only what is named otherwise.
    Raises: UsageError, and whatever building the job raises.
    """
    enhance = _enhance()
    with _usage_errors():
        context = enhance.make_context("doodl-batch enhance", list(words))
    given = {
        name for name in context.params if _source(context, name) in ("COMMANDLINE", "ENVIRONMENT")
    }
    for name in _AGAIN:
        if context.params.get(name):
            raise UsageError(
                f"--{name} would compute everything again each time; run it once by hand."
            )
    photos: Path | str = context.params["photos"]
    if check and isinstance(photos, Path) and not photos.exists():
        raise UsageError(f"{photos} does not exist; give a folder of photos or a manifest.")
    out = context.params["out"] or _default_out(photos)
    if capture_here and isinstance(out, str):
        raise UsageError(
            f"{out}: a schedule of this machine keeps its log in its output folder, which must be "
            "on a file system; give such a folder with --out."
        )
    arguments = [f"--out={out}"]
    for parameter in enhance.params:
        if parameter.name in given - {"photos", "out", "if_running"}:
            arguments += _as_words(parameter, context.params[parameter.name])
    policy = context.params["if_running"] if "if_running" in given else "skip"
    # Last, so that nothing that ends in a suffix ends the line: Airflow would read it as a file.
    arguments += [str(photos), f"--if-running={policy}"]
    if check:
        with _usage_errors():
            enhance.main(["--check", *arguments], "doodl-batch enhance", standalone_mode=False)
    kept, lines = capture(
        environment, has_file=env_file is not None, names=ENVIRONMENT if capture_here else ()
    )
    file = None if env_file is None else private_file(env_file)
    return Command(("enhance", *arguments), str(photos), str(out), kept, file), lines


def capture(
    asked: Sequence[str] = (), *, has_file: bool = False, names: Sequence[str] = ENVIRONMENT
) -> tuple[dict[str, str], list[str]]:
    """Return the variables to keep, and a line for each that is set here and not kept.

    Args:
        asked: NAME or NAME=value. names: kept if they are set.
    Raises: UsageError for a name asked for that holds a secret, or is not set.
    """
    found = {name: os.environ[name] for name in names if name in os.environ}
    found |= dict(_asked(word) for word in asked)
    kept, lines = {}, []
    for name, value in found.items():
        if not value.isprintable():
            lines.append(f"{name} is left out: its value is not one line of text")
        elif "proxy" in name.lower() and "@" in value:
            lines.append(f"{name} is left out: it holds a password; use --env-file")
        else:
            kept[name] = value
    if not has_file:
        lines += [
            f"{name} is set here and not written into the schedule; if the run needs it, "
            "put it into a file (chmod 600) and name that with --env-file"
            for name in ("HF_TOKEN", "RAY_AUTH_TOKEN")
            if name in os.environ
        ]
    return kept, lines


def _asked(word: str) -> tuple[str, str]:
    name, given, value = word.partition("=")
    if not _NAME.fullmatch(name):
        raise UsageError(f"--env {name!r} must be a variable's NAME, or NAME=value.")
    if _SECRET.search(name):
        raise UsageError(
            f"--env {name} is a secret, and secrets are not written into schedules; put the line "
            f"{name}=... into a file that only you can read (chmod 600); name it with --env-file."
        )
    if not given and name not in os.environ:
        raise UsageError(f"--env {name} is not set here; set it, or give it as {name}=value.")
    return name, value if given else os.environ[name]


def private_file(path: Path) -> str:
    """Return the absolute path of a file that nobody else can read or write.

    Raises: UsageError for any other.
    """
    path = path.expanduser().absolute()
    try:
        found = path.stat()
    except OSError as error:
        raise UsageError(f"--env-file {path} cannot be read: {error.strerror}.") from None
    if not stat.S_ISREG(found.st_mode):
        raise UsageError(f"--env-file {path} is not a file.")
    if found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise UsageError(f"--env-file {path} must be yours alone; chmod 600 it.")
    return str(path)


def refuse_secret_urls(arguments: Sequence[str]) -> None:
    """Raise UsageError if what will be printed holds a URL with a password or a query."""
    for argument in arguments:
        url = urlsplit(argument.partition("=")[2] if argument.startswith("--") else argument)
        if url.scheme in ("http", "https") and ("@" in url.netloc or url.query):
            raise UsageError(
                f"the URL of {argument.partition('=')[0]} holds a password or a query, which may "
                "be a token, and what `render` prints is for others to read; give one without."
            )


def _enhance() -> Any:
    import typer.main

    from jobs.cli import app

    return typer.main.get_command(app).commands["enhance"]  # type: ignore[attr-defined]


@contextmanager
def _usage_errors() -> Iterator[None]:
    """Turn click's errors of the body into ours, whichever click typer brings."""
    try:
        yield
    except Exception as error:
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        raise UsageError(f"{message()} (the words after -- are those of `enhance`)") from error


def _source(context: Any, name: str) -> str:
    return getattr(context.get_parameter_source(name), "name", "")


def _as_words(parameter: Any, value: Any) -> list[str]:
    option = max(parameter.opts, key=len)
    if getattr(parameter, "is_flag", False):
        return [option if value else max(parameter.secondary_opts, key=len)]
    values = value if getattr(parameter, "multiple", False) else [value]
    if parameter.name == "model":
        values = [_model(text) for text in values]
    values = [v.expanduser().absolute() if isinstance(v, Path) else v for v in values]
    return [f"{option}={text}" for text in values]


def _model(name: str) -> str:
    """Return a model's name as it is, its folder absolute."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.is_dir() and name not in ("auto", "pocket") else name


def _default_out(photos: Path | str) -> Path | str:
    from pipeline.spec import default_out

    if isinstance(photos, Path) and not photos.exists():
        raise UsageError(f"{photos} is not on this machine; say where its results go with --out.")
    return default_out(photos)
