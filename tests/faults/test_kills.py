"""SIGKILL at random times to workers and drivers; nodes lost; workers that sleep and wake."""

import contextlib
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.faults.harness import (
    Standing,
    all_recoveries,
    delivered,
    kill_rounds,
    make_job,
    running,
    wait_until,
)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("rounds", "count"),
    [pytest.param(2, 100, marks=pytest.mark.slow), pytest.param(20, 1000, marks=pytest.mark.slow)],
)
def test_random_kills_of_workers_and_drivers_lose_no_row_and_double_none(
    tmp_path, faults, rounds, count
):
    spec = make_job(tmp_path, count)
    drivers, workers = kill_rounds(spec, tmp_path, rounds, seed=rounds)
    standing = Standing(spec, count)
    standing.check()
    assert standing.statuses == {"ok": count}
    # At most the rows in flight, one to a worker, are edited twice for each kill.
    edits = len((tmp_path / "edits.log").read_text().splitlines())
    assert edits <= count + rounds * spec.num_workers
    again = f"{edits - count} edits done twice"
    faults.add(f"SIGKILL of the driver, {(rounds + 1) // 2} times", standing, drivers, again)
    faults.add(f"SIGKILL of a worker, {rounds // 2} times", standing, workers)


@pytest.mark.slow
def test_a_worker_that_sleeps_past_its_deadline_is_killed_for_real(tmp_path, faults):
    spec = make_job(tmp_path, 20, row_timeout_seconds=3.0)
    with running(spec, tmp_path) as run:
        wait_until(lambda: delivered(spec) >= 2, "photos", run=run)
        worker = run.workers()[0]
        worker.send_signal(signal.SIGSTOP)
        begun = time.monotonic()
        gone = wait_until(lambda: not _lives(worker), "its end", run=run)
        assert run.wait() in (0, 3), run.output
        assert time.monotonic() - begun < 120
    standing = Standing(spec, 20)
    standing.check()
    assert set(standing.errors) <= {"RowTimeout"}
    faults.add("SIGSTOP of a worker, --row-timeout 3", standing, gone, "its process is gone")


def _lives(process):
    with contextlib.suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_lost_node_costs_no_row_and_a_new_one_takes_its_place(tmp_path, nodes, faults):
    spec = make_job(tmp_path, 60, runner="cluster")
    driver = nodes.drive(spec, 0.2)
    wait_until(lambda: delivered(spec) >= 5, "photos")
    nodes.say("lose")
    nodes.say("add")
    assert driver.wait(600) == 0
    standing = Standing(spec, 60)
    standing.check()
    assert standing.statuses == {"ok": 60}
    recoveries = all_recoveries(spec)
    assert recoveries
    faults.add("a node lost, another added", standing, recoveries)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_worker_given_up_for_dead_that_wakes_up_doubles_no_row(tmp_path, nodes, faults):
    """Its node answers no more, its row is done elsewhere; then it goes on where it was."""
    spec = make_job(tmp_path, 60, runner="cluster")
    driver = nodes.drive(spec, 0.2)
    wait_until(lambda: delivered(spec) >= 5, "photos")
    worker = next(nodes.processes("ray::_Worker"))
    raylet = psutil.Process(worker.ppid())
    raylet.suspend()
    time.sleep(0.1)
    worker.suspend()
    try:
        wait_until(lambda: died_and_done_again(spec), "the row done elsewhere", 300)
    finally:
        worker.resume()  # its daemon still sleeps: it finishes its photo and commits it
        time.sleep(2.0)
        raylet.resume()
    assert driver.wait(600) == 0
    standing = Standing(spec, 60)
    standing.check()
    assert standing.statuses == {"ok": 60}
    faults.add("zombie worker: SIGSTOP, requeue, SIGCONT", standing, all_recoveries(spec))


def died_and_done_again(spec):
    """Whether a worker has died and photos have gone on since, as the run's log tells."""
    died = False
    for path in Path(spec.out).glob("_state/logs/*.jsonl"):
        for line in path.read_text().splitlines():
            died |= '"worker_died"' in line
            if died and '"attempt": 2' in line and '"ok"' in line:
                return True
    return False


@pytest.mark.slow
def test_of_two_drivers_at_once_one_leaves(tmp_path, faults):
    spec = make_job(tmp_path, 30)
    with running(spec, tmp_path) as first, running(spec, tmp_path) as second:
        codes = sorted([first.wait(), second.wait()])
        said = first.output + second.output
    assert codes == [0, 5], said
    assert "another driver is running" in said
    standing = Standing(spec, 30)
    standing.check()
    faults.add("two drivers at once", standing, None, "the second leaves with exit 5")
