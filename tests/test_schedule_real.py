"""The real schedulers run what was rendered for them: cron, Slurm; systemd says what it thinks of its units."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from namespace import inside, need
from test_batch import Job

from raysegment.errors import UsageError
from raysegment.nightly.job import load_job
from raysegment.scheduling.cron import cron
from raysegment.scheduling.scheduler import Rendered, Site, local_timezone
from raysegment.scheduling.slurm import slurm
from raysegment.scheduling.systemd import systemd

pytestmark = [pytest.mark.slow, pytest.mark.ray]

ROOT = Path(__file__).parents[1]

SLURM = """
ClusterName=test
SlurmctldHost=node(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={munge}/socket
CredType=cred/munge
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName=node NodeAddr=127.0.0.1 CPUs=2
PartitionName=night Nodes=ALL Default=YES
"""


@pytest.fixture
def two_images(tmp_path: Path) -> Job:
    """A job with two images, in a folder whose name every shell and cron would rather not see."""
    folder = tmp_path / "100% night's"
    folder.mkdir()
    job = Job(folder)
    for i in range(2, 5):
        job.image(i).unlink()
    return job


def site(job: Job) -> Site:
    """Its files at home in a folder beside, with a Python that has this checkout."""
    out = job.folder / "out"
    out.mkdir()
    python = out / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (out / "bin" / "ray").symlink_to(Path(sys.executable).parent / "ray")
    return Site(job.file, out, str(python), "root", local_timezone(), "2.60.0")


def put(rendered: Rendered, at: Site) -> None:
    for name, text in rendered.files.items():
        (at.folder / name).write_text(text)


def masks(job: Job) -> list[bool]:
    return [(job.mask(i) / "zarr.json").is_file() for i in range(2)]


def test_cron_fires_and_the_batch_runs(two_images: Job, tmp_path: Path) -> None:
    need("cron", "crontab", "unshare", "ip")
    two_images.write(more='[schedule]\ncron = "* * * * *"\ndeadline = "5m"\ntimezone = "Asia/Kolkata"\n')
    at = site(two_images)
    rendered = cron(load_job(two_images.file), at)
    put(rendered, at)
    (tmp_path / "spool").mkdir(mode=0o1730)
    done = inside(
        f"""
        mount --bind {tmp_path}/spool /var/spool/cron/crontabs
        mount --bind /dev/null /etc/crontab
        mount -t tmpfs none /etc/cron.d
        mount -t tmpfs none /run
        echo '17 4 1 1 * true' | crontab -
        {rendered.apply[0]}
        {rendered.apply[0]}
        crontab -l >{tmp_path}/listed
        cron -f &
        for i in $(seq 170); do
          if grep -q ' 2 done' out/nightly.log 2>/dev/null; then exit 0; fi
          sleep 1
        done
        exit 1
        """,
        two_images.folder,
        timeout=200,
    )
    log = at.folder / "nightly.log"
    assert done.returncode == 0, (done.stdout, done.stderr, log.exists() and log.read_text())
    assert masks(two_images) == [True, True]
    listed = (tmp_path / "listed").read_text()  # applied twice, it stands there once, beside what was there
    assert listed.splitlines().count("# begin raysegment nightly") == 1
    assert "17 4 1 1 * true" in listed


def test_slurm_runs_a_two_image_batch_to_the_end(two_images: Job, tmp_path: Path) -> None:
    need("slurmctld", "slurmd", "sbatch", "munged", "unshare", "ip")
    cluster = '[cluster]\npartition = "night"\nnodes = 1\n'
    two_images.write(more=f'[schedule]\ncron = "0 2 * * *"\ndeadline = "10m"\n{cluster}')
    at = site(two_images)
    rendered = slurm(load_job(two_images.file), at)
    put(rendered, at)
    for name in ("munge", "state", "spool"):
        (tmp_path / name).mkdir(mode=0o755)
    (tmp_path / "munge/key").write_bytes(bytes(range(256)) * 4)
    (tmp_path / "munge/key").chmod(0o600)
    config = tmp_path / "slurm.conf"
    config.write_text(SLURM.format(folder=tmp_path, munge=tmp_path / "munge"))
    done = inside(
        f"""
        export SLURM_CONF={config} RAY_TMPDIR=/tmp
        mount -t tmpfs none /run
        mkdir -m 1777 /tmp/ray 2>/dev/null || true
        mount -t tmpfs -o mode=1777 none /tmp/ray
        munge={tmp_path}/munge
        munged --force --key-file=$munge/key --socket=$munge/socket --pid-file=$munge/pid \
          --log-file=$munge/log --seed-file=$munge/seed
        slurmctld -c
        slurmd -N node
        for i in $(seq 20); do timeout 5 sinfo -h -o %T 2>&1 | grep -q idle && break; sleep 1; done
        timeout 10 sinfo
        sbatch --test-only out/nightly.sbatch
        timeout 150 sbatch --wait out/nightly.sbatch
        """,
        two_images.folder,
        timeout=240,
    )
    logs = [path.read_text() for path in (*at.folder.glob("nightly-*.log"), *tmp_path.glob("*.log"))]
    assert done.returncode == 0, (done.stdout, done.stderr, *logs)
    assert masks(two_images) == [True, True]
    assert " 2 done" in logs[0]
    assert not list(at.folder.glob(".nightly*")), "the token stays behind"


def test_systemd_takes_the_units_of_an_odd_folder(two_images: Job) -> None:
    need("systemd-analyze")
    two_images.write(more='[schedule]\ncron = "*/20 1-3 1,15 * Mon"\ndeadline = "6h"\n')
    at = site(two_images)
    with pytest.raises(UsageError, match="no program with quotes in its path"):
        systemd(load_job(two_images.file), at)
    put(systemd(load_job(two_images.file), replace(at, python=sys.executable)), at)
    units = [str(path) for path in sorted(at.folder.glob("*.service")) + sorted(at.folder.glob("*.timer"))]
    said = subprocess.run(
        ["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False, cwd=at.folder
    )
    assert (said.returncode, said.stderr) == (0, "")
