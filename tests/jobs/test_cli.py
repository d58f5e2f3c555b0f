"""The command line as a person and a scheduler meet it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs import exits
from jobs.cli import app
from tests.photos import collection, jpeg

DOODL_BATCH = Path(sys.executable).parent / "doodl-batch"
# The real edit, as short as it can be: one step on a small frame.
QUICK = ["--runner", "inline", "--set", "optimiser.num_optim_steps=1", "--set", "num_crops=1"]


def doodl_batch(*arguments, cwd=None, timeout=240, **options):
    return subprocess.run(
        [DOODL_BATCH, *map(str, arguments)],
        cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False, **options,
    )  # fmt: skip


def commands(group=app, path=()):
    for command in group.registered_commands:
        yield (*path, command.name or command.callback.__name__)
    for sub in group.registered_groups:
        yield from commands(sub.typer_instance, (*path, sub.name))


@pytest.mark.parametrize("command", list(commands()), ids=" ".join)
def test_every_commands_help_has_a_line_to_paste(command):
    result = CliRunner().invoke(app, [*command, "--help"], terminal_width=200)
    assert result.exit_code == 0
    assert f"Example: doodl-batch {' '.join(command)}" in " ".join(result.output.split())


def test_help_loads_no_heavy_package():
    assert doodl_batch("--help").returncode == 0
    code = (
        "import sys; from typer.testing import CliRunner; from jobs.cli import app; "
        "CliRunner().invoke(app, ['--help']); "
        "print(sorted({'torch', 'ray', 'pyarrow', 'numpy', 'PIL'} & sys.modules.keys()))"
    )
    probe = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert probe.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of the real thing over two good photos and three bad files."""
    folder = tmp_path_factory.mktemp("run")
    photos = collection(folder / "my photos", 2)
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "cut.jpg").write_bytes(jpeg(1)[:700])
    (photos / "<b>text & 'quote'.jpg").write_text("no photo")
    result = doodl_batch("enhance", photos, *QUICK, cwd=folder)
    return folder, Path(f"{photos}-doodl"), result


def test_bad_files_exit_3_and_the_good_photos_are_delivered(finished):
    _, out, result = finished
    assert result.returncode == exits.ROWS_FAILED, result.stderr
    # The guard may reject an edit of one step; delivered or not, each photo is one row.
    status = json.loads(doodl_batch("status", out, "--json").stdout)
    assert status["counts"]["failed"] == 3
    assert status["counts"]["ok"] + status["counts"]["rejected"] == 2
    assert status["counts"]["pending"] == 0
    for name in ("empty.jpg", "cut.jpg", "<b>text & 'quote'.jpg"):
        assert f"failed: {name}" in result.stderr
    assert "Traceback" not in result.stderr


def test_again_does_nothing_and_says_so(finished):
    folder, _, _ = finished
    result = doodl_batch("enhance", "my photos", *QUICK, cwd=folder)
    assert result.returncode == exits.ROWS_FAILED
    assert "0 computed" in result.stderr


def test_plan_counts_without_touching_anything(finished):
    folder, out, _ = finished
    before = sorted(p.relative_to(out) for p in out.rglob("*"))
    plan = json.loads(doodl_batch("plan", "my photos", *QUICK[2:], "--json", cwd=folder).stdout)
    assert plan["counts"]["done"] == 2
    assert plan["counts"]["failed"] == 3
    assert plan["compute"] == 0
    assert sorted(p.relative_to(out) for p in out.rglob("*")) == before


def test_other_options_on_the_same_folder_are_exit_2_with_the_difference(finished):
    folder, _, _ = finished
    result = doodl_batch("enhance", "my photos", *QUICK, "--direction", "down", cwd=folder)
    assert result.returncode == exits.USAGE
    assert "direction: 'up' → 'down'" in result.stderr
    assert "--redo" in result.stderr


def test_report_escapes_names_and_needs_no_network(finished):
    _, out, _ = finished
    page = (out / "report" / "index.html").read_text()
    assert "<b>text" not in page
    assert "&lt;b&gt;text &amp; &#39;quote&#39;.jpg" in page
    assert "http://" not in page.replace("http-equiv", "")
    assert "https://" not in page
    assert "<script" not in page
    assert len(list((out / "report" / "thumbnails").glob("*-before.jpg"))) == 2


def test_status_of_a_folder_that_is_none_is_a_usage_error(tmp_path):
    result = doodl_batch("status", tmp_path)
    assert result.returncode == exits.USAGE
    assert "holds no _job.json" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_missing_photos_are_one_line_and_exit_6(tmp_path):
    result = doodl_batch("enhance", tmp_path / "nowhere")
    assert result.returncode == exits.ENVIRONMENT
    assert "does not exist" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--direction", "sideways"], "must be one of up, down, target"),
        (["--set", "nonsense=1"], "config has no 'nonsense'"),
        (["--strength", "3"], "strength (=3.0) must be in [0, 1]"),
        (["--since", "yesterdayish"], "since (='yesterdayish')"),
        (["--model", "/no/such/folder"], "/no/such/folder"),
        (["--preset", "grand"], "preset (='grand') must be one of"),
    ],
)
def test_options_that_make_no_sense_are_one_line(tmp_path, arguments, words):
    collection(tmp_path / "photos", 1)
    result = doodl_batch("enhance", tmp_path / "photos", *arguments)
    assert result.returncode in (exits.USAGE, exits.ENVIRONMENT)
    assert words in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "photos-doodl").exists()


def test_models_and_doctor_speak_json():
    models = json.loads(doodl_batch("models", "list", "--json").stdout)
    assert models[0]["name"] == "pocket"
    assert models[0]["state"] == "ready"
    checks = json.loads(doodl_batch("doctor", "--json").stdout)
    assert {"name", "state", "found", "advice"} == set(checks[0])
    assert {c["name"]: c["state"] for c in checks}["model pocket"] == "good"


def test_manifest_build_show_check(tmp_path):
    photos = collection(tmp_path / "photos", 3)
    path = tmp_path / "m.parquet"
    assert doodl_batch("manifest", "build", photos, path).returncode == 0
    shown = json.loads(doodl_batch("manifest", "show", path, "--json").stdout)
    assert [row["row_id"] for row in shown] == ["p000.jpg", "p002.jpg", "sub/p001.jpg"]
    assert doodl_batch("manifest", "check", path).returncode == 0


def test_score_prints_both_scores(tmp_path):
    photos = collection(tmp_path / "photos", 1)
    (photos / "bad.jpg").write_bytes(b"x")
    result = doodl_batch("score", photos, "--json")
    scored = {row["row_id"]: row for row in json.loads(result.stdout)}
    assert result.returncode == exits.ROWS_FAILED
    assert scored["bad.jpg"]["error"]
    assert isinstance(scored["p000.jpg"]["guide_score"], float)
    assert isinstance(scored["p000.jpg"]["judge_score"], float)
