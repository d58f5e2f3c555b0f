"""`evaluate` as a person meets it."""

import json
import shlex

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


SHORT = ["--set", "optimiser.num_optim_steps=1", "--set", "num_crops=1"]
PICTURES = [
    "--prompt", "a photo of roses", "--size", "64",
    "--set", "sampler.num_inference_steps=4", *SHORT,
]  # fmt: skip


def invoked(*arguments):
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments), "--json"])
    assert result.exit_code == exits.OK, result.output
    return {table["title"]: table["values"] for table in json.loads(result.stdout)["tables"]}


def test_ablations_of_photos_are_one_command_with_rows_tables_and_a_plot(finished, tmp_path):
    photos = finished[0]
    out = tmp_path / "out"
    tables = invoked(
        "ablations", photos, "--out", out, "--only", "unet-zero", "--dulled", 1,
        "--set", "working_px=64", *SHORT,
    )  # fmt: skip
    rows = tables["ablations: dulled photos, up"]
    assert [row["method"] for row in rows] == ["edit", "unet-zero"]
    assert rows[1]["unet_calls"]["mean"] == 0
    assert pq.read_table(out / "rows.parquet").num_rows == 2
    for name in ("tables.md", "rows.csv", "plots/ablations-dulled-photos-up.svg"):
        assert (out / name).is_file()


def test_ablations_and_rates_of_pictures_are_commands_without_photos(tmp_path):
    only = ["ablations", "--task", "text", "--only", "belm", "--seeds", 1]
    tables = invoked(*only, "--out", tmp_path / "a", *PICTURES)
    methods = [row["method"] for row in tables["ablations: text"]]
    assert methods == ["original", "doodl", "belm"]
    assert pq.read_table(tmp_path / "a" / "rows.parquet").num_rows == 3
    asked = ["tune", "--task", "aesthetic", "--validation", 1]
    tables = invoked(*asked, "--out", tmp_path / "t", *PICTURES)
    rates = [
        row["learning_rate"] for row in tables["learning rates, kept apart: aesthetic: choice"]
    ]
    assert sorted(rates) == [0.25, 0.5, 1, 2, 4]


def test_samplers_are_one_command(finished, tmp_path):
    photos = collection(tmp_path / "photos", 4)
    tables = invoked(
        "samples", photos, "--out", tmp_path / "out", "--samplers", "ddim,belm", "--steps", "4",
        "--caption", "a photo of roses", "--number", 2, "--size", 64,
    )  # fmt: skip
    names = [row["set"] for row in tables["samplers"]]
    assert {"ddim, 4 steps", "belm, 4 steps", "edict, 4 steps"} <= set(names)
    assert pq.read_table(tmp_path / "out" / "rows.parquet").num_rows == 6


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["ablations", "--task", "speech"], "speech"),
        (["ablations"], "none was named"),
        (["ablations", "--task", "text", "PHOTOS"], "draws from prompts"),
        (["ablations", "--task", "text", "--only", "magic"], "magic"),
        (["samples", "PHOTOS", "--steps", "ten"], "whole numbers"),
        (["samples", "PHOTOS", "--samplers", "euler,ddim"], "euler"),
    ],
)
def test_wrong_use_of_the_new_commands_is_named(finished, monkeypatch, capsys, arguments, word):
    given = [finished[0] if a == "PHOTOS" else a for a in arguments]
    out = finished[1].parent / "none"
    code, said = doodl_batch_here(monkeypatch, capsys, "evaluate", *given, "--out", out)
    assert code == exits.USAGE
    assert word in said


def test_recorded_command_gives_the_same_table_again(finished, monkeypatch, capsys, tmp_path):
    photos = finished[0]
    folders = tmp_path / "first", tmp_path / "second"
    arguments = ["evaluate", "enhance", photos, "--out", folders[0], *QUICK, "--limit", "1"]
    doodl_batch_here(monkeypatch, capsys, *arguments)
    command = json.loads((folders[0] / "evaluation.json").read_text())["command"]
    words = shlex.split(command.replace(str(folders[0]), str(folders[1])))[1:]
    code, _ = doodl_batch_here(monkeypatch, capsys, *words)
    assert code == exits.OK
    first, second = (
        json.loads((folder / "evaluation.json").read_text())["tables"] for folder in folders
    )
    assert [table["title"] for table in first] == [table["title"] for table in second]
    for one, other in zip(first[0]["values"], second[0]["values"], strict=True):
        interval = one["referee_change"]
        assert interval["low"] - 1e-3 <= other["referee_change"]["mean"] <= interval["high"] + 1e-3
        gain = one["clean_gain_db"]["mean"]
        assert other["clean_gain_db"]["mean"] == pytest.approx(gain, abs=0.01)
