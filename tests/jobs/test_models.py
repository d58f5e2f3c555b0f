"""`models list`, `pull` and `check`, against a hub on this machine and its real client."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from doodl.models.hub import KNOWN
from jobs import exits
from jobs.cli import main
from tests.doodl.tiny_models import make_folder
from tests.hub_server import COMMIT, REPOSITORY, hub_serving

DOODL_BATCH = Path(sys.executable).parent / "doodl-batch"
# What a repository holds besides, and loading does not need.
OTHERS = {
    "unet/diffusion_pytorch_model.bin": b"a pickle",
    "unet/diffusion_pytorch_model.fp16.safetensors": b"half",
    "v1-5-pruned.safetensors": b"the whole once more",
    "unet/evil.py": b"print('ran')",
    "../outside.json": b"{}",
    "unet/../../outside.json": b"{}",
    "LICENSE": b"terms",
    "README.md": b"card",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("published"), "sd1")


@pytest.fixture
def doodl_batch(tmp_path):
    def run(*arguments, timeout=240, stdin=subprocess.DEVNULL, **environment):
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        return subprocess.run(
            [DOODL_BATCH, *map(str, arguments)],
            capture_output=True, text=True, timeout=timeout, check=False, stdin=stdin,
            env={**inherited, "HF_HOME": str(tmp_path / "hf"), **environment},
        )  # fmt: skip

    return run


@pytest.fixture
def doodl_batch_here(monkeypatch, capsys, tmp_path):
    """Run the command in this process, which is quicker."""

    def run(*arguments, endpoint="http://127.0.0.1:9", **environment):
        for name, value in {"HF_HOME": str(tmp_path / "hf"), **environment}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("HF_HUB_CACHE", raising=False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        monkeypatch.setattr(sys, "argv", ["doodl-batch", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    return run


def files_below(path):
    return {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()}


def test_pull_shows_asks_downloads_what_is_needed_and_it_loads(
    doodl_batch, doodl_batch_here, folder, tmp_path
):
    with hub_serving(folder, extra=OTHERS) as (address, requested):
        pull = ["models", "pull", REPOSITORY]
        asked = doodl_batch(*pull, HF_ENDPOINT=address)
        assert asked.returncode == exits.USAGE
        assert "--yes" in asked.stderr
        assert "creativeml-openrail-m" in asked.stdout
        assert COMMIT in asked.stdout
        assert not any("resolve" in line for line in requested)  # nothing before the answer

        pulled = doodl_batch(*pull, "--yes", HF_ENDPOINT=address)
        assert pulled.returncode == exits.OK, pulled.stderr
    snapshot = next((tmp_path / "hf" / "hub").glob("models--*/snapshots/*"))
    assert snapshot.name == COMMIT
    assert f"pulled: {snapshot}" in pulled.stdout
    assert files_below(snapshot) == files_below(folder) | {"LICENSE"}
    assert not (tmp_path / "hf" / "outside.json").exists()

    # The hub is gone; what was pulled is found by its id, and checked.
    code, out, err = doodl_batch_here("models", "check", REPOSITORY, "--json")
    assert code == exits.OK, err
    facts = json.loads(out)
    assert (facts["kind"], facts["prediction_type"], facts["loaded"]) == ("sd", "epsilon", True)
    assert facts["revision"].startswith("blake2b:")


@pytest.mark.parametrize(("answer", "downloads"), [("y\n", True), ("\n", False)])
def test_pull_asks_a_person(folder, tmp_path, answer, downloads):
    ours, theirs = pty.openpty()
    with hub_serving(folder) as (address, _):
        process = subprocess.Popen(
            [DOODL_BATCH, "models", "pull", REPOSITORY],
            stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": address},
        )  # fmt: skip
        os.write(ours, answer.encode())
        process.communicate(timeout=240)
    os.close(ours)
    os.close(theirs)
    assert process.returncode == exits.OK
    assert any((tmp_path / "hf").rglob("*.safetensors")) == downloads


def test_half_size_files_are_pulled_where_there_are_any(doodl_batch, folder, tmp_path):
    half = folder / "unet" / "diffusion_pytorch_model.safetensors"
    extra = {"unet/diffusion_pytorch_model.fp16.safetensors": half.read_bytes()}
    with hub_serving(folder, extra=extra) as (address, _):
        pulled = doodl_batch("models", "pull", REPOSITORY, "--yes", "--fp16", HF_ENDPOINT=address)
    assert pulled.returncode == exits.OK, pulled.stderr
    weights = {p.name for p in (tmp_path / "hf").rglob("snapshots/*/*/*.safetensors")}
    assert "diffusion_pytorch_model.fp16.safetensors" in weights
    unets = [*(tmp_path / "hf").rglob("snapshots/*/unet/*.safetensors")]
    assert len(unets) == 1


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("unreachable", "the hub cannot be reached"),
        ("offline", "HF_HUB_OFFLINE is set"),
        ("gated", "accept its terms"),
        ("absent", "is not on the hub, or is private"),
        ("revision", "no such revision"),
        ("no name", "nor a hub id"),
    ],
)
def test_pull_that_cannot_be_exits_with_6_and_says_why(
    doodl_batch_here, folder, tmp_path, case, message
):
    name = {"absent": "someone/else", "no name": "../x"}.get(case, REPOSITORY)
    arguments = ["models", "pull", name, "--yes"]
    arguments += ["--revision", "v9"] if case == "revision" else []
    with hub_serving(folder, gated=case == "gated") as (address, _):
        address = "http://127.0.0.1:9" if case == "unreachable" else address
        options = {"HF_HUB_OFFLINE": "1"} if case == "offline" else {}
        code, out, err = doodl_batch_here(
            *arguments, endpoint=address, HF_TOKEN="hf_secret", **options
        )
    assert code == exits.ENVIRONMENT, err
    assert message in err
    assert "Traceback" not in err
    assert "hf_secret" not in out + err


def test_repository_of_pickles_is_not_taken_for_a_model(doodl_batch, tmp_path):
    folder = make_folder(tmp_path / "pickled", "sd1")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with hub_serving(folder) as (address, _):
        pulled = doodl_batch("models", "pull", REPOSITORY, "--yes", HF_ENDPOINT=address)
    assert pulled.returncode == exits.ENVIRONMENT
    assert "not in safetensors: unet's weights" in pulled.stderr


def test_list_names_size_licence_and_state(doodl_batch):
    result = doodl_batch("models", "list", "--json")
    models = {model["name"]: model for model in json.loads(result.stdout)}
    assert list(models) == ["pocket", *KNOWN]
    assert models["pocket"]["state"] == "ready"
    assert {"sd14", "sd15", "sd21", "sdxl", "sdxl-turbo", "sd3", "flux"} <= models.keys()
    for name in KNOWN:
        assert models[name]["state"] == "not pulled"
        assert "GB" in models[name]["size"]
        assert models[name]["licence"]
        assert models[name]["limits"]
    assert "use-based limits" in models["sd15"]["limits"]


def test_check_of_the_shipped_model_and_of_nothing(doodl_batch_here, tmp_path):
    code, out, err = doodl_batch_here("models", "check", "pocket")
    assert code == exits.OK, err
    assert "loaded and run once" in out
    for model, message in (
        ("sd15", "doodl-batch models pull sd15"),
        (tmp_path, "no model_index.json"),
        ("no such thing", "neither a folder"),
    ):
        code, _, err = doodl_batch_here("models", "check", model)
        assert code == exits.ENVIRONMENT
        assert message in err
