"""Where work is to run, in one line of text: ``--address``, or the variable RAY_ADDRESS."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from raysegment.errors import UsageError

#: How long a cluster may take to answer at all.
REACH_S = 5.0
#: Ray lets these override whatever address a program gives it.
_OVERRIDES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
_FORMS = "give auto, HOST:6379, or http://HOST:8265"


@dataclass(frozen=True, slots=True)
class Address:
    """One of three places: this process's own Ray, a running cluster, the Jobs API of a cluster."""

    kind: Literal["local", "cluster", "jobs"]
    text: str = "local"
    """As Ray takes it, without a slash at the end."""
    said_by: str = "--address"
    host: str | None = None
    """None: no host was named (local, auto)."""
    port: int = 0

    @property
    def is_loopback(self) -> bool:
        return self.host in ("localhost", "::1") or (self.host or "").startswith("127.")

    def __str__(self) -> str:
        return f"{self.said_by} {self.text}"


def where(option: str | None, environment: Mapping[str, str] = os.environ) -> Address:
    """The place that `option` names, else RAY_ADDRESS, else this machine. Raises UsageError."""
    said_by, text = ("--address", option) if option else ("RAY_ADDRESS", environment.get("RAY_ADDRESS", ""))
    text = text.strip().rstrip("/")
    if text in ("", "local"):
        return Address("local")
    if text == "auto":
        return Address("cluster", text, said_by)
    if text.startswith(("http://", "https://")):
        return _url(text, said_by)
    found = re.fullmatch(r"\[?([^\s/\[\]]+?)\]?:(\d+)", text)
    if found is None or "://" in text or not 0 < int(found[2]) < 65536:
        ours = "Ray Client is not used: it ends with its connection; " if text.startswith("ray://") else ""
        raise UsageError(f"{said_by} {text!r}: {ours}{_FORMS}")
    return Address("cluster", text, said_by, found[1], int(found[2]))


def _url(text: str, said_by: str) -> Address:
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as e:
        raise UsageError(f"{said_by} {text!r}: {e}; {_FORMS}") from e
    if parts.username or parts.password:
        raise UsageError(
            f"{said_by}: a password in a URL ends in logs: put Ray's token into RAY_AUTH_TOKEN_PATH"
        )
    if not host:
        raise UsageError(f"{said_by} {text!r} names no host; {_FORMS}")
    return Address("jobs", text, said_by, host, port or (443 if parts.scheme == "https" else 80))


def reach(address: Address) -> None:
    """Raise UsageError unless something listens there."""
    if address.host is None:
        return
    try:
        socket.create_connection((address.host, address.port), timeout=REACH_S).close()
    except OSError as e:
        reason = "no answer" if isinstance(e, TimeoutError) else e.strerror or str(e)
        raise UsageError(f"{address}: {reason}: is a Ray cluster running there?") from e


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Inside, Ray goes where it is told to, whatever the environment says."""
    held = {name: os.environ.pop(name) for name in _OVERRIDES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(held)
