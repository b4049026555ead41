"""What a person writes in a job file for a time, a size, a schedule: read and checked. All raise ValueError."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_duration(text: str) -> timedelta:
    """ "48h", "30m", "1.5d", "1h 30m"."""
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([smhdw])", str(text))
    spelled = "".join(number + unit for number, unit in parts)
    if not parts or spelled != re.sub(r"\s", "", str(text)):
        raise ValueError(f"{text!r} is no duration: give a number and s, m, h, d or w, such as 6h")
    try:
        found = sum((timedelta(**{_UNITS[unit]: float(number)}) for number, unit in parts), timedelta())
    except OverflowError:
        raise ValueError(f"{text!r} is longer than time goes: give a shorter duration") from None
    if not found:
        raise ValueError(f"{text!r} is no time at all: give a longer duration")
    return found


def parse_zone(name: str) -> ZoneInfo:
    """ "UTC", "Europe/Berlin"."""
    try:
        return ZoneInfo(name)
    except (
        KeyError,
        OSError,
        ValueError,
    ):  # not found is a KeyError; a folder or a path upwards are the others
        raise ValueError(f"{name!r} is no time zone: give one such as UTC or Europe/Berlin") from None


def next_firing(cron: str, after: datetime) -> datetime:
    """When a cron line of five fields, as Debian's cron reads it, fires next after `after`, in its time zone."""
    from cronsim import CronSim, CronSimError

    if len(cron.split()) != 5:
        raise ValueError(
            f"{cron!r} is no cron line: give minute, hour, day, month and weekday, such as '0 2 * * *'"
        )
    try:
        return next(CronSim(cron, after))
    except CronSimError as e:  # of 31 February too
        raise ValueError(
            f"{cron!r} never fires ({str(e).lower()}): every night at two is '0 2 * * *'"
        ) from None
    except StopIteration:
        raise ValueError(f"{cron!r} never fires: give days that come, such as '0 2 * * *'") from None
