"""Real daemons in Linux namespaces of their own: away from this machine's processes, network and spools."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

#: Of the network inside, beside loopback: what resolves names asks for one.
ADDRESS = "10.9.8.7"


def need(*tools: str) -> None:
    """Skip, visibly, where a tool is not installed."""
    missing = [tool for tool in tools if shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def inside(script: str, folder: Path, *, timeout: float) -> subprocess.CompletedProcess[str]:
    """Run a bash script as root of a machine `node` with its own processes, mounts, network; all ends with it."""
    command = ["unshare", "--pid", "--mount", "--net", "--uts", "--fork", "--kill-child", "--mount-proc"]
    if os.geteuid():
        command += ["--user", "--map-root-user"]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine allows no namespaces")
    path = folder / "inside.sh"
    hosts = shlex.quote(str(folder / "hosts"))
    (folder / "hosts").write_text(f"127.0.0.1 localhost\n{ADDRESS} node\n")
    path.write_text(
        f"set -eu\nhostname node\nexport PATH=$PATH:/usr/sbin\nmount --bind {hosts} /etc/hosts\n"
        f"ip link set lo up\nip address add {ADDRESS}/32 dev lo\n{script}"
    )
    return subprocess.run(
        [*command, "bash", str(path)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=folder,
    )
