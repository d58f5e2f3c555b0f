"""Real runs in their own processes, hit by faults, and the table of what became of their rows."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path

import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from manifests.commits import OutputFolder
from pipeline.spec import make_spec
from pipeline.verify import verify_output
from tests.clusters import MARK, kill_marked
from tests.fakes import LOG, SECONDS
from tests.photos import jpeg

ROOT = Path(__file__).parent.parent.parent
DOODL_BATCH = Path(sys.executable).parent / "doodl-batch"
EDIT_SECONDS = 0.2
"""The cheap edit's time: long against a commit, short against a test."""

NICE = {"RAY_worker_niceness": "0"}
"""Workers as urgent as the test: Ray's own 15 lets a busy machine's other work go first."""

HARMLESS = {"set aside", "orphaned"}
"""What `verify` may find after a fault: a photo written whose row was never committed."""


def make_job(folder, count, prompts=None, *, out=None, workers=2, **options):
    """Return the spec of a manifest of `count` photos, row i with prompt i of `prompts`."""
    photos = Path(folder) / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    names = [f"p{i:04d}.jpg" for i in range(count)]
    for i, name in enumerate(names):
        if not (photos / name).exists():
            (photos / name).write_bytes(jpeg(i, (32, 40)))
    asked = {**dict.fromkeys(range(count), ""), **(prompts or {})}
    table = {"image_uri": [f"photos/{name}" for name in names], "row_id": names}
    table["prompt"] = [asked[i] for i in range(count)]
    path = Path(folder) / "manifest.parquet"
    pq.write_table(pa.table(table), path)
    return make_spec(
        path, out or Path(folder) / "out", editor="tests.fakes:load_editor", num_workers=workers,
        **options,
    )  # fmt: skip


