"""cron: one line of the user's crontab."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime

from raysegment.errors import UsageError
from raysegment.nightly.job import JobFile
from raysegment.scheduling.cron_line import CronLine, in_zone
from raysegment.scheduling.scheduler import Rendered, Site, cron_of, longest, render

#: Debian's cron takes no longer command.
_LONGEST_COMMAND = 990


def cron(job: JobFile, site: Site) -> Rendered:
    """``NAME.crontab``."""
    entries = in_zone(CronLine.parse(cron_of(job)), job.schedule.timezone, site.timezone, datetime.now(UTC))
    lines = [f"{entry.line} {_command(job, site, entry.guard)}" for entry in entries]
    too_long = max(map(len, lines))
    if too_long > _LONGEST_COMMAND:
        raise UsageError(
            f"the crontab line has {too_long} characters, cron takes {_LONGEST_COMMAND}: use shorter paths"
        )
    file = f"{job.name}.crontab"
    install = (
        f"(crontab -l 2>/dev/null | sed '/^# begin raysegment {job.name}$/,/^# end raysegment {job.name}$/d'; "
        f"cat {shlex.quote(str(site.folder / file))}) | crontab -"
    )
    text = render("crontab", job, site, lines=lines, install=install, guarded=entries[0].guard is not None)
    return Rendered({file: text}, (install,))


def guarded(command: str, guard: str | None, timezone: str) -> str:
    """A shell command that does something only while the clocks of the two zones stand as `guard` has it."""
    if guard is None:
        return command
    return f'case "$(TZ={timezone} date -R) $(date -R)" in {guard}) {command};; esac'


def _command(job: JobFile, site: Site, guard: str | None) -> str:
    seconds = longest(job)
    # in the foreground: it stops `batch` and not Ray beside it, with which `batch` would die untold
    stop = [] if seconds is None else ["timeout", "--foreground", "--kill-after=120", str(seconds)]
    batch = shlex.join([*stop, site.python, "-m", "raysegment", "batch", str(site.job_file)])
    log = shlex.quote(str(site.folder / f"{job.name}.log"))
    command = guarded(f"{batch} >>{log} 2>&1", guard, job.schedule.timezone)
    return command.replace("%", r"\%")  # to cron, % is the end of the line
