"""A web server on this machine that answers each path as a test says, well or badly."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

GIVES_UP_AFTER_SECONDS = 30


class Web:
    """A server's answers by path, to be changed while it runs.

    An answer is a photo's bytes, an HTTP status, a place to redirect to, or a function of the
    handler; a list gives its answers one after the other, and then its last.

    Attributes:
        asked: the paths asked for. hung_up: set once a client has left a function that `sends`.
    """

    def __init__(self, port):
        self.address = f"http://127.0.0.1:{port}"
        self.answers = {}
        self.asked = []
        self.stopped = threading.Event()
        self.hung_up = threading.Event()

    def uri(self, path, answer):
        """Return the address of a path that is to be answered so."""
        self.answers[path] = answer
        return self.address + path

    def answer(self, handler):
        path = urlsplit(handler.path).path
        self.asked.append(path)
        answer = self.answers.get(path, 404)
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if isinstance(answer, int):
            head(handler, answer, Content_Length=0)
        elif isinstance(answer, str):
            head(handler, 302, Location=answer, Content_Length=0)
        elif isinstance(answer, bytes):
            with_body(answer)(handler)
        else:
            answer(handler)


def head(handler, status=200, **headers):
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), str(value))
    handler.end_headers()


def with_body(body, length=None, kind="image/jpeg"):
    """Return an answer of these bytes, which may say another length than it has."""

    def answer(handler):
        head(handler, Content_Type=kind, Content_Length=len(body) if length is None else length)
        handler.wfile.write(body)

    return answer


def drop(handler):
    """Close the connection without a word."""
    handler.close_connection = True


def silence(handler):
    """Say nothing, for as long as the server runs."""
    handler.server.web.stopped.wait(GIVES_UP_AFTER_SECONDS)


def trickle_of_bytes(handler):
    """Send a byte now and then, for ever."""
    head(handler, Content_Type="image/jpeg")
    _send(handler, b"x", 0.05)


def trickle_of_headers(handler):
    """Send a header now and then, for ever."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Header: ")
    _send(handler, b"x", 0.05)


def flood(handler):
    """Send without end and without a length."""
    head(handler, Content_Type="image/jpeg")
    _send(handler, bytes(2**16), 0)


def _send(handler, data, pause_seconds):
    web = handler.server.web
    end = time.monotonic() + GIVES_UP_AFTER_SECONDS
    try:
        while not web.stopped.wait(pause_seconds) and time.monotonic() < end:
            handler.wfile.write(data)
    except OSError:
        web.hung_up.set()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.web.answer(self)

    def log_message(self, *arguments): ...

    def handle(self):
        with suppress(OSError):  # the client is gone
            super().handle()


@contextmanager
def web_serving():
    """Yield a `Web` whose server stops at the end."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads, server.block_on_close = True, False
    server.web = Web(server.server_port)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.web
    finally:
        server.web.stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()
