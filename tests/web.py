"""A web server on loopback for a folder, that answers range requests and can be told to misbehave."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Web:
    """What it is told, and what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = ""
        self.answers_ranges = True
        self.says_etag = False
        self.failures: list[int] = []
        """Statuses of the next answers."""
        self.requests: list[int] = []
        """Bytes of every answer to a GET."""


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[Web]:
    """Serve the files of a folder; ends with the context."""
    web = Web(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(has_body=False)

        def do_GET(self) -> None:
            self.answer(has_body=True)

        def do_PUT(self) -> None:
            """Answered only with what `failures` says."""
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.answer(has_body=False)

        def answer(self, *, has_body: bool) -> None:
            path = web.folder / self.path.lstrip("/")
            status = web.failures.pop(0) if web.failures else 200 if path.is_file() else 404
            if status != 200:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            content = path.read_bytes()
            asked = self.headers.get("Range") if web.answers_ranges else None
            if asked:
                first, last = asked.removeprefix("bytes=").split("-")
                start = int(first) if first else len(content) - int(last)
                content = content[start : int(last) + 1 if first and last else None]
                status = 206
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            if web.says_etag:
                self.send_header("ETag", f'"{hashlib.md5(path.read_bytes()).hexdigest()}"')
            self.end_headers()
            if has_body:
                web.requests.append(len(content))
                self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            """Tests are quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
