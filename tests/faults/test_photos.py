"""Photos that take their worker with them, that never end, that ask for too much; all that fail."""

import pytest

from tests.faults.harness import Standing, make_job, row_recoveries, running

pytestmark = pytest.mark.slow


def finished(spec, folder, code, **options):
    with running(spec, folder, **options) as run:
        assert run.wait() == code, run.output
        return run.output


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("segfault", "PoisonRow", "gave up after 2 workers died on it"),
        ("kill the worker", "PoisonRow", "gave up after 2 workers died on it"),
        ("hang", "RowTimeout", "no result after 3 s a row; its worker was killed"),
        ("no memory", "OutOfMemoryError", "out of memory"),
        ("broken device", "RuntimeError", "CUDA error"),
    ],
)
def test_a_photo_that_breaks_its_worker_fails_alone(tmp_path, faults, fault, error, message):
    spec = make_job(tmp_path, 20, {3: fault}, row_timeout_seconds=3.0)
    finished(spec, tmp_path, 3)
    standing = Standing(spec, 20)
    standing.check()
    assert standing.errors == [error]
    failed = standing.table.query("status == 'failed'").iloc[0]
    assert failed["row_id"] == "p0003.jpg"
    assert message in failed["error_message"]
    faults.add(f"a photo: {fault}", standing, row_recoveries(spec), f"its row: {error}")


def test_a_photo_that_only_a_fresh_process_has_memory_for_is_done_there(tmp_path, faults):
    spec = make_job(tmp_path, 12, {8: "no memory after others"}, workers=1)
    finished(spec, tmp_path, 0)
    standing = Standing(spec, 12)
    standing.check()
    assert standing.statuses == {"ok": 12}
    faults.add("out of memory but in a fresh process", standing, None, "every row ok")


def test_when_all_photos_fail_the_run_stops_and_says_so(tmp_path, faults):
    spec = make_job(tmp_path, 60, dict.fromkeys(range(60), "fail"), breaker=10)
    said = finished(spec, tmp_path, 4)
    assert "photos all failed, so the run stops" in said
    standing = Standing(spec, 60)
    assert 10 <= standing.found <= 10 + spec.num_workers
    assert standing.duplicates == 0
    make_job(tmp_path, 60)  # whatever ailed them is put right
    finished(spec, tmp_path, 0)
    mended = Standing(spec, 60)
    mended.check()
    faults.add(
        "all rows fail (--breaker 10)", mended, None, f"exit 4 after {standing.found}; mended: 0"
    )
