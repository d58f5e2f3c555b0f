"""Whether a cluster answers, lets us in and fits, asked within seconds and without importing Ray.

Ray's own calls wait for minutes on an address where nothing answers.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from manifests import deadline
from pipeline.errors import UnusableEnvironmentError

PREFLIGHT_SECONDS = 3.0


class ClusterError(UnusableEnvironmentError):
    """A cluster that a job cannot be given to. `problem`: address, token, version or client."""

    def __init__(self, problem: str, message: str) -> None:
        super().__init__(message)
        self.problem = problem


@dataclass(frozen=True)
class Cluster:
    """A cluster that answered: the URL of its job server, and what it runs.

    `python_version` is "" where the cluster does not tell. `token` never leaves this process but
    in the header of a request to `url`.
    """

    url: str
    ray_version: str
    python_version: str = ""
    session: str = ""
    token: str | None = None

    def __repr__(self) -> str:
        return f"Cluster({self.url}, Ray {self.ray_version})"

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.token is None else {"Authorization": f"Bearer {self.token}"}


def find_cluster(address: str, *, check_versions: bool = True, with_token: bool = True) -> Cluster:
    """Return the cluster at an address, as RAY_ADDRESS or --address gives it.

    Args:
        address: the dashboard's `http(s)://host:port`, the head's `host:port` (either port), or
            `auto` for the one that runs on this machine.
        check_versions: whether other versions of Ray and Python than ours are an error; looking
            at a job that runs does not need them to be ours.
        with_token: whether a cluster that asks for our token gets it. A person has named the
            cluster then: whoever may write a file that we read must not be able to.
    Raises: ValueError if it is no such address; ClusterError if nothing answers there within
        three seconds, or it refuses our token, or its versions are not ours.
    """
    check_address(address)
    if importlib.util.find_spec("aiohttp") is None or importlib.util.find_spec("requests") is None:
        raise ClusterError(
            "client", "submitting needs Ray's job client; pip install 'doodl-batch[cluster]'."
        )
    cluster = _found(address, with_token)
    if check_versions:
        _check_versions(cluster)
    return cluster


def check_address(address: str) -> None:
    """Raise ValueError if an address is none that a job can be submitted to."""
    scheme, separator, _ = address.partition("://")
    if scheme == "ray" and separator:
        raise ValueError(
            f"{address} is a Ray Client address, which takes no jobs; give the dashboard's, "
            "such as http://HOST:8265."
        )
    if not separator and (
        address == "auto" or re.fullmatch(r"[\w.-]+:\d+|\[[\w:]+\]:\d+", address)
    ):
        return
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, urlsplit("")
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError(
            f"address (={without_secrets(address)!r}) must be http://HOST:8265 (the dashboard's), "
            "HOST:6379 (the head's) or auto."
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            f"address (={without_secrets(address)!r}) must hold no user, password or query; a "
            "token goes into RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH."
        )


def without_secrets(address: str) -> str:
    """Return an address without what may be a password or a signature."""
    return re.sub(r"//[^/@]*@", "//…@", address.partition("?")[0].partition("#")[0])


def within(seconds: float, address: str, ask: Callable[[], Any]) -> Any:
    """Return what `ask` returns. Raises: ClusterError if it takes longer, or finds nothing."""
    try:
        return deadline.within(seconds, ask)
    except deadline.DeadlineError as error:
        raise _dead(address, str(error)) from None
    except (ClusterError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise _dead(address, _named(error)) from error


def _dead(address: str, why: str) -> ClusterError:
    return ClusterError(
        "address",
        f"no Ray cluster answers at {without_secrets(address)} ({why}); start it, correct "
        "--address or RAY_ADDRESS, or unset RAY_ADDRESS to run on this machine.",
    )


def _found(address: str, with_token: bool) -> Cluster:
    if "://" in address:
        return _timed(address, lambda: _ask(address.rstrip("/"), with_token))
    if address != "auto":
        # So that a port where nothing listens is told at once.
        _timed(address, lambda: _connect(address))
        try:
            # A third for HTTP, which a head's own port does not speak, and the rest for the head.
            limit = PREFLIGHT_SECONDS / 3
            return within(limit, address, lambda: _ask(f"http://{address}", with_token))
        except ClusterError as error:
            if error.problem != "address":
                raise
    # A head's own port speaks no HTTP: Ray's client asks it where its job server is. Its import
    # takes seconds and is no part of the limit.
    from pipeline.submission import dashboard_url

    token = read_token() if with_token else None
    url = within(PREFLIGHT_SECONDS * 2 / 3, address, lambda: dashboard_url(address, token))
    try:
        return _timed(url, lambda: _ask(url, with_token))
    except ClusterError as error:
        if error.problem != "address":
            raise
        raise ClusterError(
            "address",
            f"the Ray head at {address} has its job server at {url}, which does not answer from "
            "here; start it with --dashboard-host=0.0.0.0, or give an --address that does.",
        ) from error


def _timed(address: str, ask: Callable[[], Any]) -> Any:
    return within(PREFLIGHT_SECONDS, address, ask)


def _connect(address: str) -> None:
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), PREFLIGHT_SECONDS).close()


def _ask(url: str, with_token: bool) -> Cluster:
    """Return the cluster whose job server is at a URL."""
    import requests

    def get(path: str, token: str | None) -> Any:
        try:
            return requests.get(
                url + path,
                headers=Cluster(url, "", token=token).headers,
                timeout=PREFLIGHT_SECONDS,
                allow_redirects=False,  # a token is for this host alone
            )
        except requests.RequestException as error:
            raise _dead(url, _named(error)) from error

    token = None
    answer = get("/api/version", None)
    if answer.status_code in (401, 403):  # whoever does not ask for a token is not shown it
        if not with_token:
            raise ClusterError(
                "token",
                f"the cluster at {url} asks for a token; name it by --address or RAY_ADDRESS, "
                "so that it is shown only where you say.",
            )
        token = read_token()
        if token is None:
            raise ClusterError(
                "token",
                f"the cluster at {url} asks for a token and {_where_tokens_are()} holds none; "
                "set RAY_AUTH_TOKEN to its token.",
            )
        answer = get("/api/version", token)
    if answer.status_code in (401, 403):
        raise ClusterError(
            "token",
            f"the cluster at {url} refuses the token of {_where_tokens_are()}; "
            "set RAY_AUTH_TOKEN to its token.",
        )
    try:
        said = answer.json()
        ray_version, session = str(said["ray_version"]), str(said.get("session_name", ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _dead(url, f"what answers, with HTTP {answer.status_code}, is no Ray") from None
    python_version = _python_version(lambda path: get(path, token))
    return Cluster(url, ray_version, python_version, session, token)


def _python_version(get: Callable[[str], Any]) -> str:
    """Return the cluster's Python version, "" where it does not tell: old versions, proxies."""
    try:
        return str(get("/api/v0/cluster_metadata").json()["data"]["pythonVersion"])
    except (ClusterError, ValueError, KeyError, TypeError, AttributeError):
        return ""


def _check_versions(cluster: Cluster) -> None:
    ours = {"Ray": importlib.metadata.version("ray"), "Python": sys.version.split()[0]}
    theirs = {"Ray": cluster.ray_version, "Python": cluster.python_version}
    for name, version in ours.items():
        if theirs[name] and _minor(version) != _minor(theirs[name]):
            raise ClusterError(
                "version",
                f"the cluster at {cluster.url} runs {name} {theirs[name]} and this machine "
                f"{name} {version}; both must be {_minor(version)} or {_minor(theirs[name])}.",
            )


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def read_token() -> str | None:
    """Return Ray's token as its own client would find it, None if there is none."""
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    try:
        return _token_file().read_text().strip() or None
    except (OSError, ValueError, RuntimeError):
        return None


def _token_file() -> Path:
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def _where_tokens_are() -> str:
    if os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return "RAY_AUTH_TOKEN"
    return str(_token_file())


def _named(error: BaseException) -> str:
    """Return the last cause of an error, short: clients wrap a refusal four times."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
