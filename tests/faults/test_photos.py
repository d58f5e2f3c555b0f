"""Photos that take their worker with them, that never end, that ask for too much; all that fail."""

import pytest

from tests.faults.harness import Standing, make_job, row_recoveries, running

pytestmark = pytest.mark.slow


def finished(spec, folder, code, **options):
    with running(spec, folder, **options) as run:
        assert run.wait() == code, run.output
        return run.output


FAULTS = {
    "segfault": ("PoisonRow", "gave up after 2 workers died on it"),
    "kill the worker": ("PoisonRow", "gave up after 2 workers died on it"),
    "hang": ("RowTimeout", "no result after 5 s a row; its worker was killed"),
    "no memory": ("OutOfMemoryError", "out of memory"),
    "broken device": ("RuntimeError", "CUDA error"),
}


def test_photos_that_break_their_worker_fail_alone(tmp_path, faults):
    prompts = {4 + 6 * i: fault for i, fault in enumerate(FAULTS)}
    spec = make_job(tmp_path, 40, prompts, row_timeout_seconds=5.0)
    finished(spec, tmp_path, 3)
    standing = Standing(spec, 40)
    standing.check()
    assert standing.statuses == {"ok": 40 - len(FAULTS), "failed": len(FAULTS)}
    failed = standing.table.query("status == 'failed'").set_index("prompt")
    recoveries = row_recoveries(spec)
    for fault, (error, message) in FAULTS.items():
        assert failed.loc[fault, "error_type"] == error
        assert message in failed.loc[fault, "error_message"]
        seconds = recoveries.get(failed.loc[fault, "row_id"])
        faults.add(f"a photo: {fault}", standing, seconds, f"its row: {error}")


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
