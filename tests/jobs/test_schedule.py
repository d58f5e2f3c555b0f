"""`schedule add`, `list`, `remove` on a stand-in crontab; the real one is test_cron_daemon's."""

import json
import os
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobs import exits
from jobs.cli import main
from jobs.schedule import cron, entries
from pipeline.errors import UnusableEnvironmentError
from pipeline.run import run_job
from tests.jobs.standins import RECORDER, crontab_program, install
from tests.photos import collection
from tests.pipeline.conftest import spec_of


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A user with a folder of settings and a crontab, neither of them ours."""
    programs, settings = tmp_path / "bin", tmp_path / "settings"
    crontab = tmp_path / "crontab"
    crontab_program(programs, crontab)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(settings))
    for name in ("HF_TOKEN", "RAY_AUTH_TOKEN", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    collection(tmp_path / "photos", 1)
    return crontab


@pytest.fixture
def doodl_batch(monkeypatch, capsys):
    """Run the command in this process: (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["doodl-batch", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return run


FOREIGN = [
    b"",
    b"# m h dom mon dow command\n\n  0 1 * * *\ttrue %x \n\n"
    b"SHELL=/bin/fish\r\n1 2 * * * caf\xe9 \xff # doodl-batch schedule\n",
    b"#0 2 * * * old # doodl-batch schedule photos-doodl\n"
    b"0 2 * * * x # doodl-batch schedule photos-doodl-2\n",
]


@pytest.mark.parametrize("foreign", FOREIGN)
def test_foreign_lines_stay_byte_for_byte(machine, doodl_batch, foreign):
    if foreign:
        machine.write_bytes(foreign)
    code, _, err = doodl_batch("schedule", "add", "0 2 * * *", "--", "photos")
    assert code == 0, err
    assert machine.read_bytes().endswith(foreign)
    assert len(machine.read_bytes().splitlines()) == len(foreign.splitlines()) + 1
    code, _, err = doodl_batch("schedule", "remove", "photos-doodl")
    assert code == 0, err
    assert (machine.read_bytes() if machine.exists() else b"") == foreign
    assert not list(Path(os.environ["XDG_CONFIG_HOME"]).rglob("photos-doodl.*"))


def test_a_last_line_without_its_newline_is_not_given_one(machine):
    foreign = b"0 1 * * * true"
    assert cron._without(b"* * * * * x # doodl-batch schedule a\n" + foreign, "a") == foreign


def test_schedules_added_at_the_same_time_all_arrive(machine, tmp_path):
    crontab_program(tmp_path / "bin", machine, seconds=0.1)
    names = [f"night-{i}" for i in range(6)]
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda n: cron.add_line(n, cron.cron_line(n, "0 2 * * *", "/x")), names))
    assert sorted(cron.lines_by_name()) == names


def test_another_programs_edit_in_between_is_noticed(machine, monkeypatch):
    real = cron.read_crontab
    answers = iter([real, real, lambda: b"0 1 * * * theirs\n"])
    monkeypatch.setattr(cron, "read_crontab", lambda: next(answers)())
    cron.read_crontab()
    with pytest.raises(UnusableEnvironmentError, match="another program"):
        cron.add_line("a", cron.cron_line("a", "0 2 * * *", "/x"))


def test_a_line_escapes_what_cron_and_the_shell_would_read(machine):
    line = cron.cron_line("a", "0 2 * * *", "/home/o'neill/100% $HOME/a.sh")
    command = line.removeprefix("0 2 * * * ").rstrip("\n").replace("\\%", "%")
    shown = command.replace("/bin/sh", "printf %s")
    assert "%" not in line.replace("\\%", "")
    done = subprocess.run(["/bin/sh", "-c", shown], capture_output=True, text=True, check=True)
    assert done.stdout == "/home/o'neill/100% $HOME/a.sh"


