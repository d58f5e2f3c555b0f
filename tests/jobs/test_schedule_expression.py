"""When a schedule fires, as cron, systemd, Kubernetes and Airflow read it."""

import re
import shutil
import subprocess
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from jobs.exits import UsageError
from jobs.schedule.expression import parse

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("60 * * * *", "minute"),
        ("0 24 * * *", "hour"),
        ("0 0 0 * *", "day of month"),
        ("0 0 * 13 *", "month"),
        ("0 0 * * 8", "day of week"),
        ("0 0 * * FRI-MON", "day of week"),
        ("0 0 L * *", "day of month"),
        ("0 0 * * 5#2", "day of week"),
        ("5/15 * * * *", "minute"),
        ("*/0 * * * *", "minute"),
        ("x * * * *", "minute"),
        ("0 0 31 2 *", "day of month"),
        ("0 2 * *", "five fields"),
        ("0 0 2 * * *", "five fields"),
        ("@nightly", "five fields"),
        ("0 2 * * *; rm", "five fields"),
        ("0 2 * * *\n* * * * * rm", "five fields"),
        ("", "five fields"),
    ],
)
def test_what_some_cron_would_not_take_is_refused_with_the_field(text, word):
    with pytest.raises(UsageError, match=re.escape(word)):
        parse(text)


@pytest.mark.parametrize(
    ("text", "times"),
    [
        ("0 2 * * *", ["2026-11-22 02:00", "2026-11-23 02:00", "2026-11-24 02:00"]),
        ("@daily", ["2026-11-22 00:00", "2026-11-23 00:00", "2026-11-24 00:00"]),
        ("30 4 1 * *", ["2026-12-01 04:30", "2027-01-01 04:30", "2027-02-01 04:30"]),
        ("*/20 12 * nov sun", ["2026-11-22 12:00", "2026-11-22 12:20", "2026-11-22 12:40"]),
        # Both days restricted: cron fires on either.
        ("0 0 1 * MON", ["2026-11-23 00:00", "2026-11-30 00:00", "2026-12-01 00:00"]),
    ],
)
def test_the_next_times_are_crons(text, times):
    now = datetime(2026, 11, 21, 12, 30, tzinfo=BERLIN)  # a Saturday
    assert [f"{t:%Y-%m-%d %H:%M}" for t in parse(text).next_times(3, now)] == times


def test_a_night_that_the_clock_skips_still_has_its_run():
    # 2027-03-28 has no 02:30 in Berlin.
    (first,) = parse("30 2 * * *").next_times(1, datetime(2027, 3, 27, 12, tzinfo=BERLIN))
    assert f"{first:%Y-%m-%d %H:%M}" == "2027-03-28 03:00"


def test_reboot_has_no_times_and_no_place_on_a_cluster():
    expression = parse("@reboot")
    assert expression.next_times(3) == []
    for read in (expression.portable, expression.calendars):
        with pytest.raises(UsageError, match="@reboot"):
            read()


@pytest.mark.parametrize(
    ("text", "portable"),
    [
        ("@weekly", "0 0 * * 0"),
        ("0 2 * * 5-7", "0 2 * * 0,5,6"),
        ("0 2 * * 1-7", "0 2 * * *"),
        ("15 3 1,15 * MON-FRI", "15 3 1,15 * MON-FRI"),
    ],
)
def test_a_portable_expression_has_no_sunday_of_seven(text, portable):
    assert parse(text).portable() == portable


def test_an_expression_that_others_read_otherwise_is_refused_for_them():
    with pytest.raises(UsageError, match="both days"):
        parse("0 2 */2 * MON").portable()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize(
    "text",
    [
        "0 2 * * *", "*/15 * * * *", "7 1-5/2 * * *", "0 0 1 * MON", "30 6 13 * 5", "0 0 */5 * *",
        "0 4 * 2 0", "0 0 29 2 *", "5 4 * * 1-5", "0 12 * JAN-MAR,dec sat,7", "0 0 */2 * MON",
        "@hourly", "@yearly",
    ],
)  # fmt: skip
def test_systemd_fires_at_the_same_times_as_cron(text):
    base = datetime(2026, 1, 1, tzinfo=ZoneInfo("UTC"))
    expression = parse(text)
    found = set()
    for calendar in expression.calendars():
        done = subprocess.run(
            ["systemd-analyze", "calendar", "--iterations=8",
             f"--base-time={base:%Y-%m-%d %H:%M:%S} UTC", calendar],
            capture_output=True, text=True, check=True, env={"TZ": "UTC", "LC_ALL": "C"},
        )  # fmt: skip
        found |= set(re.findall(r"(?:elapse|#\d+): \w+ ([\d-]+ [\d:]+) UTC", done.stdout))
    assert found, "systemd-analyze's answer was not understood"
    cron = [f"{t:%Y-%m-%d %H:%M:%S}" for t in expression.next_times(8, base)]
    assert sorted(found)[:8] == cron
