"""Where a run goes by `--runner`, `--address` and RAY_ADDRESS: never silently elsewhere."""

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import exits
from jobs.cli import app, main
from jobs.doctor import show_checks
from jobs.submit import Where, find_place, run_arguments
from jobs.submitted import JobLines
from manifests.storage import open_storage
from manifests.submissions import Submission, submission_name, write_submission
from pipeline.plan import RunChoice
from pipeline.preflight import ClusterError
from pipeline.shared import parse_problem
from pipeline.spec import make_spec
from tests.clusters import free_ports
from tests.dashboards import fake_dashboard
from tests.photos import collection

RAY = importlib.metadata.version("ray")
PYTHON = sys.version.split()[0]


@pytest.fixture(autouse=True)
def no_ray_settings(tmp_path, monkeypatch):
    for name in [n for n in os.environ if n.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "no-token"))


def doodl_batch_here(monkeypatch, capsys, *arguments):
    """Run the command in this process; return (exit code, stdout, stderr)."""
    monkeypatch.setattr(sys, "argv", ["doodl-batch", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


def test_auto_without_an_address_is_a_private_ray_and_says_why():
    place = find_place(Where())
    assert place.runner == "local"
    assert "private Ray on this machine: neither --address nor RAY_ADDRESS" in place.why


def test_auto_submits_to_the_ray_address_that_answers_and_address_wins(monkeypatch):
    with fake_dashboard(RAY, PYTHON) as (url, _), fake_dashboard(RAY, PYTHON) as (other, _):
        monkeypatch.setenv("RAY_ADDRESS", url)
        place = find_place(Where())
        assert (place.runner, place.cluster.url) == ("submit", url)
        assert place.why.endswith(f"cluster at {url} (RAY_ADDRESS)")
        explicit = find_place(Where(address=other))
        assert explicit.cluster.url == other
        assert "--address" in explicit.why
        local = find_place(Where("local"))
        assert "RAY_ADDRESS is set and not used" in local.why


@pytest.mark.parametrize("runner", ["auto", "submit"])
def test_a_dead_or_meaningless_ray_address_is_never_passed_over(monkeypatch, runner):
    for address in (f"127.0.0.1:{free_ports(1)[0]}", "ray://h:10001", "nonsense"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(ClusterError):
            find_place(Where(runner))


def test_ray_address_local_is_a_private_ray(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert find_place(Where()).runner == "local"
    with pytest.raises(exits.UsageError):
        find_place(Where("submit"))


def test_inside_a_ray_job_the_jobs_own_cluster_is_used(monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert find_place(Where()).runner == "cluster"
    assert find_place(Where("inline")).runner == "inline"
    assert find_place(Where(), spec_runner="inline").runner == "inline"


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        ("dead", "no Ray cluster answers at"),
        ("token", "asks for a token"),
        ("version", "runs Ray 2.9.3"),
        ("python", "runs Python 3.9.18"),
    ],
)
def test_a_cluster_that_cannot_be_used_is_one_line_exit_6_and_named_by_doctor(
    tmp_path, monkeypatch, capsys, problem, words
):
    photos = collection(tmp_path / "photos", 1)
    answers = {
        "token": {"ray_version": RAY, "token": "s3cret"},
        "version": {"ray_version": "2.9.3"},
        "python": {"ray_version": RAY, "python_version": "3.9.18"},
    }
    with fake_dashboard(**answers.get(problem, {"ray_version": RAY})) as (url, _):
        if problem == "dead":
            url = f"http://127.0.0.1:{free_ports(1)[0]}"
        monkeypatch.setenv("RAY_ADDRESS", url)
        code, out, err = doodl_batch_here(monkeypatch, capsys, "enhance", photos)
        show_checks(None, None, as_json=True)
    assert (code, out) == (exits.ENVIRONMENT, "")
    assert len(err.strip().splitlines()) == 1
    assert words in err
    assert [p.name for p in tmp_path.iterdir()] == ["photos"]
    checks = [c for c in json.loads(capsys.readouterr().out) if c["name"].startswith("cluster")]
    assert [c["state"] for c in checks] == ["bad"]
    assert words in checks[0]["advice"]


def test_a_jobs_first_act_is_to_look_for_its_paths(tmp_path, monkeypatch, capsys):
    photos = collection(tmp_path / "photos", 1)
    spec = make_spec(photos, editor="tests.fakes:load_editor")
    path = tmp_path / "spec.json"
    path.write_text(spec.to_json())
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    photos.rename(tmp_path / "elsewhere")
    for missing, arguments in ((photos, path), (tmp_path / "no.json", tmp_path / "no.json")):
        code, out, err = doodl_batch_here(monkeypatch, capsys, "run", arguments)
        assert code == exits.ENVIRONMENT
        assert parse_problem(out).path == str(missing)
        assert f"{missing} does not exist on the cluster's node" in err
        assert len(err.strip().splitlines()) == 1
    assert not Path(spec.out).exists()


def test_the_choice_of_rows_survives_the_way_into_the_job():
    choice = RunChoice(
        redo=True, only_failed=True, since="7d", limit=3, max_gpu_hours=0.5, if_running="wait"
    )
    arguments = run_arguments(choice, report=False)
    seen = []

    def run_spec_file(path, choice, where, *, report, on_finish, as_json):
        seen.append((RunChoice(**choice), report))
        return 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jobs.enhance.run_spec_file", run_spec_file)
        app(["run", "spec.json", *arguments], standalone_mode=False)
    assert seen == [(choice, False)]


def test_rays_lines_before_the_programs_own_are_left_out():
    shown = []
    lines = JobLines(shown.append)
    for chunk in (
        "2026 INFO job_manager.py:581 -- Runtime env is set", "ting up.\n2026 INFO job_manager",
        ".py:581 -- Runtime env is setting up.\nRunning entrypoint for job x: for python\nfirst",
        "\nRunning entrypoint for job y\n", "last",
    ):  # fmt: skip
        lines(chunk)
    lines.end()
    assert shown[-3:] == ["first", "Running entrypoint for job y", "last"]
    assert not any("entrypoint for job x" in line for line in shown)


def finished_folder(tmp_path, url):
    """An output folder with a finished run, and the record of a submission to `url`."""
    photos = collection(tmp_path / "photos", 2)
    spec = make_spec(photos, runner="inline", editor="tests.fakes:load_editor")
    from pipeline.run import run_job

    assert run_job(spec).exit_code == 0
    record = Submission(
        f"{submission_name(spec.out, 'f')}-1", url, url, "session_1", "2026-11-01", ["spec"]
    )
    write_submission(open_storage(spec.out), record, spec.to_json())
    return spec.out


def test_status_works_with_no_cluster_and_logs_and_stop_say_there_is_none(
    tmp_path, monkeypatch, capsys
):
    out = finished_folder(tmp_path, f"http://127.0.0.1:{free_ports(1)[0]}")
    code, said, _ = doodl_batch_here(monkeypatch, capsys, "status", out)
    assert code == exits.OK
    assert "no Ray cluster answers" in said
    assert "ok         2" in said
    code, said, _ = doodl_batch_here(monkeypatch, capsys, "status", out, "--json")
    submission = json.loads(said)["submission"]
    assert (submission["attempt"], submission["ray_status"]) == (1, None)
    for command in ("logs", "stop"):
        code, _, err = doodl_batch_here(monkeypatch, capsys, command, out)
        assert (code, "no Ray cluster answers" in err) == (exits.ENVIRONMENT, True)


def test_status_shows_no_token_to_a_cluster_that_only_a_record_names(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "s3cret")
    with fake_dashboard(RAY, token="s3cret") as (url, seen):
        out = finished_folder(tmp_path, url)
        code, said, _ = doodl_batch_here(monkeypatch, capsys, "status", out)
    assert code == exits.OK
    assert "--address or RAY_ADDRESS" in said
    assert {header for _, header in seen} == {None}


def test_logs_and_stop_of_a_folder_that_was_never_submitted(tmp_path, monkeypatch, capsys):
    code, _, err = doodl_batch_here(monkeypatch, capsys, "logs", tmp_path)
    assert (code, "no job was submitted" in err) == (exits.USAGE, True)
    code, _, err = doodl_batch_here(monkeypatch, capsys, "stop", tmp_path)
    assert (code, "no run is at work" in err) == (exits.OK, True)


def test_stop_ends_a_local_run_in_order(tmp_path):
    photos = collection(tmp_path / "photos", 40)
    spec = make_spec(photos, runner="inline", editor="tests.fakes:load_editor")
    path = tmp_path / "spec.json"
    path.write_text(spec.to_json())
    command = [Path(sys.executable).parent / "doodl-batch"]
    process = subprocess.Popen(
        [*command, "run", path], env={**os.environ, "DOODL_TEST_SECONDS": "0.5"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        for line in process.stdout:
            if line.startswith("loading model"):
                break
        stopped = subprocess.run(
            [*command, "stop", spec.out, "--json"], capture_output=True, text=True, timeout=120
        )
        assert stopped.returncode == 0, stopped.stderr
        said = json.loads(stopped.stdout)
        assert said["stopped"]["pid"] == process.pid
        assert said["counts"]["pending"] > 0
        assert process.wait(60) == 128 + signal.SIGTERM
    finally:
        process.kill()


def test_stop_signals_no_process_that_is_not_ours(tmp_path, monkeypatch, capsys):
    out = finished_folder(tmp_path, "auto")
    for record in (tmp_path / "photos-doodl/_state/submissions").iterdir():
        record.unlink()
    other = subprocess.Popen(["sleep", "60"])
    try:
        note = {"pid": other.pid, "host": os.uname().nodename, "started_at": "2026-11-01"}
        (tmp_path / "photos-doodl/_state/driver.json").write_text(json.dumps(note))
        code, _, err = doodl_batch_here(monkeypatch, capsys, "stop", out)
        assert (code, "not plainly a run of doodl-batch" in err) == (exits.USAGE, True)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
