"""SIGKILL to Ray's own daemons, one, both, all that Ray has started; its folder taken away."""

import contextlib
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.faults.harness import (
    Standing,
    all_recoveries,
    charged,
    delivered,
    make_job,
    running,
    wait_until,
)

AGAIN = "it is started again, with the photos that were in work"


def kill(*processes):
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def kill_raylet(run):
    kill(*run.daemons("raylet"))


def kill_gcs(run):
    kill(*run.daemons("gcs_server"))


def kill_both(run):
    kill(*run.daemons("raylet", "gcs_server"))


def kill_all(run):
    """Daemons first: a worker's death seen before theirs would be a worker's death."""
    kill(*run.daemons("raylet", "gcs_server"), *run.daemons())


def take_folder(run):
    (raylet,) = run.daemons("raylet")
    shutil.rmtree(re.search(r"/[^=\s]*/session_[^/\s]+", " ".join(raylet.cmdline()))[0])


def go_through(tmp_path, strike, faults, name):
    """Strike in the middle of a run: it goes on, no row is charged, none is lost or double."""
    spec = make_job(tmp_path, 12)
    # Slower than a worker is to notice that its raylet is gone, some seconds later.
    with running(spec, tmp_path, seconds=1.0) as run:
        wait_until(lambda: delivered(spec) >= 2, "photos", run=run)
        begun = time.monotonic()
        strike(run)
        wait_until(lambda: AGAIN in run.output, "the line", 60, run)
        noticed = time.monotonic() - begun
        code, said = run.wait(), run.output
    assert code == 0, said
    assert said.count(AGAIN) == 1
    assert "state-dump" not in said  # what Ray prints of its own accord
    standing = Standing(spec, 12)
    standing.check()
    assert standing.statuses == {"ok": 12}
    assert set(charged(spec).values()) == {1}
    faults.add(name, standing, all_recoveries(spec), f"noticed after {noticed:.1f} s")


def test_a_run_goes_on_when_its_raylet_is_killed(tmp_path, faults):
    go_through(tmp_path, kill_raylet, faults, "SIGKILL of the private Ray's raylet")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strike", "name"),
    [
        (kill_gcs, "SIGKILL of the private Ray's GCS"),
        (kill_both, "SIGKILL of its raylet and GCS"),
        (kill_all, "SIGKILL of all that Ray has started"),
        (take_folder, "the folder of the Ray session deleted"),
    ],
)
def test_a_run_goes_on_whatever_of_its_ray_is_lost(tmp_path, faults, strike, name):
    go_through(tmp_path, strike, faults, name)


@pytest.mark.slow
@pytest.mark.parametrize("strike", [kill_raylet, kill_gcs])
def test_a_run_goes_on_when_its_ray_dies_while_the_models_load(tmp_path, strike):
    spec = replace(make_job(tmp_path, 4), editor="tests.fakes:load_editor_slowly")
    with running(spec, tmp_path) as run:
        wait_until((tmp_path / "edits.log.loading").exists, "the models to load", run=run)
        strike(run)
        code, said = run.wait(), run.output
    assert code == 0, said
    assert said.count(AGAIN) == 1
    Standing(spec, 4).check()
    assert set(charged(spec).values()) == {1}


@pytest.mark.slow
@pytest.mark.parametrize("strike", [kill_raylet, kill_gcs, kill_all])
def test_a_run_ends_when_its_ray_dies_as_the_last_photo_is_done(tmp_path, strike):
    spec = make_job(tmp_path, 4)
    with running(spec, tmp_path) as run:
        wait_until(lambda: delivered(spec) == 4, "the photos", run=run)
        strike(run)
        assert run.wait() == 0, run.output
    Standing(spec, 4).check()


@pytest.mark.slow
def test_a_ray_that_dies_again_and_again_ends_the_run_and_a_rerun_completes_it(tmp_path, faults):
    spec = make_job(tmp_path, 30)
    with running(spec, tmp_path) as run:
        for _ in range(3):
            before = delivered(spec)
            wait_until(lambda n=before: delivered(spec) > n, "a new photo", run=run)
            kill_raylet(run)
            time.sleep(2.0)
        code, said = run.wait(), run.output
    assert code == 6, said
    assert said.count(AGAIN) == 2
    assert "the same command again goes on from here" in said.splitlines()[-1]
    assert "Traceback" not in said
    with running(spec, tmp_path) as rerun:
        assert rerun.wait() == 0, rerun.output
    standing = Standing(spec, 30)
    standing.check()
    assert set(charged(spec).values()) == {1}
    faults.add("its raylet killed three times", standing, None, "exit 6; rerun: 0")


@pytest.mark.slow
@pytest.mark.parametrize(("path", "who"), [("raylet/raylet", "raylet"), ("gcs/gcs_server", "GCS")])
def test_a_driver_on_a_cluster_ends_when_what_it_depends_on_dies(
    tmp_path, nodes, faults, path, who
):
    spec = make_job(tmp_path, 400, runner="cluster")
    with nodes.command(spec) as driver:
        wait_until(lambda: delivered(spec) >= 5, "photos", run=driver)
        begun = time.monotonic()
        # The driver is on the head, whose raylet is the oldest.
        kill(min(nodes.processes(path), key=psutil.Process.create_time))
        code, said = driver.wait(100), driver.output
        seconds = time.monotonic() - begun
    assert code == 6, said
    last = said.splitlines()[-1]
    assert f"the cluster's {who} no longer answers at" in last
    assert "the same command again goes on from here" in last
    standing = Standing(spec, len(list(Path(spec.out, "edited").iterdir())))
    standing.check()
    faults.add(f"SIGKILL of a cluster's {who}", standing, None, f"exit 6 after {seconds:.0f} s")
