"""Kubernetes with KubeRay: a CronJob whose pod creates a RayJob and waits for it; on request a RayCronJob instead."""

from __future__ import annotations

import re
import shlex
from pathlib import PurePosixPath
from typing import Any

from raysegment.errors import UsageError
from raysegment.inference.request import parse_bytes
from raysegment.nightly.job import JobFile, is_url
from raysegment.scheduling import kuberay
from raysegment.scheduling.cron_line import CronLine
from raysegment.scheduling.scheduler import Rendered, Site, cron_of, longest, render

#: Seconds for nodes to come and images to be pulled, before the run begins.
_STARTING = 1800
#: What the operator and the CronJob may take besides.
_MARGIN = 600
#: The longest name of a job: a RayCronJob's, and a RayJob's with what Kubernetes puts behind it.
_LONGEST_NAME = {True: 36, False: 41}
#: Where the pods see the job file.
_MOUNT = "/etc/raysegment"


def kubernetes(job: JobFile, site: Site) -> Rendered:
    """``NAME.yaml``: service account, its rights, network policy, the RayJob to create, and the CronJob."""
    values = _values(job, site, ray_cron_job=False)
    ray_job = render("rayjob.yaml", job, site, **values)
    text = render("kubernetes.yaml", job, site, ray_job=ray_job, **values)
    kuberay.check(_parsed(ray_job)[0])
    return Rendered({f"{job.name}.yaml": text}, values["apply"])


def ray_cron_job(job: JobFile, site: Site) -> Rendered:
    """``NAME-raycronjob.yaml``, whose first lines say what a RayCronJob cannot do."""
    values = _values(job, site, ray_cron_job=True)
    text = render("raycronjob.yaml", job, site, **values)
    kuberay.check(_parsed(text)[-1])
    return Rendered({f"{job.name}-raycronjob.yaml": text}, values["apply"])


def _values(job: JobFile, site: Site, *, ray_cron_job: bool) -> dict[str, Any]:
    cluster, name = job.cluster, re.sub(r"[^a-z0-9]+", "-", job.name.lower()).strip("-")
    if not name[:1].isalpha():
        raise UsageError(f"name {job.name!r}: on Kubernetes a name begins with a letter")
    if len(name) > _LONGEST_NAME[ray_cron_job]:
        raise UsageError(
            f"name {job.name!r}: its objects on Kubernetes may have "
            f"{_LONGEST_NAME[ray_cron_job]} characters, not {len(name)}"
        )
    _check_cluster(job)
    namespace, secret = cluster.namespace or "default", f"{name}-job"
    file = site.folder / (f"{job.name}-raycronjob.yaml" if ray_cron_job else f"{job.name}.yaml")
    seconds = longest(job)
    return {
        "name": name,
        "namespace": namespace,
        "job_secret": secret,
        "cron": str(CronLine.parse(cron_of(job))),
        "mount": _MOUNT,
        "entrypoint": f"python -m raysegment batch {_MOUNT}/job.toml",
        "seconds": seconds,
        "starting": _STARTING,
        "all_seconds": None if seconds is None else seconds + _STARTING + _MARGIN,
        "nodes": cluster.nodes or 1,
        "cpus": cluster.cpus or 8,
        "memory": f"{parse_bytes(cluster.memory or '32Gi') >> 20}Mi",
        "apply": (
            f"kubectl --namespace {namespace} create secret generic {secret} "
            f"--from-file=job.toml={shlex.quote(str(site.job_file))} "
            "--dry-run=client --output yaml | kubectl apply -f -",
            f"kubectl apply -f {shlex.quote(str(file))}",
        ),
    }


def _check_cluster(job: JobFile) -> None:
    """Raise UsageError for what a pod would find out at two in the morning."""
    cluster = job.cluster
    if cluster.address is not None:
        raise UsageError(
            f"[cluster] address {cluster.address!r}: on Kubernetes every run gets a cluster of its own; leave it out, "
            "or let cron or systemd run the job in that cluster"
        )
    if cluster.image is None:
        raise UsageError("[cluster] image is missing: give the image that was built of cluster/Dockerfile")
    if job.workers == "auto":
        raise UsageError(
            "[cluster] workers = 'auto' sees no nodes before there are any: give a number, such as one for each GPU"
        )
    foreground = job.infer.foreground
    local = {
        "[input] paths": job.input.paths,
        "[model] path": (job.model.path,),
        "[output] path": (job.output.path,),
        "[report] path": (job.report.path,),
        "[ledger] path": (job.ledger.path,),
        "[infer] scratch": (job.infer.scratch,),
        "[infer] foreground": (None if foreground in ("all", "auto") else foreground,),
    }
    for key, paths in local.items():
        for path in paths:
            if path is not None and not is_url(path) and not _mounted(path, tuple(cluster.volumes)):
                raise UsageError(
                    f"{key} {path!r}: the pods do not see it; give a URL, "
                    "or an absolute path in one of [cluster] volumes"
                )


def _mounted(path: str, folders: tuple[str, ...]) -> bool:
    place = PurePosixPath(path)
    return ".." not in place.parts and any(place.is_relative_to(folder) for folder in folders)


def _parsed(text: str) -> list[dict[str, Any]]:
    import yaml

    return list(yaml.safe_load_all(text))
