"""What travels to a cluster: the wheel, the environment, and the lines of shell that start it."""

import importlib.metadata
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pipeline.entrypoint import entrypoint, probe_command
from pipeline.shared import MissingPathError, check_shared, parse_problem
from pipeline.shipping import PACKAGES, build_wheel, read_runtime_env, runtime_env

RAY = importlib.metadata.version("ray")


def sh(command, **environment):
    return subprocess.run(
        ["sh", "-c", command],
        capture_output=True, text=True, timeout=60, env={**os.environ, **environment}, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel, installed by pip as Ray installs it, in a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    wheel = build_wheel(folder)
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-compile"]
    subprocess.run([*command, "--target", folder / "site", wheel], check=True, capture_output=True)
    return folder / "site"


def test_the_wheel_installs_without_an_index_and_runs(installed, tmp_path):
    code = (
        "import doodl, jobs.cli, manifests, pipeline, importlib.metadata as m; "
        "print(jobs.cli.__file__, m.version('doodl-batch'))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    where, version = ran.stdout.split()
    assert Path(where) == installed / "jobs" / "cli.py"
    assert version == importlib.import_module("doodl").__version__


def test_the_wheel_holds_the_weights_and_templates_and_nothing_compiled(installed):
    names = {p.relative_to(installed).as_posix() for p in installed.rglob("*") if p.is_file()}
    assert "doodl/pocket/weights/pipeline/unet/diffusion_pytorch_model.safetensors" in names
    assert any(name.endswith(".jinja") for name in names)
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == set(PACKAGES)


def test_equal_code_gives_the_same_wheel_and_other_code_another_name(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = build_wheel(tmp_path / "a"), build_wheel(tmp_path / "b")
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()
    assert not any("__pycache__" in name for name in zipfile.ZipFile(first).namelist())
    monkeypatch.setattr("pipeline.shipping.PACKAGES", ("manifests", "pipeline"))
    assert build_wheel(tmp_path / "b").name != first.name


def test_the_environment_carries_what_is_listed_and_no_token(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", "/models")
    for name in ("HF_TOKEN", "RAY_AUTH_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "s3cret")
    made = runtime_env({}, tmp_path, tmp_path / "a.whl", 90)
    assert made["env_vars"]["HF_HOME"] == "/models"
    assert made["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == "90"
    assert made["py_modules"] == [str(tmp_path / "a.whl")]
    assert "s3cret" not in str(made)


def test_the_users_environment_is_merged_and_its_values_win(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", "/models")
    path = tmp_path / "env.yaml"
    path.write_text("pip: [pillow-heif]\nenv_vars: {HF_HOME: /other}\npy_modules: [gs://b/m.zip]\n")
    made = runtime_env(read_runtime_env(path), tmp_path, tmp_path / "a.whl", 90)
    assert made["pip"] == ["pillow-heif"]
    assert made["env_vars"]["HF_HOME"] == "/other"
    assert made["py_modules"] == [str(tmp_path / "a.whl"), "gs://b/m.zip"]
    assert "py_modules" not in runtime_env({}, tmp_path, None, 90)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("e.json", "{", "is not JSON"),
        ("e.yaml", "a: [", "is not YAML"),
        ("e.yaml", "!!python/object/apply:os.system ['touch pwned']", "is not YAML"),
        ("e.yaml", "- pip", "must hold names and values"),
        ("e.json", '{"working_dir": "."}', "sets working_dir"),
        ("e.json", '{"env_vars": {"N": 1}}', "quote numbers"),
        ("e.json", " " * (2**20 + 1), "larger than"),
    ],
)
def test_files_that_are_no_environment_are_refused_by_name(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        read_runtime_env(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_the_entrypoint_takes_the_interpreter_that_has_rays_version(tmp_path):
    wrong = tmp_path / "python"
    wrong.write_text("#!/bin/sh\nexit 1\n")
    wrong.chmod(0o755)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "__init__.py").touch()
    (tmp_path / "jobs" / "cli.py").write_text("import sys; print(sys.executable, sys.argv[1:])")
    candidates = [str(tmp_path / "absent"), str(wrong), f"'{sys.executable}'"]
    command = entrypoint(["a file's spec", "--limit=3"], candidates, RAY, in_image=False)
    ran = sh(f"cd '{tmp_path}'; {command}", PYTHONPATH=str(tmp_path))
    assert ran.stdout.strip() == f"{sys.executable} ['run', \"a file's spec\", '--limit=3']"


@pytest.mark.parametrize(("ray", "in_image"), [("2.9.3", False), (RAY, True)])
def test_without_a_right_interpreter_the_entrypoint_says_what_lacks(ray, in_image, monkeypatch):
    monkeypatch.setattr("pipeline.entrypoint.version", lambda: "99.0")
    ran = sh(entrypoint(["spec"], [f"'{sys.executable}'"], ray, in_image=in_image))
    assert ran.returncode == 6
    assert f"with ray {ray}" in ran.stdout
    assert ("doodl-batch 99.0" in ran.stdout) == in_image


@pytest.mark.parametrize(
    "name", ["plain", "with space", "it's", 'say "so"', "$HOME `id` %s \\n", "two\nlines", "ü"]
)
def test_the_probe_names_the_missing_path_whatever_its_characters(tmp_path, name):
    path = str(tmp_path / name)
    missing = sh(probe_command([str(tmp_path), path]))
    assert missing.returncode == 6
    said = parse_problem(missing.stdout)
    assert said.path == path
    assert said.node == os.uname().nodename
    Path(path).mkdir()
    assert sh(probe_command([str(tmp_path), path])).returncode == 0


def test_a_problem_is_read_from_logs_around_it_and_from_nothing_else(tmp_path):
    with pytest.raises(MissingPathError) as caught:
        check_shared([str(tmp_path), str(tmp_path / "gone")])
    logs = f"starting\n{caught.value.problem_line()}\nerror: …\n"
    assert str(parse_problem(logs)) == str(caught.value)
    assert "\n" not in str(caught.value)
    for text in ("", "doodl-batch-problem: {", "doodl-batch-problem: []", "all is well"):
        assert parse_problem(text) is None
