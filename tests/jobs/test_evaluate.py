"""`evaluate` as a person meets it."""

import json

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from doodl.pocket import weights_dir
from jobs import exits
from jobs.cli import app
from tests.jobs.test_cli import doodl_batch_here
from tests.photos import collection

JUDGE = str(weights_dir() / "judge")
QUICK = [
    "--referee", JUDGE, "--dulled", "2", "--untouched", "1", "--validation", "0",
    "--directions", "up", "--methods", "zero-unet,auto-contrast",
    "--set", "optimiser.num_optim_steps=1", "--set", "num_crops=1", "--set", "working_px=64",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    photos = collection(folder / "my photos", 3)
    (photos / "bad.jpg").write_bytes(b"no photo")
    out = folder / "out"
    arguments = ["evaluate", "enhance", str(photos), "--out", str(out), *QUICK]
    return photos, out, arguments, CliRunner().invoke(app, arguments)


def test_tables_are_printed_and_everything_is_where_it_says(finished):
    _, out, _, result = finished
    assert result.exit_code == exits.OK, result.output
    assert "auto-contrast" in result.output
    assert "bad.jpg" in result.output  # named as left out
    for name in ("tables.md", "rows.csv", "evaluation.json", "sheets/dulled-up-01.png"):
        assert (out / name).is_file()
        assert name.split("/")[-1] in result.output or name == "evaluation.json"
    rows = pq.read_table(out / "rows.parquet")
    assert rows.num_rows == 3 * 2
    assert rows.schema.field("referee_after").metadata[b"description"]


def test_same_command_again_computes_nothing_and_speaks_json(finished):
    _, out, arguments, _ = finished
    lines = (out / "_work" / "rows.jsonl").read_bytes()
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == exits.OK
    titles = [table["title"] for table in json.loads(result.stdout)["tables"]]
    assert "dulled photos, up" in titles
    assert (out / "_work" / "rows.jsonl").read_bytes() == lines


@pytest.mark.parametrize(
    ("extra", "word"),
    [
        (["--methods", "magic"], "magic"),
        (["--directions", "sideways"], "sideways"),
        (["--severity", "0.9", "0.1"], "severity"),
        (["--workers", "0"], "workers"),
        (["--set", "nothing=1"], "nothing"),
    ],
)
def test_wrong_option_is_a_usage_error_that_names_it(finished, monkeypatch, capsys, extra, word):
    _, _, arguments, _ = finished
    code, said = doodl_batch_here(monkeypatch, capsys, *arguments, *extra)
    assert code == exits.USAGE
    assert word in said


def test_results_among_the_photos_are_refused(finished, monkeypatch, capsys):
    photos, _, _, _ = finished
    code, said = doodl_batch_here(
        monkeypatch, capsys, "evaluate", "enhance", photos, "--out", photos / "out", *QUICK
    )
    assert code == exits.USAGE
    assert "lies inside" in said
    assert not (photos / "out").exists()


def test_missing_referee_is_an_environment_error(finished, monkeypatch, capsys, tmp_path):
    _, _, arguments, _ = finished
    options = [*arguments, "--referee", tmp_path / "none"]
    code, said = doodl_batch_here(monkeypatch, capsys, *options)
    assert code == exits.ENVIRONMENT
    assert "none" in said
