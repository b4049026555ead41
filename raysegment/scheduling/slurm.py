"""Slurm: a batch script that makes a Ray cluster of its nodes, and the scrontab line that submits it."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime

from raysegment.errors import UsageError
from raysegment.inference.request import parse_bytes
from raysegment.nightly.job import JobFile
from raysegment.scheduling.cron import guarded
from raysegment.scheduling.cron_line import CronLine, in_zone
from raysegment.scheduling.scheduler import Rendered, Site, cron_of, longest, render


def slurm(job: JobFile, site: Site) -> Rendered:
    """``NAME.sbatch`` and ``NAME.scrontab``."""
    if job.cluster.address is not None:
        raise UsageError(
            f"[cluster] address {job.cluster.address!r}: the Slurm job makes a cluster of its own nodes; leave it out, "
            "or let cron or systemd run the job in that cluster"
        )
    if any(c in str(site.folder) for c in '"\\\n'):
        raise UsageError(f"{site.folder}: Slurm takes no quotes in the name of a log: give another --out")
    entries = in_zone(CronLine.parse(cron_of(job)), job.schedule.timezone, site.timezone, datetime.now(UTC))
    script = shlex.quote(str(site.folder / f"{job.name}.sbatch"))
    zone = job.schedule.timezone
    lines = [f"{entry.line} {guarded(f'sbatch {script}', entry.guard, zone)}" for entry in entries]
    seconds, memory = longest(job), job.cluster.memory
    file = shlex.quote(str(site.folder / f"{job.name}.scrontab"))
    # scrontab takes a file alone, nothing from a pipe that could join the two
    apply = (
        f"scrontab {file}  # it replaces your scrontab: where you have one, add the lines with scrontab -e"
    )
    values = {
        "submit": f"sbatch {script}",
        "apply": apply,
        "minutes": None if seconds is None else -(-seconds // 60),
        "megabytes": None if memory is None else parse_bytes(memory) >> 20,
        "log": str(site.folder / job.name).replace("%", "%%"),
    }
    scrontab = render("scrontab", job, site, lines=lines, guarded=entries[0].guard is not None, **values)
    return Rendered(
        {f"{job.name}.sbatch": render("sbatch", job, site, **values), f"{job.name}.scrontab": scrontab},
        (apply,),
    )
