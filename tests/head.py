"""A Ray cluster of the test's own: `ray start --head` on loopback, with a token, in a folder of its own."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_START_S = 90.0
#: By default one fixed port for every Ray of a machine: the second one's jobs would never start.
_ANY_PORT = ("--dashboard-agent-listen-port=0", "--dashboard-agent-grpc-port=0", "--metrics-export-port=0")
_ROOT = Path(__file__).parents[1]


@dataclass
class Head:
    """Started by `start`; ended, with all its processes and by their ids alone, by `stop`."""

    token: str = field(default_factory=lambda: secrets.token_hex(32))
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="rs", dir="/tmp")))
    port: int = 0
    dashboard: int = 0
    asks_for_token: bool = True
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.dashboard}"

    @property
    def environment(self) -> dict[str, str]:
        """Of a user of this cluster: the token in a file, as Ray would have written it."""
        path = self.folder / "auth_token"
        if not path.exists():
            path.write_text(self.token)
            path.chmod(0o644)
        kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        return {
            **kept,
            "HOME": str(self.folder),
            "RAY_AUTH_TOKEN_PATH": str(path),
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(_ROOT),
        }

    def start(self, cpus: int = 2) -> Head:
        self.port, self.dashboard, client = _free_ports(3)
        self._ray(
            *("--head", f"--port={self.port}", "--dashboard-host=127.0.0.1", f"--num-cpus={cpus}"),
            *(f"--dashboard-port={self.dashboard}", f"--ray-client-server-port={client}"),
            f"--temp-dir={self.folder / 'r'}",
        )
        until = time.monotonic() + _START_S
        while not self._answers():
            assert self.processes[0].poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < until, "Ray did not start"
            time.sleep(0.3)
        return self

    def add_node_without(self, path: Path) -> None:
        """One more node, for which `path` is another, empty folder."""
        hidden = f'mount -t tmpfs none {path} && exec "$@"'
        self._ray(
            f"--address=127.0.0.1:{self.port}",
            "--num-cpus=1",
            before=["unshare", "-m", "sh", "-c", hidden, "sh"],
        )

    def _ray(self, *words: str, before: list[str] | None = None) -> None:
        # no package of ours on its path: a job must bring it along
        mode = "token" if self.asks_for_token else "disabled"
        environment = {**self.environment, "RAY_AUTH_MODE": mode, "PYTHONPATH": ""}
        ray = Path(sys.executable).parent / "ray"
        with (self.folder / "log").open("ab") as log:
            command = [
                *(before or []),
                str(ray),
                "start",
                "--block",
                "--object-store-memory=80000000",
                *_ANY_PORT,
                *words,
            ]
            self.processes.append(
                subprocess.Popen(command, env=environment, cwd=self.folder, stdout=log, stderr=log)
            )

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.url}/api/version", timeout=2)
        except urllib.error.HTTPError as e:
            return e.code == 401  # it asks for the token
        except OSError:
            return False
        assert not self.asks_for_token, "the cluster lets anyone in"
        return True

    def stop(self) -> None:
        family = [
            member
            for process in self.processes
            if process.poll() is None
            for member in (*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid))
        ]
        for member in family:
            _kill(member)
        psutil.wait_procs(family, timeout=10)
        for process in self.processes:
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, *words: object, timeout: float = 240, **more: str) -> subprocess.CompletedProcess[str]:
        """A `raysegment` command, as a user of this cluster."""
        return subprocess.run(
            [sys.executable, "-m", "raysegment", *map(str, words)],
            env={**self.environment, **more},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )


def _kill(process: psutil.Process) -> None:
    """Kill it, if it has not ended by itself."""
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports
