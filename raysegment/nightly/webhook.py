"""Tells a URL of a run that is over. Whatever goes wrong with that is a warning: the masks are made."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from raysegment import console

_TIMEOUT_S = 10


def notify(url: str, told: dict[str, Any]) -> None:
    """POST `told` as JSON. A warning names the host alone: the rest of such a URL is often a secret."""
    host = urlsplit(url).hostname
    request = urllib.request.Request(
        url,
        json.dumps(told).encode(),
        {"Content-Type": "application/json", "User-Agent": "raysegment"},
        method="POST",
    )
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S):
            return
    except urllib.error.HTTPError as e:
        why = f"it answers {e.code}"
        e.close()
    except urllib.error.URLError as e:
        why = str(e.reason)
    except (OSError, http.client.HTTPException, ValueError) as e:
        why = type(e).__name__
    console.warn(f"[report] webhook at {host} was not told: {why}")
