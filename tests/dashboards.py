"""A stand-in for a cluster's job server, where a test is about what it answers before any job."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading


@contextlib.contextmanager
def fake_dashboard(ray_version, python_version=None, *, token=None, body=None, redirect=None):
    """Serve `/api/version` and `/api/v0/cluster_metadata` as Ray 2.60 does; yield (url, requests).

    `requests` collects (path, Authorization header). With a token, others get 401 or 403 as from
    Ray. `body` replaces the version's JSON, `redirect` sends everything elsewhere.
    """
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            said = self.headers.get("Authorization")
            seen.append((self.path, said))
            if redirect is not None:
                self.send_response(307)
                self.send_header("Location", redirect + self.path)
                self.end_headers()
                return
            if token is not None and said != f"Bearer {token}":
                text = "Unauthorized: Missing authentication token"
                self._answer(401 if said is None else 403, text.encode())
            elif self.path == "/api/version":
                answer = {"version": "4", "ray_version": ray_version, "session_name": "session_1"}
                self._answer(200, json.dumps(answer).encode() if body is None else body)
            elif self.path == "/api/v0/cluster_metadata" and python_version is not None:
                data = {"rayVersion": ray_version, "pythonVersion": python_version}
                self._answer(200, json.dumps({"result": True, "data": data}).encode())
            else:
                self._answer(404, b"404: Not Found")

        def _answer(self, code, data):
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()
