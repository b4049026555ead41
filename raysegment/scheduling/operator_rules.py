"""What the KubeRay operator refuses although its schema takes it.

Ported from ray-operator/controllers/ray/utils/validation.go of KubeRay 1.7.0. Kinds: RayCluster, RayJob, RayCronJob.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from zoneinfo import available_timezones

from raysegment.nightly.quantities import next_firing

_LONGEST = {"RayCluster": 53, "RayJob": 47, "RayCronJob": 36}
#: What Kubernetes puts behind a generateName.
_SUFFIX = 5
_MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
_LIFETIME = {"DeleteWorkers": 0, "DeleteCluster": 1, "DeleteSelf": 2}
#: Fields that need a feature gate that is off by default.
_GATED = ("networkPolicy", "tlsOptions", "historyServerOptions")


def broken_rules(manifest: Mapping[str, Any]) -> list[str]:
    """One line for each rule that a manifest breaks; it passed the schema before."""
    kind, spec = manifest["kind"], manifest.get("spec", {})
    found = list(_name(kind, manifest.get("metadata", {})))
    if kind == "RayCluster":
        return [*found, *_cluster(spec)]
    if kind == "RayJob":
        return [*found, *_job(spec)]
    return [*found, *_cron(spec), *_job(spec.get("jobTemplate", {}))]


def _name(kind: str, metadata: Mapping[str, Any]) -> Iterator[str]:
    generated = metadata.get("generateName")
    name = metadata.get("name") or (generated + _SUFFIX * "x" if generated else "")
    if len(name) > _LONGEST[kind]:
        yield f"the name {name!r} has {len(name)} characters, at most {_LONGEST[kind]} are allowed"
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield f"the name {name!r} is no DNS label: small letters, digits and -, a letter first"


def _cron(spec: Mapping[str, Any]) -> Iterator[str]:
    schedule = spec.get("schedule", "")
    if "TZ=" in schedule:
        yield f"schedule {schedule!r} holds a time zone: it belongs into timeZone"
    else:
        from datetime import UTC, datetime

        try:
            next_firing(schedule, datetime.now(UTC))
        except ValueError as e:
            yield f"schedule {e}"
    zone = spec.get("timeZone")
    if zone is not None and zone not in available_timezones():
        yield f"timeZone {zone!r} is no time zone"


def _job(spec: Mapping[str, Any]) -> Iterator[str]:
    mode, shutdown = spec.get("submissionMode", "K8sJobMode"), spec.get("shutdownAfterJobFinishes", False)
    strategy = spec.get("deletionStrategy") or {}
    if mode not in _MODES:
        yield f"submissionMode {mode!r} is none of {', '.join(_MODES)}"
    if spec.get("ttlSecondsAfterFinished", 0) < 0:
        yield "ttlSecondsAfterFinished is below 0"
    if spec.get("ttlSecondsAfterFinished", 0) > 0 and not shutdown:
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    if spec.get("suspend") and not shutdown:
        yield "suspend needs shutdownAfterJobFinishes"
    for key in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(key, 1) <= 0:
            yield f"{key} must be above 0"
    if spec.get("backoffLimit", 0) < 0:
        yield "backoffLimit is below 0"
    if ("rayClusterSpec" in spec) == ("clusterSelector" in spec):
        yield "exactly one of rayClusterSpec and clusterSelector must be there"
    if "clusterSelector" in spec:
        barred = {
            "suspend": spec.get("suspend"),
            "backoffLimit": spec.get("backoffLimit"),
            "SidecarMode": mode == "SidecarMode",
        }
        yield from (f"clusterSelector excludes {key}" for key, is_set in barred.items() if is_set)
    if mode == "SidecarMode":
        yield from _sidecar(spec)
    if mode == "InteractiveMode" and spec.get("entrypoint"):
        yield "InteractiveMode excludes entrypoint"
    if strategy:
        yield from _deletion(strategy, spec, shutdown)
    if "rayClusterSpec" in spec:
        cluster = spec["rayClusterSpec"]
        if cluster.get("authOptions", {}).get("enableK8sTokenAuth"):
            yield "authOptions.enableK8sTokenAuth is not for jobs"
        yield from _cluster(cluster)


def _sidecar(spec: Mapping[str, Any]) -> Iterator[str]:
    yield from (
        f"SidecarMode excludes {key}" for key in ("submitterPodTemplate", "submitterConfig") if key in spec
    )
    head = spec.get("rayClusterSpec", {}).get("headGroupSpec", {}).get("template", {}).get("spec", {})
    if head.get("restartPolicy", "Never") != "Never":
        yield "SidecarMode needs restartPolicy Never of the head"


def _deletion(strategy: Mapping[str, Any], spec: Mapping[str, Any], shutdown: bool) -> Iterator[str]:
    rules = strategy.get("deletionRules", [])
    legacy = [strategy[key] for key in ("onSuccess", "onFailure") if key in strategy]
    if rules and shutdown:
        yield "deletionRules exclude shutdownAfterJobFinishes"
    if rules and legacy:
        yield "deletionRules exclude onSuccess and onFailure"
    policies = {rule.get("policy") for rule in (*rules, *legacy)}
    if "DeleteWorkers" in policies and spec.get("rayClusterSpec", {}).get("enableInTreeAutoscaling"):
        yield "DeleteWorkers is not allowed with autoscaling"
    if "clusterSelector" in spec and policies & {"DeleteWorkers", "DeleteCluster"}:
        yield "clusterSelector excludes DeleteWorkers and DeleteCluster"
    after: dict[str, dict[str, int]] = {}
    for rule in rules:
        condition, policy = rule["condition"], rule["policy"]
        status = condition.get("jobStatus") or condition.get("jobDeploymentStatus")
        if status is None or ("jobStatus" in condition) == ("jobDeploymentStatus" in condition):
            yield "a deletion rule needs one of jobStatus and jobDeploymentStatus"
        elif policy in after.setdefault(status, {}):
            yield f"two deletion rules say {policy} for {status}"
        else:
            after[status][policy] = condition.get("ttlSeconds", 0)
    for status, ttl in after.items():
        order = [ttl[policy] for policy in sorted(_LIFETIME.keys() & ttl.keys(), key=lambda p: _LIFETIME[p])]
        if order != sorted(order):
            yield f"deletion rules for {status}: workers go first, then the cluster, then the job"


def _cluster(spec: Mapping[str, Any]) -> Iterator[str]:
    autoscaling = spec.get("enableInTreeAutoscaling", False)
    if "headGroupSpec" not in spec:
        yield "headGroupSpec is missing"
        return
    if spec.get("authOptions", {}).get("mode") == "token" and _release(spec.get("rayVersion", "0")) < (
        2,
        52,
        0,
    ):
        yield f"authOptions.mode token needs rayVersion 2.52.0 or newer, not {spec.get('rayVersion')}"
    yield from (f"{key} needs a feature gate that is off by default" for key in _GATED if key in spec)
    names = [group["groupName"] for group in spec.get("workerGroupSpecs", [])]
    if len(set(names)) < len(names):
        yield "two worker groups have the same groupName"
    for group in spec.get("workerGroupSpecs", []):
        low, high = group.get("minReplicas"), group.get("maxReplicas")
        if not autoscaling and (low is None or high is None):
            yield f"worker group {group['groupName']}: minReplicas and maxReplicas must be set without autoscaling"
        if low is not None and high is not None and low > high:
            yield f"worker group {group['groupName']}: minReplicas {low} is above maxReplicas {high}"
    for group in (spec["headGroupSpec"], *spec.get("workerGroupSpecs", [])):
        yield from _group(group, autoscaling and spec.get("autoscalerOptions", {}).get("version") == "v2")


def _group(group: Mapping[str, Any], autoscaler_v2: bool) -> Iterator[str]:
    name, parameters = group.get("groupName", "head"), group.get("rayStartParams", {})
    pod = group["template"]["spec"]
    if not pod.get("containers"):
        yield f"group {name}: a pod needs a container"
    if "labels" in parameters:
        yield f"group {name}: labels do not belong into rayStartParams"
    doubled = {"num-cpus", "num-gpus", "memory", "resources"} & parameters.keys()
    if group.get("resources") and doubled:
        yield f"group {name}: resources exclude {sorted(doubled)[0]} in rayStartParams"
    if autoscaler_v2:
        if pod.get("restartPolicy", "Never") != "Never":
            yield f"group {name}: the autoscaler v2 needs restartPolicy Never"
        environment = {entry["name"] for box in pod.get("containers", []) for entry in box.get("env", [])}
        if "RAY_enable_autoscaler_v2" in environment:
            yield f"group {name}: RAY_enable_autoscaler_v2 beside autoscalerOptions.version"


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
