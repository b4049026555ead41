"""What the pod of a Kubernetes CronJob runs: create a RayJob and wait for its end, so that the CronJob knows it.

    python -m raysegment.scheduling.rayjob RAYJOB.yaml

A RayJob of this job that still runs, because the pod that waited for it lost its node, is waited for instead: there are
never two. The RayJob belongs to the Job of this pod (OWNER_NAME, OWNER_UID) and is deleted with it. Exit code: that of
the run; 1 where there is none. Imports neither torch nor ray.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_OVER = ("Complete", "Failed", "ValidationFailed")
_POLL_S = 10.0


class RefusedError(Exception):
    """The API server does not do what it is asked, and will not in a while."""


@dataclass(frozen=True)
class Api:
    """The RayJobs of a namespace."""

    server: str
    """"https://10.0.0.1:443"."""
    namespace: str
    account: Path = _ACCOUNT
    poll_s: float = _POLL_S

    def ask(self, path: str = "", body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The server's answer; POST where there is a `body`. Waits while it does not answer. Raises RefusedError."""
        url = f"{self.server}/apis/ray.io/v1/namespaces/{self.namespace}/rayjobs{path}"
        while True:
            token = (self.account / "token").read_text().strip()  # it is renewed from time to time
            request = urllib.request.Request(
                url,
                data=None if body is None else json.dumps(body).encode(),
                headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
            )
            try:
                with urllib.request.urlopen(request, timeout=30, context=self._trust()) as answer:
                    found: dict[str, Any] = json.load(answer)
                    return found
            except urllib.error.HTTPError as e:
                said = e.read().decode(errors="replace")[:500]
                if e.code < 500 and e.code not in (401, 429):
                    raise RefusedError(f"HTTP {e.code}: {said}") from e
                print(f"the API server answers HTTP {e.code}, asking again", flush=True)
            except OSError as e:
                print(f"the API server does not answer ({e}), asking again", flush=True)
            time.sleep(self.poll_s)

    def _trust(self) -> ssl.SSLContext | None:
        https = self.server.startswith("https://")
        return ssl.create_default_context(cafile=str(self.account / "ca.crt")) if https else None


def run(api: Api, manifest: dict[str, Any], owner: tuple[str, str]) -> int:
    """Create, or find, the RayJob and wait for its end; the exit code of the run. Raises RefusedError."""
    job = _running(api, manifest) or api.ask(body=_owned(manifest, *owner))
    name, said = job["metadata"]["name"], ""
    print(f"waiting for RayJob {name}", flush=True)
    while True:
        job = api.ask(f"/{name}")
        status = job.get("status", {})
        now = " ".join(filter(None, (status.get("jobDeploymentStatus"), status.get("jobStatus"))))
        if now != said:
            said = now
            print(f"{name}: {said}", flush=True)
        if status.get("jobDeploymentStatus") in _OVER:
            return _exit_code(status)
        time.sleep(api.poll_s)


def _running(api: Api, manifest: dict[str, Any]) -> dict[str, Any] | None:
    label = manifest["metadata"]["labels"]["raysegment/job"]
    found = api.ask(f"?labelSelector=raysegment%2Fjob%3D{label}")["items"]
    alive = [job for job in found if job.get("status", {}).get("jobDeploymentStatus") not in _OVER]
    return alive[0] if alive else None


def _owned(manifest: dict[str, Any], name: str, uid: str) -> dict[str, Any]:
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid}
    return {**manifest, "metadata": {**manifest["metadata"], "ownerReferences": [owner]}}


def _exit_code(status: dict[str, Any]) -> int:
    message = status.get("message") or status.get("reason") or ""
    print(message, flush=True)
    if status.get("jobStatus") == "SUCCEEDED":
        return 0
    said = re.search(r"exit code (\d+)", message)
    return int(said[1]) or 1 if said is not None else 1


def main() -> int:
    """With the surroundings that Kubernetes gives a pod."""
    import yaml

    manifest = yaml.safe_load(Path(sys.argv[1]).read_text(encoding="utf-8"))
    server = f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}"
    try:
        api = Api(server, manifest["metadata"]["namespace"])
        return run(api, manifest, (os.environ["OWNER_NAME"], os.environ["OWNER_UID"]))
    except RefusedError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
