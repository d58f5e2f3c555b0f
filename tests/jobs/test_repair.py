"""`retry`, `verify`, `replay` and `status` as a person types them."""

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.cli import main
from pipeline.run import run_job
from tests.fakes import LOG
from tests.photos import collection
from tests.pipeline.conftest import results, spec_of


@pytest.fixture
def call(monkeypatch, capsys):
    """Return a function that runs the command and returns (exit code, stdout, stderr)."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["doodl-batch", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture
def mixed(tmp_path, monkeypatch):
    """A job of four rows: two ok, one that failed, one that took too much memory."""
    photos = collection(tmp_path / "photos", 4)
    names = sorted(str(p) for p in photos.rglob("*.jpg"))
    path = tmp_path / "manifest.parquet"
    prompts = ["", "fail", "no memory", ""]
    rows = {"row_id": [f"{name}.jpg" for name in "abcd"], "image_uri": names, "prompt": prompts}
    pq.write_table(pa.table(rows), path)
    monkeypatch.setenv(LOG, str(tmp_path / "edits.log"))
    spec = spec_of(path)
    assert run_job(spec).exit_code == 3
    return spec


def edits(spec):
    return len(Path(spec.photos).with_name("edits.log").read_text().splitlines())


def test_failed_rows_are_retried_all_or_of_one_class(call, mixed):
    before = edits(mixed)
    code, out, err = call("retry", mixed.out, "--class", "RuntimeError", "--json")
    assert code == 3, err
    assert json.loads(out)["statuses"] == {"failed": 1}
    assert edits(mixed) == before + 1
    code, out, err = call("retry", mixed.out, "--failed", "--json")
    assert json.loads(out)["statuses"] == {"failed": 2}
    assert edits(mixed) == before + 1 + 1 + 2  # what takes too much memory is tried twice
    assert len(results(mixed)) == 4


def test_one_row_is_done_again_by_name(call, mixed):
    before = edits(mixed)
    code, _, err = call("retry", mixed.out, "--row", "a.jpg", "--no-report")
    assert code == 3, err  # the others' failures stand
    assert edits(mixed) == before + 1
    assert results(mixed)["status"].value_counts().to_dict() == {"ok": 2, "failed": 2}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["retry", "OUT"], "give one of --failed"),
        (["retry", "OUT", "--failed", "--damaged"], "give one of --failed"),
        (["retry", "OUT", "--row", "nothing"], "no row 'nothing'"),
        (["replay", "OUT", "nothing"], "no row 'nothing'"),
        (["replay", "OUT", "b.jpg"], "row 'b.jpg' is failed"),
        (["verify", "/nowhere"], "is not an output folder"),
        (["retry", "/nowhere", "--failed"], "is not an output folder"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_exit_2(call, mixed, words, said):
    code, _, err = call(*[mixed.out if word == "OUT" else word for word in words])
    assert code == 2
    assert said in err
    assert "Traceback" not in err


def test_verify_names_repairs_and_hands_over_to_retry(call, mixed):
    assert call("verify", mixed.out)[0] == 0
    Path(mixed.out, "edited/a.jpg").unlink()
    Path(mixed.out, "results/stray.parquet").write_text("1")
    code, out, err = call("verify", mixed.out)
    assert code == 3
    assert "missing: 1" in out
    assert "edited/a.jpg" in out
    assert "results/stray.parquet" in out
    assert "--repair" in err
    code, out, err = call("verify", mixed.out, "--repair")
    assert code == 0, out
    assert "1 photo(s) put back from images/, 1 file(s) moved" in err
    before = edits(mixed)
    Path(mixed.out, "edited/a.jpg").write_bytes(b"?")
    code, out, err = call("retry", mixed.out, "--damaged", "--no-report", "--json")
    assert json.loads(out)["statuses"] == {"ok": 1}, err
    assert edits(mixed) == before + 1
    assert json.loads(call("verify", mixed.out, "--json")[1])["counts"] == {"set aside": 1}


def test_status_needs_no_cluster_and_tells_the_failures_by_class(call, mixed, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://192.0.2.1:8265")
    code, out, _ = call("status", mixed.out)
    assert code == 3
    assert "RuntimeError" in out
    assert "OutOfMemoryError" in out
    assert "no run is at work on it" in out
    facts = json.loads(call("status", mixed.out, "--json")[1])
    assert facts["failures"] == {"OutOfMemoryError": 1, "RuntimeError": 1}
