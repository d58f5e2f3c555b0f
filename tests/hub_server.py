"""A model hub on this machine: one repository, in the hub's protocol, for its real client."""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "someone/tiny-sd"


@contextmanager
def hub_serving(folder, *, gated=False, extra=None):
    """Serve the files of a folder as REPOSITORY; yield (address, requested paths).

    extra: names and bytes of files that the repository has besides.
    """
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}
    files |= extra or {}
    requested = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments):
            pass

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            path = unquote(urlsplit(self.path).path)
            requested.append(f"{self.command} {path}")
            if gated:
                self._answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
            elif path.startswith(f"/api/models/{REPOSITORY}"):
                self._api(path.removeprefix(f"/api/models/{REPOSITORY}"))
            elif path.startswith(f"/{REPOSITORY}/resolve/"):
                self._file(path.removeprefix(f"/{REPOSITORY}/resolve/").partition("/")[2])
            else:
                self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

        def _api(self, rest):
            if rest.startswith("/tree/"):
                listing = [
                    {"type": "file", "path": name, "size": len(data), "oid": _etag(data)}
                    for name, data in files.items()
                ]
                self._answer(200, json.dumps(listing).encode())
                return
            if rest.startswith("/revision/") and rest[10:] not in ("main", COMMIT):
                self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
                return
            siblings = [{"rfilename": name, "size": len(d)} for name, d in files.items()]
            info = {
                "id": REPOSITORY,
                "modelId": REPOSITORY,
                "sha": COMMIT,
                "siblings": siblings,
                "cardData": {"license": "creativeml-openrail-m"},
                "tags": [],
                "private": False,
                "downloads": 0,
            }
            self._answer(200, json.dumps(info).encode())

        def _file(self, name):
            if name not in files:
                self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            data = files[name]
            headers = {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": COMMIT}
            self._answer(200, data, headers)

        def _answer(self, status, body, headers=None):
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requested
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _etag(data):
    return hashlib.sha1(data).hexdigest()
