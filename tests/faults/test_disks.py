"""Disks that are full, files that may not grow, folders that may not be written."""

import resource
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.faults.harness import Standing, delivered, make_job, running, wait_until

pytestmark = pytest.mark.slow


@contextmanager
def mounted(folder, *options):
    """A tmpfs on the folder for the body."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("this user may not mount; try as root")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder, *options):
    subprocess.run(
        ["mount", "-o", ",".join(["remount", *options]), "tmpfs", str(folder)], check=True
    )


def all_parts_are_whole(out):
    for part in [*Path(out).glob("results/*"), *Path(out).glob("images/*")]:
        pq.read_table(part)


def finished(spec, folder, codes, **options):
    with running(spec, folder, **options) as run:
        assert run.wait() in codes, run.output
        return run.output


def test_a_full_disk_ends_the_run_and_a_rerun_completes_it(tmp_path, faults, monkeypatch):
    out = tmp_path / "out"
    with mounted(out, "size=70m"):
        spec = make_job(tmp_path, 40, out=out)
        # Room enough for the preflight, and gone by the time the photos are written.
        filler = out / ".filler"
        with running(spec, tmp_path) as run:
            wait_until(lambda: delivered(spec) >= 3, "photos", run=run)
            with filler.open("wb") as file:
                try:
                    while True:
                        file.write(bytes(2**16))
                        file.flush()
                except OSError:
                    pass
            assert run.wait() == 7, run.output
            assert "disk full" in run.output
        all_parts_are_whole(out)
        filler.unlink()
        before = Standing(spec, 40).found if list(out.glob("results/*")) else 0
        finished(spec, tmp_path, (0,))
        standing = Standing(spec, 40)
        standing.check()
        assert standing.statuses == {"ok": 40}
        faults.add(
            "tmpfs of 70 MB filled during the run", standing, None,
            f"exit 7 with {before} rows published; rerun: 0",
        )  # fmt: skip


def test_a_disk_too_small_is_said_before_anything_is_computed(tmp_path, faults):
    out = tmp_path / "out"
    with mounted(out, "size=20m"):
        spec = make_job(tmp_path, 10, out=out)
        said = finished(spec, tmp_path, (7,))
        assert "MiB free and this run may need" in said
        assert not (tmp_path / "edits.log").exists()
        remount(out, "size=200m")
        finished(replace(spec, runner="inline"), tmp_path, (0,))
        standing = Standing(spec, 10)
        standing.check()
        faults.add("tmpfs of 20 MB", standing, None, "exit 7 before any edit; larger: 0")


@pytest.mark.parametrize("kilobytes", [1, 16])
def test_files_that_may_not_grow_end_the_run_and_a_rerun_completes_it(tmp_path, faults, kilobytes):
    spec = make_job(tmp_path, 10)
    limited = [
        sys.executable, "-c",
        "import resource, os, sys\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({kilobytes} * 1024, resource.RLIM_INFINITY))\n"
        "os.execv(sys.argv[1], sys.argv[1:])",
    ]  # fmt: skip
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    inline = make_job(tmp_path, 10, runner="inline")  # Ray's own logs would meet the limit first
    said = finished(inline, tmp_path, (7,), prefix=limited)
    assert "disk full" in said
    all_parts_are_whole(spec.out)
    finished(inline, tmp_path, (0,))
    standing = Standing(spec, 10)
    standing.check()
    faults.add(f"RLIMIT_FSIZE of {kilobytes} KB", standing, None, "exit 7; without it: 0")


@contextmanager
def sealed(folder):
    """The folder takes no new entry for the body, not even from root."""
    if subprocess.run(["chattr", "+i", str(folder)], capture_output=True, check=False).returncode:
        pytest.skip("this file system cannot seal a folder; try as root on ext4")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", str(folder)], check=True)


def test_an_output_that_becomes_read_only_is_said_and_charges_nobody(tmp_path, faults):
    # A mount that is written to cannot be made read-only: its folder of photos can.
    spec = make_job(tmp_path, 20)
    with running(spec, tmp_path) as run:
        wait_until(lambda: delivered(spec) >= 3, "photos", run=run)
        with sealed(Path(spec.out) / "edited"):
            code = run.wait()
    assert code == 6, run.output
    assert "cannot be written" in run.output
    finished(spec, tmp_path, (0,))
    standing = Standing(spec, 20)
    standing.check()
    assert standing.statuses == {"ok": 20}
    faults.add("output read-only during the run", standing, None, "exit 6; writable: 0")


def test_an_output_that_was_read_only_from_the_start_is_one_line(tmp_path, faults):
    out = tmp_path / "out"
    with mounted(out, "size=200m"):
        spec = make_job(tmp_path, 10, out=out)
        remount(out, "ro", "size=200m")
        said = finished(spec, tmp_path, (6,))
        assert "cannot be written" in said
        assert "Traceback" not in said
        remount(out, "rw", "size=200m")
        finished(replace(spec, runner="inline"), tmp_path, (0,))
        standing = Standing(spec, 10)
        standing.check()
        faults.add("output read-only from the start", standing, None, "exit 6; writable: 0")


def test_a_read_only_home_keeps_nobody_from_working(tmp_path, faults):
    home = tmp_path / "home"
    with mounted(home, "size=1m"):
        remount(home, "ro", "size=1m")
        spec = make_job(tmp_path, 10)
        finished(spec, tmp_path, (0,), HOME=str(home))
        standing = Standing(spec, 10)
        standing.check()
        assert list(home.iterdir()) == []
        faults.add("HOME read-only", standing, None, "exit 0")
