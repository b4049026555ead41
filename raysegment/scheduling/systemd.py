"""systemd: a oneshot service and the timer that starts it."""

from __future__ import annotations

import shlex

from raysegment.errors import UsageError
from raysegment.nightly.job import JobFile
from raysegment.scheduling.cron_line import CronLine
from raysegment.scheduling.scheduler import Rendered, Site, cron_of, longest, render


def systemd(job: JobFile, site: Site) -> Rendered:
    """``raysegment-NAME.service`` and ``.timer``."""
    if any(c in site.python for c in "'\"\\"):
        raise UsageError(
            f"{site.python}: systemd starts no program with quotes in its path: move the environment"
        )
    calendar = CronLine.parse(cron_of(job)).calendar(job.schedule.timezone)
    unit = f"raysegment-{job.name}"
    command = [site.python, "-m", "raysegment", "batch", str(site.job_file)]
    paths = shlex.join(str(site.folder / f"{unit}.{kind}") for kind in ("service", "timer"))
    apply = (
        f"sudo install -m 0644 {paths} /etc/systemd/system/",
        f"sudo systemctl daemon-reload && sudo systemctl enable --now {unit}.timer",
    )
    values = {"unit": unit, "apply": apply, "seconds": longest(job)}
    service = render(
        "service",
        job,
        site,
        command=" ".join(map(_word, command)),
        environment=_path(f"{site.folder / job.name}.env"),
        folder=_path(str(site.folder)),
        **values,
    )
    return Rendered(
        {
            f"{unit}.service": service,
            f"{unit}.timer": render("timer", job, site, calendar=calendar, **values),
        },
        apply,
    )


def _word(text: str) -> str:
    """One word of ExecStart=, in which % and $ mean something."""
    plain = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{plain}"' if any(c in plain for c in " '\"\\;") else plain


def _path(text: str) -> str:
    """The value of a setting that takes one path, which may hold spaces."""
    return text.replace("%", "%%")