def test_the_command_is_captured_absolutely_and_runs_in_an_empty_environment(
    machine, doodl_batch, tmp_path, monkeypatch
):
    log = tmp_path / "recorded"
    recorder = install(tmp_path / "venv", "python", RECORDER.format(log=log, code=3))
    monkeypatch.setattr(sys, "executable", str(recorder))
    monkeypatch.setenv("HF_HOME", "/models/it's here")
    monkeypatch.setenv("MY_SETTING", "7")
    tokens = tmp_path / "tokens"
    tokens.write_text("HF_TOKEN=hf_secretsecret\n")
    tokens.chmod(0o600)
    code, out, err = doodl_batch(
        "schedule", "add", "0 2 * * *", "--env", "MY_SETTING", "--env-file", "tokens", "--",
        "photos", "--direction", "down", "--set", "num_crops=1", "--set", "working_px=128",
        "--no-report", "--on-finish", "https://example.org/hook?token=abc",
    )  # fmt: skip
    assert code == 0, err
    assert "token=abc" not in out + err
    assert "abc" not in machine.read_text()
    assert "hf_secretsecret" not in "".join(
        p.read_text() for p in (tmp_path / "settings").rglob("*") if p.is_file()
    )
    script = entries.script_path("photos-doodl")
    for path in (script, script.with_suffix(".json")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    done = subprocess.run(["/bin/sh", script], env={}, cwd="/", capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (3, b"")
    arguments, environment = log.read_text().split("---\n")
    assert arguments.splitlines() == [
        "-P", "-m", "jobs.cli", "enhance", f"--out={tmp_path}/photos-doodl", "--direction=down",
        "--set=num_crops=1", "--set=working_px=128", "--no-report",
        "--on-finish=https://example.org/hook?token=abc", f"{tmp_path}/photos",
        "--if-running=skip",
    ]  # fmt: skip
    for line in ("HF_HOME=/models/it's here", "MY_SETTING=7", "HF_TOKEN=hf_secretsecret"):
        assert line in environment.splitlines()
    text = (tmp_path / "photos-doodl/_state/logs/schedule-photos-doodl.log").read_text()
    first, second, third = text.splitlines()
    assert first.startswith("--- ")
    assert second == "computed"
    assert third.endswith("ended, exit 3")
    listed = json.loads(doodl_batch("schedule", "list", "--json")[1])
    assert (listed[0]["last_exit"], listed[0]["installed"], len(listed[0]["next"])) == (3, True, 3)


def test_a_long_log_is_rotated_and_an_absent_disk_is_not_written_below(
    machine, doodl_batch, tmp_path, monkeypatch
):
    recorder = install(tmp_path / "venv", "python", RECORDER.format(log=tmp_path / "r", code=0))
    monkeypatch.setattr(sys, "executable", str(recorder))
    monkeypatch.setattr(entries, "_MAX_LOG_BYTES", 50)
    assert doodl_batch("schedule", "add", "@daily", "--name", "n", "--", "photos")[0] == 0
    script, out = entries.script_path("n"), tmp_path / "photos-doodl"
    logs = out / "_state" / "logs"
    for _ in range(9):
        subprocess.run(["/bin/sh", script], env={}, check=True)
    kept = sorted(path.name for path in logs.iterdir())
    assert kept == ["schedule-n.log", *(f"schedule-n.log.{i}" for i in range(1, 6))]
    assert all(path.stat().st_size < 400 for path in logs.iterdir())
    shutil.rmtree(out)
    (tmp_path / "photos").rename(tmp_path / "unplugged")
    done = subprocess.run(["/bin/sh", script], env={}, check=True, capture_output=True, text=True)
    assert "computed" in done.stdout  # cron mails it
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "words", "said"),
    [
        (["0 2 * *"], ["photos"], "five fields"),
        (["0 2 * * *"], ["nowhere"], "does not exist"),
        (["0 2 * * *"], ["photos", "--presett", "x"], "--presett"),
        (["0 2 * * *"], ["photos", "--preset", "x"], "preset (='x')"),
        (["0 2 * * *"], ["photos", "--strength", "high"], "--strength"),
        (["0 2 * * *"], ["photos", "--redo"], "--redo would compute everything again"),
        (["0 2 * * *"], ["photos", "--on-finish", "ftp://x/y"], "--on-finish"),
        (["0 2 * * *", "--name", "../x"], ["photos"], "--name"),
        (["0 2 * * *", "--env", "HF_TOKEN"], ["photos"], "secrets are not written"),
        (["0 2 * * *", "--env", "AWS_SECRET_ACCESS_KEY=x"], ["photos"], "secrets are not"),
        (["0 2 * * *", "--env", "UNSET_HERE"], ["photos"], "is not set here"),
        (["0 2 * * *", "--env-file", "open"], ["photos"], "chmod 600"),
        (["0 2 * * *", "--env-file", "nowhere"], ["photos"], "cannot be read"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_installs_nothing(
    machine, doodl_batch, tmp_path, options, words, said
):
    (tmp_path / "open").write_text("HF_TOKEN=x\n")
    (tmp_path / "open").chmod(0o644)
    code, _, err = doodl_batch("schedule", "add", *options, "--", *words)
    assert code == exits.USAGE
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert not machine.exists()
    assert not list((tmp_path / "settings").rglob("*.sh"))
    assert not (tmp_path / "photos-doodl").exists()


def test_a_schedule_with_other_options_than_the_folders_job_is_refused(machine, doodl_batch):
    run_job(spec_of("photos"))
    code, _, err = doodl_batch("schedule", "add", "@daily", "--", "photos", "--direction", "down")
    assert (code, "direction: 'up' → 'down'" in err) == (exits.USAGE, True)
    assert not machine.exists()


def test_without_cron_it_is_exit_6(machine, doodl_batch, tmp_path):
    (tmp_path / "bin" / "crontab").unlink()
    if shutil.which("crontab") is not None:
        os.environ["PATH"] = str(tmp_path / "bin")  # the fixture's monkeypatch puts it back
    code, _, err = doodl_batch("schedule", "add", "@daily", "--", "photos")
    assert code == exits.ENVIRONMENT
    assert "there is no cron here" in err
    assert len(err.strip().splitlines()) == 1


def test_a_name_is_taken_once_and_an_entry_cron_refuses_leaves_nothing(
    machine, doodl_batch, tmp_path, monkeypatch
):
    assert doodl_batch("schedule", "add", "@daily", "--", "photos")[0] == 0
    before = machine.read_bytes()
    code, _, err = doodl_batch("schedule", "add", "@hourly", "--", "photos")
    assert (code, "already" in err, machine.read_bytes()) == (exits.USAGE, True, before)
    monkeypatch.setattr(cron, "cron_line", lambda n, e, s: f"99 {s} # doodl-batch schedule {n}\n")
    code, _, err = doodl_batch("schedule", "add", "@daily", "--name", "other", "--", "photos")
    assert (code, "bad minute" in err, machine.read_bytes()) == (exits.USAGE, True, before)
    assert not entries.script_path("other").exists()
    assert doodl_batch("schedule", "remove", "other")[0] == exits.USAGE


def test_tokens_of_the_environment_are_left_out_and_said(
    machine, doodl_batch, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", "hf_verysecrettoken")
    monkeypatch.setenv("https_proxy", "http://me:word@proxy:3128")
    code, out, err = doodl_batch("schedule", "add", "@daily", "--", "photos")
    assert code == 0
    assert "HF_TOKEN is set here and not written" in err
    assert "https_proxy is left out" in err
    files = [p.read_text() for p in (tmp_path / "settings").rglob("*") if p.is_file()]
    for text in (*files, out, err, machine.read_text()):
        assert "hf_verysecrettoken" not in text
        assert "me:word" not in text


def test_an_entry_that_went_missing_is_said_and_can_be_removed(machine, doodl_batch):
    doodl_batch("schedule", "add", "@daily", "--", "photos")
    machine.unlink()
    code, out, _ = doodl_batch("schedule", "list")
    assert (code, "MISSING" in out) == (0, True)
    assert doodl_batch("schedule", "remove", "photos-doodl")[0] == 0
    assert doodl_batch("schedule", "list", "--json")[1].strip() == "[]"


def test_systemd_units_are_written_verified_and_removed(machine, doodl_batch, tmp_path):
    units = tmp_path / "settings" / "systemd" / "user"
    code, _, err = doodl_batch("schedule", "add", "30 2 * * 1-5", "--systemd", "--", "photos")
    assert code == 0, err
    assert sorted(p.name for p in units.iterdir()) == [
        "doodl-batch-photos-doodl.service", "doodl-batch-photos-doodl.timer",
    ]  # fmt: skip
    # Either it was enabled, or the line says what to run.
    assert "enable-linger" in err or "systemctl --user enable --now" in err
    assert not machine.exists()
    if shutil.which("systemd-analyze"):
        done = subprocess.run(
            ["systemd-analyze", "verify", "--user", *units.iterdir()],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "doodl-batch" not in done.stderr
    listed = json.loads(doodl_batch("schedule", "list", "--json")[1])
    assert [(row["kind"], row["installed"]) for row in listed] == [("systemd", True)]
    assert doodl_batch("schedule", "remove", "photos-doodl")[0] == 0
    assert list(units.iterdir()) == []
