"""Tokens, and what a cluster shows to strangers.

A Ray cluster runs any code that anyone sends who reaches it; its only lock is the token. Ray looks for it in
RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH and ~/.ray/auth_token, in this order, but uses it only in the mode "token". The
token is never printed, logged, or put into a job.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from raysegment.errors import UsageError
from raysegment.runtime.address import REACH_S, Address

#: user:password@ of a URL, or the signature of a presigned one.
_SECRET = re.compile(
    r"://[^/@\s]*:[^/@\s]+@|[?&](X-Amz-Signature|X-Goog-Signature|sig|token)=", re.IGNORECASE
)
_OPEN = "anyone who reaches it can run code there: start it with RAY_AUTH_MODE=token"


def token_file(environment: Mapping[str, str] = os.environ, home: Path | None = None) -> Path:
    """Where Ray keeps the token, be it there or not."""
    given = environment.get("RAY_AUTH_TOKEN_PATH")
    if given:
        return Path(given)
    try:
        home = home or Path.home()
    # there is none: see ensure_token; containers give such a user this one
    except RuntimeError:
        home = Path("/")
    return home / ".ray" / "auth_token"


def find_token(environment: Mapping[str, str] = os.environ) -> str | None:
    """The token that Ray would use, None when there is none. Raises UsageError when its file cannot be read."""
    if environment.get("RAY_AUTH_MODE", "token").lower() == "disabled":
        return None
    given = environment.get("RAY_AUTH_TOKEN", "").strip()
    if given:
        return given
    path = token_file(environment)
    # not path.is_file(): that raises where the folder may not be looked into
    if not os.path.isfile(path):
        return None
    close_token_file(path)
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except OSError as e:
        raise UsageError(f"cannot read Ray's token in {path}: {e.strerror}") from e


def close_token_file(path: Path | None = None) -> None:
    """Ray writes its token readable for everyone; nobody else has any business with it."""
    path = token_file() if path is None else path
    if os.path.isfile(path):
        about = path.stat()
        if about.st_uid == os.getuid() and stat.S_IMODE(about.st_mode) & 0o077:
            path.chmod(0o600)


def ensure_token() -> None:
    """A token of its own for an embedded Ray where Ray could keep none: service accounts have no home to write to.

    Raises UsageError when there is one that cannot be read.
    """
    if os.environ.get("RAY_AUTH_MODE") != "token" or find_token() or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    try:
        folder = Path.home() / ".ray"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        kept = os.access(folder, os.W_OK)
    # RuntimeError: a user whom the system does not know has no home at all
    except (OSError, RuntimeError):
        kept = False
    if not kept:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def use_token() -> bool:
    """Let Ray use the token there is; whether there is one. Ray settles this when it is imported."""
    found = find_token() is not None
    if found and "ray" not in sys.modules:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    return found


@dataclass(frozen=True, slots=True)
class Exposure:
    """What a cluster's dashboard tells someone who shows no token."""

    needs_token: bool
    is_encrypted: bool
    ray_version: str | None
    """None: told only to those who show the token."""


def exposure(address: Address) -> Exposure:
    """Knock without a token. Raises UsageError when what answers is no Ray dashboard."""
    try:
        status, body = _get(address, "/api/version", None)
    except (OSError, ValueError) as e:
        raise UsageError(f"{address}: {e}: is a Ray cluster running there?") from e
    encrypted = address.text.startswith("https://")
    if status in (401, 403):
        return Exposure(True, encrypted, None)
    version = body.get("ray_version") if status == 200 else None
    if version is None:
        raise UsageError(
            f"{address} answers, but not as a Ray dashboard does (HTTP {status}): check host and port"
        )
    return Exposure(False, encrypted, str(version))


def ask(address: Address, path: str, token: str | None) -> dict[str, object]:
    """What the dashboard says to the token; {} where it refuses."""
    try:
        status, body = _get(address, path, token)
    except (OSError, ValueError):
        return {}
    return body if status == 200 else {}


def refuse_exposure(address: Address, found: Exposure, *, is_allowed: bool, sends_code: bool) -> None:
    """Raise UsageError for a cluster that is open to others, or would become so, unless that is allowed."""
    if is_allowed:
        return
    if not found.is_encrypted and not address.is_loopback:
        raise UsageError(
            f"{address} is not encrypted: others on the way could read the token and run code as you: use https://, a "
            "tunnel to 127.0.0.1, or --allow-insecure"
        )
    if sends_code and not found.needs_token:
        raise UsageError(f"{address} asks for no token: {_OPEN}, or pass --allow-insecure")


def present_token(address: Address, *, allow_insecure: bool) -> None:
    """Let Ray show the token there is to a cluster, HOST:6379, that asks for one; call it before Ray is imported.

    Raises UsageError for a cluster on the network that takes orders from strangers, unless that is allowed.
    """
    if address.host is None or not _answers_strangers(address):
        use_token()
        return
    if not (address.is_loopback or allow_insecure):
        raise UsageError(
            f"{address} asks for no token: {_OPEN}, or pass --allow-insecure (in Python: call ray.init() before)"
        )
    if "ray" not in sys.modules:  # a driver with a token would be let in, and its workers would die
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")


def _answers_strangers(address: Address) -> bool:
    """Whether Ray's own port answers a call that shows no token and changes nothing.

    No, too, where what listens is no Ray, or wants TLS: connecting to it will say so.
    """
    import grpc

    with grpc.insecure_channel(address.text) as channel:
        knock = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
        try:
            knock(b"", timeout=REACH_S)
        except grpc.RpcError:
            return False
    return True


def refuse_secrets(words: Iterable[str]) -> None:
    """Raise UsageError for a word that would show a secret to all who see the cluster's dashboard."""
    for word in words:
        if _SECRET.search(word):
            name = word.partition("=")[0] if word.startswith("--") else "a URL"
            raise UsageError(
                f"{name} holds a password or a signature, which the cluster's dashboard would show to others: give the "
                "nodes the right itself, and a plain URL here"
            )


def _get(address: Address, path: str, token: str | None) -> tuple[int, dict[str, object]]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(address.text + path, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=REACH_S) as answer:
            body = json.loads(answer.read(1 << 22))
            return answer.status, body if isinstance(body, dict) else {}
    except urllib.error.HTTPError as e:
        return e.code, {}
