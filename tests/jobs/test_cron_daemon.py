"""Debian's cron itself, its daemon started here: it runs what `schedule add` installs."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.schedule.cron import daemon_running
from manifests.commits import OutputFolder
from tests.photos import collection

ROOT = Path(__file__).parent.parent.parent
DOODL_BATCH = Path(sys.executable).parent / "doodl-batch"
QUICK = ["--runner", "inline", "--set", "optimiser.num_optim_steps=1", "--set", "num_crops=1"]
# Nothing of it ever fires; its odd white space is what must survive.
FOREIGN = (
    b"# m h  dom mon dow   command\n\nSHELL=/bin/sh\n\t0 0 31 2 *\ttrue %not a date  # mine \n"
    b"#0 3 * * * /bin/false # doodl-batch schedule commented-out\n\n"
)


def reason_to_skip():
    if os.geteuid() != 0:
        return "only root may start a cron daemon"
    if not (shutil.which("cron") and shutil.which("crontab")):
        return "Debian's cron is not installed (apt-get install cron)"
    if daemon_running():
        return "a cron daemon runs already: this machine's crontab is in use"
    if subprocess.run(["crontab", "-l"], capture_output=True).returncode == 0:
        return "root has a crontab of its own here"
    return None


@pytest.fixture
def cron():
    """A cron daemon of our own, and a crontab with foreign lines in it; both gone afterwards."""
    if (why := reason_to_skip()) is not None:
        pytest.skip(why)
    subprocess.run(["crontab", "-"], input=FOREIGN, check=True)
    daemon = subprocess.Popen(["cron", "-f"])
    try:
        yield
    finally:
        daemon.terminate()
        daemon.wait(timeout=30)
        subprocess.run(["crontab", "-r"], check=True)


def crontab():
    return subprocess.run(["crontab", "-l"], capture_output=True, check=True).stdout


def doodl_batch(*arguments, cwd, environment):
    return subprocess.run(
        [DOODL_BATCH, *map(str, arguments)],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def wait_for(words, log, seconds, *, times=1):
    """Return the log once the words are in it so often and no firing is under way."""
    deadline, text = time.monotonic() + seconds, ""
    while time.monotonic() < deadline:
        text = log.read_text() if log.exists() else ""
        at_rest = text.count(" begins, pid ") == text.count(" ended, exit ")
        if at_rest and text.count(words) >= times:
            return text
        time.sleep(0.5)
    raise AssertionError(f"no {words!r} in {seconds} s:\n{text}")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_cron_runs_it_every_minute_skips_an_overlap_and_leaves_the_crontab_as_it_was(
    cron, tmp_path
):
    photos = collection(tmp_path / "my photos 100%", 2)
    out = Path(f"{photos}-doodl")
    log = out / "_state" / "logs" / "schedule-nightly.log"
    environment = {
        **os.environ,
        "XDG_CONFIG_HOME": str(tmp_path / "settings 100% & 'quoted'"),
        "PYTHONPATH": str(ROOT),
    }
    here = {"cwd": tmp_path, "environment": environment}
    added = doodl_batch(
        "schedule", "add", "* * * * *", "--name", "nightly", "--", "my photos 100%", *QUICK, **here
    )
    assert added.returncode == 0, added.stderr
    assert crontab().endswith(FOREIGN)
    assert len(crontab()) > len(FOREIGN)
    try:
        text = wait_for("0 computed", log, 400)
        assert text.index("2 computed") < text.index("0 computed")
        # A slow machine's first run may have been met by the next firing already.
        skipped = text.count("skipped: another driver is running")
        with OutputFolder(str(out)).lock():
            text = wait_for("skipped: another driver is running", log, 150, times=skipped + 1)
        print(text)
        assert set(re.findall(r" ended, (exit \d+)$", text, re.M)) == {"exit 0"}
        assert text.count("2 computed") == 1
        listed = json.loads(doodl_batch("schedule", "list", "--json", **here).stdout)
        assert (listed[0]["installed"], listed[0]["last_exit"]) == (True, 0)
    finally:
        removed = doodl_batch("schedule", "remove", "nightly", **here)
    assert removed.returncode == 0, removed.stderr
    assert crontab() == FOREIGN
    assert not list((tmp_path / "settings 100% & 'quoted'").rglob("nightly*"))