class Run:
    """`doodl-batch run SPEC` in a process of its own; all it starts carries its mark."""

    def __init__(self, spec, folder, *, seconds=EDIT_SECONDS, prefix=(), **environment):
        path = Path(folder) / "job.json"
        path.write_text(spec.to_json())
        self.mark = uuid.uuid4().hex
        self.began = time.monotonic()
        self.output_path = Path(folder) / f"output-{self.mark[:6]}"
        kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        kept |= NICE
        self.process = subprocess.Popen(
            [*prefix, str(DOODL_BATCH), "run", str(path), "--no-report"],
            cwd=folder,
            env={**kept, "PYTHONPATH": str(ROOT), SECONDS: str(seconds), MARK: self.mark,
                 LOG: str(Path(folder) / "edits.log"), **environment},
            stdout=self.output_path.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip

    @property
    def output(self):
        return self.output_path.read_text()

    def workers(self):
        """The worker processes whose models are loaded, busy or not."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and "ray::_Worker" in " ".join(
                    process.cmdline()
                ):
                    found.append(process)
        return found

    def daemons(self, *names):
        """The processes of its private Ray of these names; of no name: all it has started."""
        with suppress(psutil.Error):
            started = psutil.Process(self.process.pid).children(recursive=True)
            return [process for process in started if not names or _name(process) in names]
        return []

    def wait(self, seconds=500):
        """Wait for its end and return its exit code."""
        return self.process.wait(seconds)

    def kill(self):
        """SIGKILL the driver alone: what it started notices by itself."""
        self.process.kill()
        self.process.wait()

    def clean(self):
        kill_marked(self.mark)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(10)


def _name(process):
    with suppress(psutil.Error):
        return process.name()
    return ""


@contextmanager
def running(spec, folder, **options):
    run = Run(spec, folder, **options)
    try:
        yield run
    finally:
        run.clean()


def delivered(spec):
    """How many photos have been written so far."""
    with suppress(FileNotFoundError):
        return sum(1 for _ in Path(spec.out, "edited").iterdir())
    return 0


def wait_until(condition, what, seconds=400, run=None):
    begun = time.monotonic()
    while not condition():
        assert run is None or run.process.poll() is None, f"ended before {what}: {run.output}"
        assert time.monotonic() - begun < seconds, f"waited {seconds} s for {what}"
        time.sleep(0.05)
    return time.monotonic() - begun


class Standing:
    """How an output folder's rows stand, from its Parquet parts as anybody reads them."""

    def __init__(self, spec, expected):
        folder = Path(spec.out)
        self.table = pd.read_parquet(folder / "results")
        self.expected, self.found = expected, len(self.table)
        self.duplicates = self.found - self.table["row_id"].nunique()
        self.statuses = self.table["status"].value_counts().to_dict()
        self.errors = sorted(self.table["error_type"].dropna())
        self.verified = verify_output(spec.out).counts()

    def check(self):
        assert self.found == self.expected
        assert self.duplicates == 0
        assert not set(self.verified) - HARMLESS, self.verified


def row_recoveries(spec):
    """Seconds from the noticed deaths of workers to the results of the rows they held, by row."""
    folder = OutputFolder(spec.out)
    ledger = folder.read_ledger().to_pandas()
    results = folder.results().to_pandas().set_index("row_id")["finished_at"]
    told = {}
    for _, row in ledger[ledger["state"] == "worker_died"].iterrows():
        if (name := row["row_id"]) in results.index:
            seconds = (results[name] - row["finished_at"]).total_seconds()
            told.setdefault(name, []).append(max(0.0, seconds))
    return told


def all_recoveries(spec):
    """All the seconds of `row_recoveries`."""
    return [seconds for row in row_recoveries(spec).values() for seconds in row]


def charged(spec):
    """How many attempts each row was charged with, as the ledger tells."""
    ledger = OutputFolder(spec.out).read_ledger().to_pandas()
    return ledger.groupby("row_id")["attempt"].max().to_dict()


class Table:
    """The faults met so far; printed at the end, and written where DOODL_FAULTS_TABLE says."""

    COLUMNS = ("fault", "rows expected", "rows found", "duplicates", "time to recover", "then")

    def __init__(self):
        self.rows = []

    def add(self, fault, standing, seconds, then=""):
        """Note a fault. seconds: times to recover, one or many; None where there are none."""
        if isinstance(seconds, (int, float)):
            seconds = [seconds]
        told = "-"
        if seconds:
            ordered = sorted(seconds)
            told = f"{ordered[len(ordered) // 2]:.1f} s"
            if len(ordered) > 1:
                told += f" (longest {ordered[-1]:.1f} s of {len(ordered)})"
        self.rows.append(
            (fault, standing.expected, standing.found, standing.duplicates, told, then)
        )
        if (path := os.environ.get("DOODL_FAULTS_TABLE")) is not None:
            with Path(path).open("a") as file:
                file.write(json.dumps(dict(zip(self.COLUMNS, self.rows[-1], strict=True))) + "\n")

    def markdown(self):
        lines = [self.COLUMNS, ["---"] * len(self.COLUMNS), *self.rows]
        return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def kill_rounds(spec, folder, rounds, *, seed):
    """Run a job to its end through so many SIGKILLs at random times, of drivers and of workers.

    Returns: seconds from each driver's rerun to its first new photo, and from each worker's death
    to a photo with another in its place.
    """
    rng = random.Random(seed)
    drivers, workers = [], []
    run = Run(spec, folder)
    try:
        for number in range(rounds):
            before = delivered(spec)
            wait_until(lambda n=before: delivered(spec) > n, "a new photo", run=run)
            time.sleep(rng.uniform(0.0, 1.5))
            assert run.process.poll() is None, f"too few photos for the rounds: {run.output}"
            if number % 2 == 0:
                run, old = _driver_killed(run, spec, folder), run
                if rng.random() < 0.5:  # else what the dead driver started is left to notice it
                    kill_marked(old.mark)
                before = delivered(spec)
                wait_until(lambda n=before: delivered(spec) > n, "a new photo", run=run)
                drivers.append(time.monotonic() - run.began)
            elif (seconds := _worker_killed(run, spec, rng)) is not None:
                workers.append(seconds)
        code = run.wait(600)
        assert code == 0, run.output
    finally:
        run.clean()
    return drivers, workers


def _driver_killed(run, spec, folder):
    run.kill()
    return Run(spec, folder)


def _worker_killed(run, spec, rng):
    """SIGKILL a worker; return the seconds until another is there and photos go on.

    None if the run was done before that.
    """
    wait_until(run.workers, "a worker", run=run)
    there = run.workers()
    rng.choice(there).kill()
    begun = time.monotonic()
    old = {process.pid for process in there}
    while run.process.poll() is None:
        if {process.pid for process in run.workers()} - old:
            before = delivered(spec)
            while run.process.poll() is None:
                if delivered(spec) > before:
                    return time.monotonic() - begun
                time.sleep(0.02)
        time.sleep(0.1)
    return None
