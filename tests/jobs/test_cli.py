"""The command line as a person and a scheduler meet it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs import exits
from jobs.cli import app, main
from tests.photos import collection, jpeg

DOODL_BATCH = Path(sys.executable).parent / "doodl-batch"
# The real edit, as short as it can be: one step on a small frame.
QUICK = ["--runner", "inline", "--set", "optimiser.num_optim_steps=1", "--set", "num_crops=1"]


def doodl_batch(*arguments, cwd=None, timeout=240, **options):
    return subprocess.run(
        [DOODL_BATCH, *map(str, arguments)],
        cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False, **options,
    )  # fmt: skip


def doodl_batch_here(monkeypatch, capsys, *arguments):
    """Run the command in this process, which is quicker; return (exit code, stderr)."""
    monkeypatch.setattr(sys, "argv", ["doodl-batch", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, capsys.readouterr().err


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
    assert "\\u003cb\\u003etext \\u0026 'quote'.jpg" in page
    # The one address is SVG's namespace; the one script that runs is the page's own.
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page
    assert page.count("<script>") == 1
    assert "default-src 'none'" in page
    assert len(list((out / "report" / "thumbnails").glob("*-before.jpg"))) == 2


@pytest.mark.parametrize("size", ["0", "-3", "2.5", "many"])
def test_a_batch_size_that_makes_no_sense_is_a_usage_error(monkeypatch, capsys, size):
    code, err = doodl_batch_here(monkeypatch, capsys, "enhance", "photos", f"--batch-size={size}")
    assert code == exits.USAGE
    assert "--batch-size" in err
    assert "auto" in err


def test_a_batch_size_of_memory_is_for_photos(monkeypatch, capsys, tmp_path):
    asked = ("--prompt", "x", "--batch-size", "auto", "--out", tmp_path / "out")
    code, err = doodl_batch_here(monkeypatch, capsys, "generate", *asked)
    assert code == exits.USAGE
    assert "give generate a number" in err


def test_status_of_a_folder_that_is_none_is_a_usage_error(tmp_path):
    result = doodl_batch("status", tmp_path)
    assert result.returncode == exits.USAGE
    assert "holds no _job.json" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


MISSING = "does not exist"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("enhance", MISSING),
        ("plan", MISSING),
        ("score", MISSING),
        ("manifest show", MISSING),
        ("manifest check", MISSING),
        ("run", "is not a file"),
        ("status", "holds no _job.json"),
        ("report", "holds no _job.json"),
    ],
)
def test_a_path_that_is_not_there_is_one_line_and_exit_2(
    tmp_path, monkeypatch, capsys, command, words
):
    code, err = doodl_batch_here(monkeypatch, capsys, *command.split(), tmp_path / "nowhere")
    assert code == exits.USAGE
    assert words in err
    assert len(err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["enhance", "plan", "status"])
def test_a_store_that_does_not_answer_is_one_line_and_exit_6(
    tmp_path, monkeypatch, capsys, command
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    code, err = doodl_batch_here(monkeypatch, capsys, command, "s3://bucket/photos")
    assert code == exits.ENVIRONMENT
    assert "127.0.0.1" in err
    assert len(err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["score", "report", "run"])
def test_an_object_store_is_refused_where_only_files_will_do(
    tmp_path, monkeypatch, capsys, command
):
    monkeypatch.chdir(tmp_path)
    code, err = doodl_batch_here(monkeypatch, capsys, command, "s3://bucket/photos")
    assert code == exits.USAGE
    assert err.startswith("error: s3://bucket/photos is not on a local or mounted file system")
    assert list(tmp_path.iterdir()) == []


def test_a_file_uri_is_a_path(tmp_path, monkeypatch, capsys):
    photos = collection(tmp_path / "my photos", 2)
    code, _ = doodl_batch_here(monkeypatch, capsys, "manifest", "check", photos.as_uri())
    assert code == exits.OK


def test_a_path_with_dots_gives_the_output_folder_its_own_name(tmp_path, monkeypatch, capsys):
    photos = collection(tmp_path / "photos", 2)
    monkeypatch.chdir(photos / "sub")
    monkeypatch.setattr(sys, "argv", ["doodl-batch", "plan", "..", "--probe", "0", "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == exits.OK
    assert json.loads(capsys.readouterr().out)["out"] == f"{photos}-doodl"


def test_an_out_that_is_a_file_is_refused(tmp_path, monkeypatch, capsys):
    photos = collection(tmp_path / "photos", 1)
    (tmp_path / "out").write_text("mine")
    code, err = doodl_batch_here(monkeypatch, capsys, "enhance", photos, "--out", tmp_path / "out")
    assert (code, "is a file" in err) == (exits.USAGE, True)


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("s3:///x", "names no valid bucket"),
        ("gs:///x/y", "names no valid bucket"),
        ("s3://b b/x", "names no valid bucket"),
        ("gopher://x/y", "no storage known by gopher://"),
        ("local:///x", "local:// names no storage"),
        ("simplecache::file:///x", "chained by ::"),
        ("memory://x::/x", "chained by ::"),
        ("file://host/x", "names a machine"),
        ("file:///x%00y", "NUL character"),
        ("x\0y", "NUL character"),
        ("photos/p000.jpg/x", "p000.jpg is a file"),
        ("photos/p000.jpg/x/y/z", "p000.jpg is a file"),
        ("/dev/null/x", "/dev/null is a file"),
        ("a" * 300, "File name too long"),
        ("d/" * 2500 + "x", "File name too long"),
    ],
)  # fmt: skip
def test_an_out_that_cannot_be_is_one_line_and_exit_2(tmp_path, monkeypatch, capsys, out, words):
    monkeypatch.chdir(tmp_path)
    photos = collection(tmp_path / "photos", 1)
    for command in ("enhance", "plan"):
        code, err = doodl_batch_here(monkeypatch, capsys, command, photos, "--out", out)
        assert (code, words in err) == (exits.USAGE, True), err
        assert len(err.strip().splitlines()) == 1
        assert len(err) < 500
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_a_fault_of_ours_is_exit_1_with_the_way_to_its_traceback(tmp_path, monkeypatch, capsys):
    def broken(*arguments, **options):
        raise ValueError("shapes (3, 4) and (5,) differ")

    monkeypatch.setattr("jobs.enhance.run_job", broken)
    photos = collection(tmp_path / "photos", 1)
    code, err = doodl_batch_here(monkeypatch, capsys, "enhance", photos)
    assert code == exits.INTERNAL
    assert "error: ValueError: shapes" in err
    assert "--debug" in err


def test_options_of_the_run_reach_its_spec(tmp_path, monkeypatch, capsys):
    seen = []

    def stop(spec, choice, observer):
        seen.append(spec)
        raise KeyboardInterrupt

    monkeypatch.setattr("jobs.enhance.run_job", stop)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    photos = collection(tmp_path / "photos", 1)
    options = ["--breaker", 3, "--grace", 4.5, "--max-attempts", 5, "--max-pixels", 600]
    options += ["--runner", "local", "--max-workers", 3, "--resources", '{"a100": 0.5}']
    options += ["--gpus-per-worker", 0.25, "--cpus-per-worker", 2]
    code, err = doodl_batch_here(monkeypatch, capsys, "enhance", photos, *options, "--target", 7)
    assert code == exits.SIGINT
    (spec,) = seen
    assert (spec.breaker, spec.grace_seconds, spec.max_attempts, spec.max_pixels) == (
        3,
        4.5,
        5,
        600,
    )
    assert (spec.direction, spec.target) == ("target", 7.0)
    assert (spec.num_workers, spec.resources) == (3, {"a100": 0.5})
    assert (spec.gpus_per_worker, spec.cpus_per_worker) == (0.25, 2.0)
    assert "RAY_ADDRESS is set and not used" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--direction", "sideways"], "must be one of up, down, target"),
        (["--set", "nonsense=1"], "config has no 'nonsense'"),
        (["--strength", "3"], "strength (=3.0) must be in [0, 1]"),
        (["--since", "yesterdayish"], "since (='yesterdayish')"),
        (["--since", "99999999999d"], "out of range"),
        (["--direction", "up", "--target", "7"], "direction='up' with target=7.0"),
        (["--max-pixels", "0"], "max_pixels (=0) must be at least 1"),
        (["--set", "crops"], "--set 'crops' must be NAME=VALUE"),
        (["--model", "/no/such/folder"], "/no/such/folder"),
        (["--preset", "grand"], "preset (='grand') must be one of"),
        (["--runner", "spark"], "--runner 'spark' must be one of auto, local, submit, inline"),
        (["--runner", "submit"], "needs a cluster: give --address or RAY_ADDRESS"),
        (["--runner", "local", "--address", "h:1"], "--address goes with --runner submit"),
        (["--detach"], "--detach needs a cluster"),
        (["--address", "ray://h:10001"], "takes no jobs; give the dashboard's"),
        (["--address", "http://me:secret@h:1"], "must hold no user, password or query"),
        (["--resources", "a100"], "--resources 'a100' must be JSON"),
        (["--resources", '{"GPU": 1}'], "CPUs and GPUs have their own options"),
        (["--gpus-per-worker", "1.5"], "gpus_per_worker (=1.5) must be above 0 and at most 1"),
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


def test_manifest_check_names_the_rows_that_could_not_run(tmp_path, monkeypatch, capsys):
    photos = collection(tmp_path / "photos", 2)
    path = tmp_path / "m.jsonl"
    rows = [
        {"row_id": "good", "direction": "down", "strength": 0.5},
        {"row_id": "sideways", "direction": "sideways"},
        {"row_id": "strong", "strength": 5.0},
        {"row_id": "aimless", "direction": "target"},
    ]
    lines = [json.dumps({"image_uri": str(photos / "p000.jpg"), **row}) for row in rows]
    path.write_text("\n".join(lines))
    monkeypatch.setattr(sys, "argv", ["doodl-batch", "manifest", "check", str(path), "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == exits.ROWS_FAILED
    checked = json.loads(capsys.readouterr().out)
    assert checked["rows"] == 4
    invalid = {row["row_id"]: row["error"] for row in checked["invalid"]}
    assert invalid.keys() == {"sideways", "strong", "aimless"}
    assert "direction" in invalid["sideways"]
    assert "strength" in invalid["strong"]


def test_score_prints_both_scores(tmp_path):
    photos = collection(tmp_path / "photos", 1)
    (photos / "bad.jpg").write_bytes(b"x")
    result = doodl_batch("score", photos, "--json")
    scored = {row["row_id"]: row for row in json.loads(result.stdout)}
    assert result.returncode == exits.ROWS_FAILED
    assert scored["bad.jpg"]["error"]
    assert isinstance(scored["p000.jpg"]["guide_score"], float)
    assert isinstance(scored["p000.jpg"]["judge_score"], float)


def test_an_address_that_cannot_be_read_costs_score_its_row_alone(tmp_path):
    photos = collection(tmp_path / "photos", 1)
    path = tmp_path / "m.csv"
    path.write_text(
        "row_id,image_uri\nazure,abfs://c@nobody.dfs.core.windows.net/x.jpg\n"
        "kernel,/proc/version\nlocal,local:///etc/hosts\ngood,photos/p000.jpg\n"
    )
    result = doodl_batch("score", path, "--json")
    assert result.returncode == exits.ROWS_FAILED, result.stderr
    errors = {row["row_id"]: row["error"] for row in json.loads(result.stdout)}
    assert errors.pop("good") is None
    assert photos.is_dir()
    assert all(errors.values())
    assert "the file is empty" in errors["kernel"]
