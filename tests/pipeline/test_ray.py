"""Real Ray, real processes, real kills; the edit is a cheap stand-in."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.spec import make_spec
from tests.fakes import LOG, SECONDS
from tests.photos import collection

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def photos(tmp_path):
    return collection(tmp_path / "photos", 8)


def start(spec, folder, *, seconds="0", log=None, **environment):
    """Start `doodl-batch run SPEC` in its own process group, from `folder`."""
    path = Path(folder) / "spec.json"
    path.write_text(spec.to_json())
    environment = {
        **os.environ,
        SECONDS: seconds,
        "PYTHONPATH": str(ROOT),
        **environment,
        **({} if log is None else {LOG: str(log)}),
    }
    return subprocess.Popen(
        [Path(sys.executable).parent / "doodl-batch", "run", str(path)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process, timeout=120):
    output, _ = process.communicate(timeout=timeout)
    return process.returncode, output


def spec_of(photos, **options):
    return make_spec(photos, editor="tests.fakes:load_editor", num_workers=2, **options)


def results(spec):
    return pd.read_parquet(f"{spec.out}/results").set_index("row_id").sort_index()


def test_runs_from_a_folder_with_the_users_own_packages_of_our_names(photos, tmp_path):
    home = tmp_path / "home"
    for name in ("jobs", "pipeline", "manifests", "doodl"):
        (home / name).mkdir(parents=True)
        (home / name / "__init__.py").write_text("raise SystemExit('the wrong package')")
    spec = spec_of(photos)
    code, output = finish(start(spec, home))
    assert code == 0, output
    assert (results(spec)["status"] == "ok").all()
    assert len(results(spec)) == 8
    assert "private Ray on this machine: neither --address nor RAY_ADDRESS is set" in output
    assert "oken authentication" not in output  # Ray says so at each start


def test_sigkill_of_everything_loses_no_commit_and_repeats_none(photos, tmp_path):
    log = tmp_path / "edits.log"
    spec = spec_of(photos)
    process = start(spec, tmp_path, seconds="0.7", log=log)
    staging = Path(spec.out) / "_state" / "staging"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(list(staging.glob("*.parquet"))) < 3:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(1.5)  # workers that outlive the driver may finish the photo they hold
    committed = len(list(staging.glob("*.parquet")))
    edited = {p: p.stat().st_mtime_ns for p in (Path(spec.out) / "edited").rglob("*.jpg")}
    assert 3 <= committed < 8
    code, output = finish(start(spec, tmp_path, log=log))
    assert code == 0, output
    assert len(results(spec)) == 8
    # Only the rows that were in flight, one to a worker, may have been edited twice.
    assert len(log.read_text().splitlines()) <= 8 + spec.num_workers
    assert len({p for p, mtime in edited.items() if p.stat().st_mtime_ns != mtime}) <= 2
    third, output = finish(start(spec, tmp_path, log=log), timeout=15)
    assert third == 0
    assert "0 computed" in output


def test_a_photo_that_kills_its_workers_is_given_up_and_the_others_go_on(photos, tmp_path):
    names = sorted(str(p) for p in photos.rglob("*.jpg"))
    path = tmp_path / "manifest.parquet"
    pq.write_table(pa.table({"image_uri": names, "prompt": ["kill the worker"] + [""] * 7}), path)
    spec = spec_of(path)
    code, output = finish(start(spec, tmp_path))
    assert code == 3, output
    failed = results(spec).query("status == 'failed'")
    assert list(failed["error_type"]) == ["PoisonRow"]
    assert "gave up after 2 workers" in failed["error_message"].iloc[0]
    assert (results(spec)["status"] == "ok").sum() == 7


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_in_order_and_a_rerun_completes_it(photos, tmp_path, number, code):
    spec = spec_of(photos)
    process = start(spec, tmp_path, seconds="1")
    staging = Path(spec.out) / "_state" / "staging"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not list(staging.glob("*.parquet")):
        time.sleep(0.05)
    process.send_signal(number)
    got, output = finish(process)
    assert got == code, output
    assert list(staging.glob("*.parquet")) == []
    assert 1 <= len(results(spec)) < 8
    got, output = finish(start(spec, tmp_path))
    assert (got, len(results(spec))) == (0, 8), output


def test_a_worker_that_cannot_start_ends_the_run_with_its_reason(photos, tmp_path):
    spec = make_spec(photos, editor="tests.fakes:no_such_editor", num_workers=1)
    code, output = finish(start(spec, tmp_path))
    assert code == 6
    assert "a worker cannot start" in output
    assert "no_such_editor" in output


def test_a_worker_that_cannot_start_at_once_gets_a_second_try(photos, tmp_path):
    spec = make_spec(photos, editor="tests.fakes:load_editor_at_second_try", num_workers=1)
    code, output = finish(start(spec, tmp_path, log=tmp_path / "log"))
    assert (code, len(results(spec))) == (0, 8), output


@pytest.mark.slow
def test_workers_that_die_while_they_load_end_the_run(photos, tmp_path):
    spec = make_spec(photos, editor="tests.fakes:load_dying_editor", num_workers=1)
    code, output = finish(start(spec, tmp_path), timeout=400)
    assert code == 6, output
    assert "5 workers on end died while they loaded" in output
