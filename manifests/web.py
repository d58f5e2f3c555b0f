"""Reading a web address within limits of time and size, whatever its server does."""

from __future__ import annotations

import base64
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from http import HTTPStatus
from http.client import (
    HTTPConnection,
    HTTPException,
    HTTPResponse,
    HTTPSConnection,
    InvalidURL,
)
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from manifests import deadline
from manifests.addresses import WEB_SCHEMES, address_problem, shown, status_error
from manifests.errors import AddressError, OutOfReachError

MAX_REDIRECTS = 10
_CHUNK_BYTES = 2**16
_REDIRECTS = (301, 302, 303, 307, 308)
_HEADERS = {
    "User-Agent": "doodl-batch",
    "Accept": "*/*",
    "Accept-Encoding": "identity",
    "Connection": "close",
}


def fetch(uri: str, take: Callable[[bytes], object], *, max_bytes: int) -> None:
    """Hand what a web address holds to `take`, piece by piece.

    Raises: OutOfReachError if the server cannot be had, breaks off, or takes longer than
        `deadline.LIMITS`; AddressError if it has no such file, or a larger one, or a web page.
    """
    download = _Download(uri, take, max_bytes)
    limit = deadline.LIMITS.total_seconds
    try:
        deadline.within(limit, download.run, download.give_up)
    except deadline.DeadlineError as error:
        raise OutOfReachError(f"{shown(uri)}: {error}") from error


class _Download:
    """One address's way through redirects to its bytes; `give_up` ends it from another thread."""

    def __init__(self, uri: str, take: Callable[[bytes], object], max_bytes: int) -> None:
        self.uri, self.take, self.max_bytes = uri, take, max_bytes
        self._given_up = False
        self._socket: socket.socket | None = None

    def give_up(self) -> None:
        self._given_up = True
        if self._socket is not None:
            with suppress(OSError):
                # Not SSLSocket's own: a thread may be reading through it.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def run(self) -> None:
        limits, uri, user = deadline.LIMITS, self.uri, _user(urlsplit(self.uri))
        for _ in range(MAX_REDIRECTS + 1):
            parts = urlsplit(uri)
            connection = _connection(parts, limits.connect_seconds)
            try:
                response = self._answer(connection, parts, user)
                target = response.getheader("Location")
                if response.status not in _REDIRECTS or target is None:
                    self._receive(response)
                    return
            except TimeoutError as error:
                raise self._out_of_reach(f"silent for {limits.silence_seconds:g} s") from error
            except (OSError, HTTPException) as error:
                if isinstance(error, (AddressError, InvalidURL)):
                    raise
                reason = getattr(error, "strerror", None) or type(error).__name__
                raise self._out_of_reach(str(reason)) from error
            finally:
                connection.close()
            uri = urljoin(uri, target)
            to = urlsplit(uri)
            if to.scheme not in WEB_SCHEMES or address_problem(uri):
                raise AddressError(f"{shown(self.uri)}: redirected to what is no web address")
            same_host = to.netloc.rpartition("@")[2] == parts.netloc.rpartition("@")[2]
            if not same_host or (parts.scheme, to.scheme) == ("https", "http"):
                user = None  # a password is for its own host alone, and not for all to read
        raise AddressError(f"{shown(self.uri)}: redirected more than {MAX_REDIRECTS} times")

    def _answer(
        self, connection: HTTPConnection, parts: SplitResult, user: str | None
    ) -> HTTPResponse:
        try:
            connection.connect()
        except TimeoutError as error:
            limit = deadline.LIMITS.connect_seconds
            raise self._out_of_reach(f"no connection within {limit:g} s") from error
        self._socket = connection.sock
        connection.sock.settimeout(deadline.LIMITS.silence_seconds)
        if self._given_up:
            raise self._out_of_reach("given up")
        path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~[]")
        query = "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~?[]") if parts.query else ""
        headers = _HEADERS | ({"Authorization": user} if user else {})
        connection.request("GET", path + query, headers=headers)
        return connection.getresponse()

    def _receive(self, response: HTTPResponse) -> None:
        if not 200 <= response.status < 300:
            raise status_error(response.status, f"{shown(self.uri)}: {_named(response.status)}")
        if (response.length or 0) > self.max_bytes:
            raise self._too_large()
        is_page = (response.getheader("Content-Type") or "").lower().startswith("text/html")
        received = 0
        while chunk := response.read(_CHUNK_BYTES):
            if received == 0 and is_page and chunk.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
                raise AddressError(f"{shown(self.uri)}: answered with a web page, no file")
            received += len(chunk)
            if received > self.max_bytes:
                raise self._too_large()
            self.take(chunk)
        if received == 0:
            raise self._out_of_reach("answered with nothing")
        if response.length:
            raise self._out_of_reach(f"broke off after {received:,} bytes")

    def _too_large(self) -> AddressError:
        return AddressError(f"{shown(self.uri)}: larger than {self.max_bytes:,} bytes")

    def _out_of_reach(self, why: str) -> OutOfReachError:
        return OutOfReachError(f"{shown(self.uri)}: {why}")


def _connection(parts: SplitResult, timeout: float) -> HTTPConnection:
    host = str(parts.hostname)
    if parts.scheme == "https":
        return HTTPSConnection(host, parts.port or 443, timeout=timeout, context=_context())
    return HTTPConnection(host, parts.port or 80, timeout=timeout)


@lru_cache(maxsize=1)
def _context() -> ssl.SSLContext:
    return ssl.create_default_context()  # which reads every certificate there is


def _user(parts: SplitResult) -> str | None:
    if parts.username is None:
        return None
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return "Basic " + base64.b64encode(pair.encode()).decode()


def _named(status: int) -> str:
    with suppress(ValueError):
        return f"HTTP {status} {HTTPStatus(status).phrase}"
    return f"HTTP {status}"
