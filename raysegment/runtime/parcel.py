"""What travels with a job: the package, and small files named on the command line; and whether the rest can be seen."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raysegment.errors import UsageError
from raysegment.runtime.address import Address
from raysegment.runtime.survey import node_hosts

#: Ray's dashboard takes 100 MiB in one upload.
MAX_BYTES = 95 << 20
#: How long a cluster that has just been started may take to have a node.
_FIRST_NODE_S = 30.0
#: File systems that several machines may see; besides all of FUSE.
_SHARED = frozenset(
    (
        *(
            "nfs",
            "nfs4",
            "cifs",
            "smb3",
            "smbfs",
            "lustre",
            "gpfs",
            "beegfs",
            "ceph",
            "9p",
            "virtiofs",
            "afs",
        ),
        *("glusterfs", "gfs2", "ocfs2", "pvfs2", "orangefs", "wekafs", "panfs", "acfs"),
    )
)
#: Settings that a job's code needs and that are no secrets.
FORWARDED = (
    *("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "GOOGLE_CLOUD_PROJECT"),
    "MLFLOW_TRACKING_URI",
)


@dataclass
class Parcel:
    """Files on their way to a cluster; each lands in the job's folder as OPTION/NAME."""

    address: Address
    token: str | None
    files: dict[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.is_here = is_this_machine(self.address, self.token)

    def carry(self, option: str, text: str) -> str:
        """What to say in the job instead of the small file `text`, which comes along. Raises UsageError."""
        path = Path(text)
        if "://" in text or not path.is_file():
            return self.sees(f"--{option}", text)
        family = [path, *(p for p in (path.with_suffix(".toml"), Path(f"{path}.data")) if p.is_file())]
        if path.suffix not in (".pt2", ".onnx"):
            family = [path]
        new = {f"{option}/{p.name}": p for p in family}
        if sum(p.stat().st_size for p in {**self.files, **new}.values()) > MAX_BYTES:
            return self.sees(
                f"--{option}",
                text,
                why=f"is more than the {MAX_BYTES >> 20} MiB that travel with a job, and ",
            )
        self.files.update(new)
        return f"{option}/{path.name}"

    def sees(self, option: str, text: str, *, why: str = "", is_new: bool = False) -> str:
        """The absolute path, or the URL as it is. Raises UsageError when the cluster cannot see it.

        `is_new`: it is written, and need not exist.
        """
        if "://" in text:
            return text
        path = os.path.abspath(text)
        exists = os.path.exists(path)
        if self.is_here:
            if not exists and not is_new and not any(c in text for c in "*?["):
                raise UsageError(f"{option} {text}: no such file or folder")
            return path
        if not os.path.isabs(text) and not exists and not is_new:
            raise UsageError(
                f"{option} {text}: no such file here: give a URL, or an absolute path on the cluster"
            )
        # an absolute path of which nothing is here may well be on the cluster's own storage
        folder = Path(path).parent
        is_local = exists or not os.path.isabs(text) or (folder.is_dir() and folder != Path("/"))
        if is_local and not is_shared(Path(path)):
            raise UsageError(
                f"{option} {text} {why}is on a disk of this machine, which the nodes of {self.address.text} do not "
                "see: put it on storage that they share, or give a URL"
            )
        return path

    def digest(self) -> str:
        """Of the files' names and bytes."""
        total = hashlib.sha256()
        for name, path in sorted(self.files.items()):
            with path.open("rb") as f:
                total.update(f"{name}\0{hashlib.file_digest(f, 'sha256').hexdigest()}\n".encode())
        return total.hexdigest()

    @contextlib.contextmanager
    def packed(self) -> Iterator[dict[str, Any]]:
        """The job's runtime environment; its folders are there for the time of the block.

        Copies, since Ray leaves out what a .gitignore beside the files names.
        """
        with tempfile.TemporaryDirectory(prefix="raysegment-") as folder:
            package = Path(folder) / "raysegment"
            shutil.copytree(
                Path(__file__).parents[1], package, ignore=shutil.ignore_patterns("__pycache__", ".*")
            )
            environment: dict[str, Any] = {"py_modules": [str(package)], "env_vars": forwarded()}
            for name, path in self.files.items():
                target = Path(folder) / "files" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
                environment["working_dir"] = str(Path(folder) / "files")
            yield environment


def forwarded(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Settings of this environment for the job; one that holds a password stays here."""
    return {
        name: environment[name] for name in FORWARDED if name in environment and "@" not in environment[name]
    }


def is_this_machine(address: Address, token: str | None) -> bool:
    """Whether all nodes of the cluster are this machine, so that they see its files. A tunnel's end is not.

    A cluster that was started a moment ago has no nodes yet; that is waited for.
    """
    if not _is_own(address.host or ""):
        return False
    until = time.monotonic() + _FIRST_NODE_S
    while not (nodes := node_hosts(address, token)) and time.monotonic() < until:
        time.sleep(0.5)
    return bool(nodes) and all(_is_own(node) for node in nodes)


def is_shared(path: Path) -> bool:
    """Whether the path is on a file system that other machines may see."""
    import psutil

    full = Path(os.path.realpath(path))
    kinds = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    kind = next(kinds[place] for place in (full, *full.parents) if place in kinds or place == Path("/"))
    return kind in _SHARED or (kind.startswith("fuse.") and kind != "fuse.overlayfs")


def _is_own(host: str) -> bool:
    import psutil

    own = {entry.address for entries in psutil.net_if_addrs().values() for entry in entries}
    try:
        return any(str(found[4][0]) in own for found in socket.getaddrinfo(host, None))
    except socket.gaierror:
        return False
