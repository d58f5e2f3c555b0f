"""Random SIGKILLs of a run of the real pocket model."""

import hashlib
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from pipeline.spec import make_spec
from tests.photos import collection
from tests.pipeline.test_ray import finish, start

WORKERS = 2


def delivered(out):
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in (out / "edited").rglob("*.jpg")}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("count", "kills"), [(30, 5)])
def test_kills_cost_no_commit_and_at_most_a_checkpoint_interval(tmp_path, count, kills):
    photos = collection(tmp_path / "photos", count)
    log = tmp_path / "iterations.log"
    spec = make_spec(
        photos, editor="tests.fakes:load_logging_editor", num_workers=WORKERS, checkpoint_every=2
    )
    out, rng = Path(spec.out), random.Random(1)
    committed, started = {}, []
    for _ in range(kills):
        process = start(spec, tmp_path, log=log)
        begun = time.monotonic()
        lines = len(log.read_text().splitlines()) if log.exists() else 0
        while process.poll() is None and time.monotonic() - begun < 120:
            if log.exists() and len(log.read_text().splitlines()) > lines:
                break
            time.sleep(0.1)
        started.append(time.monotonic() - begun)
        time.sleep(rng.uniform(1, 40))
        assert process.poll() is None, "the run ended before it could be killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        # Ray's own processes notice the driver's death a moment later.
        time.sleep(3)
        done = (
            set(pd.concat([pd.read_parquet(p) for p in (out / "_state/staging").glob("*")]).row_id)
            if list((out / "_state/staging").glob("*"))
            else set()
        )
        now = delivered(out)
        for path, digest in committed.items():
            assert now[path] == digest
        committed.update(
            {
                out / "edited" / row_id: now[out / "edited" / row_id]
                for row_id in done
                if out / "edited" / row_id in now
            }
        )
    code, output = finish(start(spec, tmp_path, log=log), timeout=1200)
    assert code == 0, output
    table = pd.read_parquet(out / "results")
    assert sorted(table.row_id) == sorted(
        p.relative_to(photos).as_posix() for p in photos.rglob("*.jpg")
    )
    for path, digest in committed.items():
        assert delivered(out)[path] == digest
    iterations = Counter(line.split()[0] for line in log.read_text().splitlines())
    needed = dict(zip(table.seed.astype(str), table.num_optim_steps + 1, strict=True))
    again = {seed: iterations[seed] - needed[seed] for seed in needed}
    print("seconds to the first iteration:", [f"{s:.1f}" for s in started])
    print("iterations done twice:", sorted(again.values(), reverse=True)[: 2 * kills])
    # A photo may be in flight at several kills; each costs it at most one interval and the
    # iteration under way.
    assert sum(again.values()) <= kills * WORKERS * (spec.checkpoint_every + 1)
