"""An S3 server (moto) that refuses what a file says, as AWS does: python tests/refusing_s3.py PORT FILE

FILE: one line "METHOD PREFIX" for each thing refused, of the path /bucket/key. To list is the method LIST.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

_DENIED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


def main(port: str, file: str) -> None:
    served = DomainDispatcherApplication(create_backend_app)

    def answer(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        method, path, query = (
            environ["REQUEST_METHOD"],
            environ["PATH_INFO"],
            parse_qs(environ["QUERY_STRING"]),
        )
        if "list-type" in query:
            method, path = "LIST", f"{path}/{query.get('prefix', [''])[0]}"
        refused = (line.split() for line in Path(file).read_text().splitlines())
        if any(method == word and path.startswith(prefix) for word, prefix in refused):
            start("403 Forbidden", [("Content-Type", "application/xml")])
            return [] if method == "HEAD" else [_DENIED]
        found: Iterable[bytes] = served(environ, start)
        return found

    run_simple("127.0.0.1", int(port), answer, threaded=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
