"""A cron line, as sets of numbers: what it means does not depend on who reads it.

Debian's cron, Slurm and Kubernetes read the same five fields with small differences (7 for Sunday, names, steps), so
each is given plain numbers. What they would read differently is refused.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import product
from zoneinfo import ZoneInfo

from cronsim import CronSim

from raysegment.errors import UsageError

_FULL = (
    frozenset(range(60)),
    frozenset(range(24)),
    frozenset(range(1, 32)),
    frozenset(range(1, 13)),
    frozenset(range(7)),
)
_VALUE = r"(\d+|[A-Za-z]{3})"
_ITEM = re.compile(rf"(\*(/\d+)?|{_VALUE}(-{_VALUE}(/\d+)?)?)")
_WEEKDAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")


@dataclass(frozen=True)
class CronLine:
    """When it fires: on the `days` or the `weekdays` where both are restricted, as cron has it."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    """Sunday is 0."""

    @classmethod
    def parse(cls, text: str) -> CronLine:
        """Of a line that fires. Raises UsageError for what schedulers read differently, or not at all."""
        fields = text.split()
        odd = [item for field in fields for item in field.split(",") if not _ITEM.fullmatch(item)]
        if odd:
            raise UsageError(
                f"[schedule] cron {text!r}: not every scheduler reads {odd[0]!r}: write numbers, ranges, lists, */n"
            )
        day, weekday = fields[2], fields[4]
        if (day.startswith("*/") and weekday != "*") or (weekday.startswith("*/") and day != "*"):
            raise UsageError(
                f"[schedule] cron {text!r}: cron and Kubernetes disagree about steps of days beside weekdays: "
                "list the days"
            )
        read = CronSim(text.upper(), datetime.now(UTC))
        numbers = (read.minutes, read.hours, read.days, read.months, read.weekdays)
        minutes, hours, days, months, weekdays = ([n for n in f if isinstance(n, int)] for f in numbers)
        sunday_is_0 = frozenset(day % 7 for day in weekdays)
        return cls(frozenset(minutes), frozenset(hours), frozenset(days), frozenset(months), sunday_is_0)

    def __str__(self) -> str:
        fields = (self.minutes, self.hours, self.days, self.months, self.weekdays)
        return " ".join("*" if f == full else _listed(f, "-") for f, full in zip(fields, _FULL, strict=True))

    def shifted(self, minutes: int) -> list[CronLine]:
        """Lines that fire so much later, together. Raises UsageError where days of the month would have to move."""
        moved: dict[tuple[int, int], set[int]] = defaultdict(set)  # (day, minute) → hours
        for hour, minute in product(self.hours, self.minutes):
            day, rest = divmod(60 * hour + minute + minutes, 24 * 60)
            moved[day, rest % 60].add(rest // 60)
        lines: dict[tuple[int, frozenset[int]], set[int]] = defaultdict(set)  # (day, hours) → minutes
        for (day, minute), hours in moved.items():
            lines[day, frozenset(hours)].add(minute)
        if any(day for day, _ in lines) and (self.days, self.months) != _FULL[2:4]:
            raise UsageError("days of the month cannot be moved over midnight")
        return [
            replace(
                self,
                minutes=frozenset(at),
                hours=hours,
                weekdays=frozenset((weekday + day) % 7 for weekday in self.weekdays),
            )
            for (day, hours), at in sorted(lines.items(), key=lambda line: (line[0][0], min(line[0][1])))
        ]

    def calendar(self, timezone: str) -> list[str]:
        """The same as OnCalendar= of systemd: "Mon,Fri *-*-* 02:00:00 Europe/Berlin"; each line fires by itself."""
        both = self.days != _FULL[2] and self.weekdays != _FULL[4]
        halves = (replace(self, weekdays=_FULL[4]), replace(self, days=_FULL[2])) if both else (self,)
        return [line._calendar(timezone) for line in halves]

    def _calendar(self, timezone: str) -> str:
        names = ",".join(_WEEKDAYS[day] for day in sorted(self.weekdays))
        weekdays = "" if self.weekdays == _FULL[4] else f"{names} "
        months, days = (
            "*" if field == full else _listed(field, "..")
            for field, full in ((self.months, _FULL[3]), (self.days, _FULL[2]))
        )
        hours, minutes = (
            "*" if field == full else ",".join(f"{n:02}" for n in sorted(field))
            for field, full in ((self.hours, _FULL[1]), (self.minutes, _FULL[0]))
        )
        return f"{weekdays}*-{months}-{days} {hours}:{minutes}:00 {timezone}"


@dataclass(frozen=True)
class Entry:
    """A line of a crontab on a machine whose clock shows another time zone."""

    line: CronLine
    guard: str | None
    """What ``date -R`` must show in the job's zone and in the machine's for the line to be the right one: a pattern of
    `case`. None: it always is."""


def in_zone(line: CronLine, timezone: str, machine: str, now: datetime) -> list[Entry]:
    """The lines that make a machine's cron fire at the times of another zone, through summer and winter.

    One line where the two clocks are the same time apart all year; otherwise one for each pair of offsets, with a guard
    that lets only the line of the moment through. Raises UsageError where no line can say it.
    """
    pairs = sorted(set(_offsets(ZoneInfo(timezone), ZoneInfo(machine), now)))
    apart = {theirs - ours for ours, theirs in pairs}
    try:
        if len(apart) == 1:
            return [Entry(moved, None) for moved in line.shifted(apart.pop())]
        return [
            Entry(moved, f"*{_signed(ours)}*{_signed(theirs)}")
            for ours, theirs in pairs
            for moved in line.shifted(theirs - ours)
        ]
    except UsageError as e:
        raise UsageError(
            f"[schedule] cron '{line}' in {timezone}: on a clock that shows {machine}, {e}; set timezone to {machine}, "
            "or use systemd or Kubernetes, which know time zones"
        ) from None


def _offsets(ours: ZoneInfo, theirs: ZoneInfo, now: datetime) -> Iterator[tuple[int, int]]:
    """Minutes ahead of UTC of the two zones, over a year."""
    for hour in range(0, 366 * 24, 6):
        at = now.astimezone(UTC) + timedelta(hours=hour)
        yield (_minutes(at.astimezone(ours)), _minutes(at.astimezone(theirs)))


def _minutes(at: datetime) -> int:
    offset = at.utcoffset()
    assert offset is not None
    return round(offset.total_seconds() / 60)


def _signed(minutes: int) -> str:
    """90 → "+0130", as `date -R` writes it."""
    hours, rest = divmod(abs(minutes), 60)
    return f"{'-' if minutes < 0 else '+'}{hours:02}{rest:02}"


def _listed(numbers: frozenset[int], to: str) -> str:
    """{1, 2, 3, 7} → "1-3,7"."""
    runs: list[list[int]] = []
    for n in sorted(numbers):
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ",".join(f"{r[0]}{to}{r[-1]}" if len(r) > 2 else ",".join(map(str, r)) for r in runs)
