"""When a schedule fires: a five-field cron expression that every cron reads alike."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from jobs.exits import UsageError
from pipeline.errors import UnusableEnvironmentError

ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
REBOOT = "@reboot"
_FIELDS = ("minute", "hour", "day of month", "month", "day of week")
# What every cron reads alike: no `L`, `W` or `#`, and a step only after `*` or a range.
_ITEM = re.compile(
    r"(\*|[0-9]{1,2}-[0-9]{1,2}|[A-Z]{3}-[A-Z]{3})(/[0-9]{1,2})?|[0-9]{1,2}|[A-Z]{3}"
)
_DAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")


@dataclass(frozen=True)
class Expression:
    """A valid expression. Make one with `parse`.

    Attributes:
        text: as it was given, fields one space apart.
        fields: its five fields; empty for `@reboot`, which has no times.
    """

    text: str
    fields: str

    def next_times(self, count: int, now: datetime | None = None) -> list[datetime]:
        """Return the next firings in this machine's own time zone, as cron counts."""
        if not self.fields:
            return []
        now = datetime.now(_local_zone()) if now is None else now
        times = _cron_sim()(self.fields, now)
        return [next(times) for _ in range(count)]

    def portable(self) -> str:
        """Return five fields that Kubernetes and Airflow read as cron does.

        Raises: UsageError for an expression that they would read otherwise.
        """
        minute, hour, day, month, weekday = self._fields("for a cluster")
        steps = day.startswith("*/") or weekday.startswith("*/")
        if steps and "*" not in (day, weekday):
            raise UsageError(
                f"{self.text!r}: cron wants both days to match and others want either; "
                "list the days of one of the two fields."
            )
        if "7" in weekday:  # Sunday is 0 there and nothing else
            weekday = _joined(sorted({day % 7 for day in self._parsed().weekdays}), range(7))
        return " ".join((minute, hour, day, month, weekday))

    def calendars(self) -> list[str]:
        """Return systemd OnCalendar values that fire at the same times.

        cron fires if either day matches when both are restricted; systemd wants both, so that
        there are two values then.
        """
        self._fields("for systemd")
        parsed = self._parsed()
        minute = _joined(sorted(parsed.minutes), range(60))
        hour = _joined(sorted(parsed.hours), range(24))
        month = _joined(sorted(parsed.months), range(1, 13))
        day = _joined(sorted(parsed.days), range(1, 32))
        weekdays = sorted({number % 7 for number in parsed.weekdays})
        named = "" if len(weekdays) == 7 else ",".join(_DAYS[n] for n in weekdays) + " "
        time = f"{hour}:{minute}:00"
        if parsed.day_and or not named or day == "*":
            return [f"{named}*-{month}-{day} {time}"]
        return [f"*-{month}-{day} {time}", f"{named}*-{month}-* {time}"]

    def _fields(self, purpose: str) -> list[str]:
        if not self.fields:
            raise UsageError(f"{REBOOT} has no times {purpose}; give five fields, as '0 2 * * *'.")
        return self.fields.split()

    def _parsed(self) -> Any:
        return _cron_sim()(self.fields, datetime(2026, 1, 1))


def parse(text: str) -> Expression:
    """Return the expression of a text: five fields, `@daily` and its like, or `@reboot`.

    Raises: UsageError naming the field that is wrong; UnusableEnvironmentError without cronsim.
    """
    cron_sim = _cron_sim()
    words = text.split()
    name = text.strip().lower()
    if name == REBOOT:
        return Expression(REBOOT, "")
    if name in ALIASES:
        return Expression(name, ALIASES[name])
    if len(words) != 5:
        raise UsageError(
            f"{text!r} is no schedule: five fields are needed ({', '.join(_FIELDS)}), "
            "as '0 2 * * *' for two o'clock every night, or a name such as @daily."
        )
    for word, field in zip(words, _FIELDS, strict=True):
        items = word.upper().split(",")
        if not all(_ITEM.fullmatch(item) for item in items):
            raise UsageError(
                f"{text!r}: {field} (={word!r}) must be a number, a range 1-5, a list 1,3, "
                "* or a step */15 or 0-59/15."
            )
    fields = " ".join(words)
    try:
        next(cron_sim(fields, datetime(2026, 1, 1)))
    except StopIteration:
        raise UsageError(f"{text!r} never fires: no such day exists.") from None
    except Exception as error:
        wrong = str(error).removeprefix("Bad ").replace("-", " ")
        raise UsageError(f"{text!r}: the {wrong} is out of range or never comes.") from None
    return Expression(fields, fields)


def _joined(values: list[int], every: range) -> str:
    return "*" if values == list(every) else ",".join(map(str, values))


def _local_zone() -> Any:
    """Return the zone the cron daemon counts in: the machine's, whatever TZ says here."""
    try:
        with Path("/etc/localtime").open("rb") as file:
            return ZoneInfo.from_file(file)
    except (OSError, ValueError):
        return datetime.now().astimezone().tzinfo


def _cron_sim() -> Callable[[str, datetime], Any]:
    try:
        from cronsim import CronSim
    except ImportError:
        raise UnusableEnvironmentError(
            "schedules need the package cronsim; pip install 'doodl-batch[schedule]'."
        ) from None
    return CronSim
