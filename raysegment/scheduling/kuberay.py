"""Whether KubeRay would take a manifest, without a cluster: by its schemas and its operator's own rules."""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
from importlib.resources import files
from typing import Any

from raysegment.errors import UsageError, WorkError
from raysegment.scheduling.operator_rules import broken_rules

VERSION = "1.7.0"

#: Schema by kind, and the SHA-256 of its JSON.
_SCHEMAS = {
    "RayCluster": (
        "rayclusters.v1.json.gz",
        "b71a02806a7c9eccf6cc4b71c299c6720c520858ac116ba3446c75f1502c9dc7",
    ),
    "RayCronJob": (
        "raycronjobs.v1.json.gz",
        "fe8a304b5f226255756152209f5684a6deec2972f5dc79ac0226cfbe59dd8b6d",
    ),
    "RayJob": ("rayjobs.v1.json.gz", "70a3d9fe06b37c29a8b8dcefcfd3c99864fd11a95289edc7c1472060432d3816"),
}


def check(manifest: dict[str, Any]) -> None:
    """Raise UsageError naming the first place where KubeRay would refuse a RayCluster, RayJob or RayCronJob."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    kind = manifest["kind"]
    complaint = best_match(Draft202012Validator(_schema(kind)).iter_errors(manifest))
    if complaint is not None:
        place = ".".join(map(str, complaint.absolute_path)) or kind
        raise UsageError(f"KubeRay {VERSION} takes no such {kind}: {place}: {complaint.message}")
    if broken := broken_rules(manifest):
        raise UsageError(f"KubeRay {VERSION} takes no such {kind}: {broken[0]}")


@functools.cache
def _schema(kind: str) -> dict[str, Any]:
    name, digest = _SCHEMAS[kind]
    raw = gzip.decompress((files("raysegment.scheduling") / "schemas" / name).read_bytes())
    if hashlib.sha256(raw).hexdigest() != digest:
        raise WorkError(f"{name} is not the schema of KubeRay {VERSION}: install raysegment again")
    schema: dict[str, Any] = _closed(json.loads(raw))
    return schema


def _closed(node: Any) -> Any:
    """The same schema, in which a key that it does not name is an error: Kubernetes drops it without a word."""
    if isinstance(node, list):
        return [_closed(item) for item in node]
    if not isinstance(node, dict):
        return node
    closed = {key: _closed(value) for key, value in node.items()}
    if isinstance(node.get("properties"), dict) and node.get("type") == "object":
        closed.setdefault("additionalProperties", False)
    return closed
