"""A cluster seen from outside: its versions, what it has, and what it shows to others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from raysegment.console import counted
from raysegment.errors import UsageError
from raysegment.runtime.address import Address, reach, where
from raysegment.runtime.security import ask, exposure, find_token

#: Names of Ray's own processes; workers call themselves "ray::…".
_RAY = ("gcs_server", "raylet")


@dataclass(frozen=True, slots=True)
class Survey:
    """What was found at an address."""

    address: str
    needs_token: bool
    is_encrypted: bool
    ray_version: str | None
    """None: it is told only to those who show the right token."""
    nodes: int | None
    open_ports: tuple[int, ...]
    """Of Ray's processes on this machine that listen on all its interfaces."""
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "address": self.address,
            "needs_token": self.needs_token,
            "is_encrypted": self.is_encrypted,
            "ray_version": self.ray_version,
            "nodes": self.nodes,
            "open_ports": list(self.open_ports),
        }

    def rows(self) -> Iterator[tuple[str, str]]:
        """For a table: (what, value)."""
        yield "cluster", self.address
        yield "  Ray", self.ray_version or "told only with the right token"
        yield "  nodes", "unknown" if self.nodes is None else str(self.nodes)
        yield "  token", "needed" if self.needs_token else "not needed"
        yield "  encrypted", "yes" if self.is_encrypted else "no"


def survey(text: str) -> Survey:
    """Look at the dashboard `text`; nothing is sent that is not asked for, and the token not in the clear.

    Raises UsageError when no dashboard answers there.
    """
    address = where(text)
    if address.kind != "jobs":
        raise UsageError(f"{address}: the dashboard is what tells: give http://HOST:8265")
    reach(address)
    found = exposure(address)
    token = find_token() if found.is_encrypted or address.is_loopback else None
    seen: str | None = found.ray_version
    hosts: list[str] = []
    if token is not None or not found.needs_token:
        told = ask(address, "/api/version", token).get("ray_version")
        seen = str(told) if told else None
        hosts = node_hosts(address, token)
    ports = _open_ports() if address.is_loopback else ()
    return Survey(
        address=address.text,
        needs_token=found.needs_token,
        is_encrypted=found.is_encrypted,
        ray_version=seen,
        nodes=len(hosts) or None,
        open_ports=ports,
        warnings=tuple(_warnings(address, found.needs_token, found.is_encrypted, token, seen, ports)),
    )


def node_hosts(address: Address, token: str | None) -> list[str]:
    """IP addresses of the living nodes; none where the cluster does not say, or has only just been started."""
    found: Any = ask(address, "/api/v0/nodes?limit=10000", token)
    for key in ("data", "result", "result"):
        found = found.get(key, {}) if isinstance(found, dict) else {}
    return [node["node_ip"] for node in found if node.get("state") == "ALIVE"]


def _warnings(
    address: Address,
    needs_token: bool,
    is_encrypted: bool,
    token: str | None,
    seen: str | None,
    ports: tuple[int, ...],
) -> Iterator[str]:
    if not needs_token:
        yield (
            f"{address.text} asks for no token: anyone who reaches it can run code there: start the cluster with "
            "RAY_AUTH_MODE=token"
        )
    if not is_encrypted and not address.is_loopback:
        yield (
            f"{address.text} is not encrypted: others on the way could read the token and run code as you: use "
            "https:// or a tunnel to 127.0.0.1"
        )
    elif needs_token and seen is None:
        what = "refuses the token here" if token else "asks for a token, and there is none here"
        yield f"{address.text} {what}: put the cluster's into RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
    if seen is not None and seen != version("ray"):
        yield f"{address.text} runs Ray {seen}, here is {version('ray')}: only submitted jobs work there"
    if ports:
        shown = ", ".join(map(str, ports[:6])) + (", …" if len(ports) > 6 else "")
        lock = "only the token guards them" if needs_token else "nothing guards them"
        yield (
            f"Ray's processes here listen on all interfaces ({counted(len(ports), 'port')}: {shown}), "
            "whatever the dashboard "
            f"binds to, and {lock}: close them with a firewall"
        )


def _open_ports() -> tuple[int, ...]:
    import psutil

    found: set[int] = set()
    for process in psutil.process_iter(["name"]):
        if process.info["name"] in _RAY:
            try:
                found.update(
                    one.laddr.port
                    for one in process.net_connections("tcp")
                    if one.status == psutil.CONN_LISTEN and one.laddr.ip in ("0.0.0.0", "::")
                )
            except (psutil.AccessDenied, psutil.NoSuchProcess):
                continue  # another user's, or gone
    return tuple(sorted(found))
