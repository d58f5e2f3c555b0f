"""Names, hub ids and `auto` to a model that is there: never a download, never a flip."""

import os
import sys
from pathlib import Path

import pytest

from doodl.errors import ModelError
from doodl.models.hub import KNOWN, find_model, hub_cache, missing_parts, snapshot, split_id
from doodl.models.pull import wanted_files
from pipeline import models
from pipeline.models import resolve_model

SD15 = KNOWN["sd15"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path / "hf" / "hub"


def put(cache, repository, revision, *, main=False, whole=True):
    """Lay out a snapshot as the hub's client does; return its folder."""
    home = cache / f"models--{repository.replace('/', '--')}"
    folder = home / "snapshots" / revision
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text('{"unet": ["diffusers", "UNet2DConditionModel"]}')
    (folder / "unet" / "config.json").write_text("{}")
    if whole:
        (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    if main:
        (home / "refs").mkdir(exist_ok=True)
        (home / "refs" / "main").write_text(revision)
    return folder


@pytest.fixture
def accelerator(tmp_path, monkeypatch):
    """An accelerator of so many MiB, as the driver's files and tool show it."""

    def show(*sizes_mib):
        monkeypatch.setattr(models, "resolve_device", lambda name: "cuda")
        lines = "\n".join(f"{i}, GPU-{i}, {size}" for i, size in enumerate(sizes_mib))
        tool = tmp_path / "bin" / "nvidia-smi"
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(f"#!{sys.executable}\nprint('''{lines}''')\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", str(tool.parent), prepend=os.pathsep)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")

    return show


def test_names_and_ids_become_folders_that_are_there(cache):
    pinned = put(cache, SD15.repository, SD15.revision)
    other = put(cache, "someone/model", "abc", main=True)
    assert resolve_model("sd15")[0] == str(pinned)
    assert resolve_model("someone/model")[0] == str(other)
    assert resolve_model("someone/model@abc")[0] == str(other)
    assert resolve_model("someone/model@main")[0] == str(other)
    assert resolve_model("pocket")[0] == "pocket"
    assert resolve_model("/some/folder") == ("/some/folder", "as asked")


@pytest.mark.parametrize("name", ["sd15", "someone/model", "someone/model@abc"])
def test_what_is_not_pulled_says_how_to_pull_it(cache, name):
    with pytest.raises(ModelError, match=f"doodl-batch models pull {name}"):
        resolve_model(name)


def test_interrupted_pull_is_not_a_model(cache):
    put(cache, SD15.repository, SD15.revision, whole=False)
    with pytest.raises(ModelError, match=r"incomplete \(unet's weights\)"):
        resolve_model("sd15")
    states = {model.name: model.state for model in models.known_models()}
    assert states["sd15"] == "incomplete"
    assert resolve_model("auto")[0] == "pocket"


def test_folder_here_comes_before_an_id_there(cache, tmp_path, monkeypatch):
    put(cache, "someone/model", "abc")
    (tmp_path / "someone" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_model("someone/model") == ("someone/model", "as asked")


def test_pinned_revision_comes_first_and_another_will_do(cache):
    latest = put(cache, SD15.repository, "def", main=True)
    assert resolve_model("sd15")[0] == str(latest)
    pinned = put(cache, SD15.repository, SD15.revision)
    assert resolve_model("sd15")[0] == str(pinned)


def test_several_snapshots_without_a_main_are_not_chosen_between(cache):
    put(cache, "someone/model", "abc")
    assert snapshot("someone/model") is not None
    put(cache, "someone/model", "def")
    assert snapshot("someone/model") is None


def test_output_folder_keeps_its_revision(cache):
    first = put(cache, "someone/model", "abc", main=True)
    put(cache, "someone/model", "def", main=True)
    assert resolve_model("someone/model", str(first))[0] == str(first)
    assert resolve_model("someone/model@def", str(first))[0] != str(first)
    assert resolve_model("auto", str(first)) == (
        str(first),
        "as this output folder's earlier runs",
    )
    other = put(cache, "someone/other", "abc", main=True)
    assert resolve_model("someone/model", str(other))[0] != str(other)


@pytest.mark.parametrize(
    ("sizes_mib", "pulled", "device", "expected"),
    [
        ((24_000,), True, "auto", "sd15"),
        ((24_000,), False, "auto", "pocket"),
        ((8_000,), True, "auto", "pocket"),
        ((24_000, 8_000), True, "auto", "pocket"),  # any worker may get the small one
        ((), True, "auto", "pocket"),
    ],
)
def test_auto_takes_the_large_model_only_where_it_is_and_can_run(
    cache, accelerator, sizes_mib, pulled, device, expected
):
    folder = put(cache, SD15.repository, SD15.revision) if pulled else None
    accelerator(*sizes_mib)
    model, why = resolve_model("auto", device=device)
    assert model == (str(folder) if expected == "sd15" else "pocket")
    assert why


def test_auto_looks_at_the_accelerators_it_may_see(cache, accelerator, monkeypatch):
    folder = put(cache, SD15.repository, SD15.revision)
    accelerator(8_000, 24_000)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert resolve_model("auto")[0] == str(folder)


def test_auto_without_an_accelerator_is_pocket(cache):
    put(cache, SD15.repository, SD15.revision)
    assert resolve_model("auto", device="cpu")[0] == "pocket"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"HF_HUB_CACHE": "/a"}, "/a"),
        ({"HF_HOME": "/b"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
        ({"HOME": "/d"}, "/d/.cache/huggingface/hub"),
    ],
)
def test_cache_is_where_the_hubs_client_has_it(monkeypatch, variables, expected):
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert hub_cache() == Path(expected)


@pytest.mark.parametrize(
    "text", ["../x", "a/../b", "a", "a/b/c", "a/b@../../x", "a/b@", "-a/b@x/y", "a b/c", "/a/b", ""]
)
def test_text_that_is_no_id_reaches_no_folder(text):
    assert split_id(text) in (None, ("a/b", None))
    if text not in ("a/b@",):
        with pytest.raises(ModelError):
            find_model(text or "\x00")


def test_wanted_files_are_one_variant_of_each_part_and_nothing_foreign():
    names = [
        "model_index.json", "README.md", "LICENSE.md", "v1-5-pruned.safetensors", "model.ckpt",
        "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.non_ema.safetensors", "unet/model.onnx",
        "text_encoder/model.fp16.safetensors", "text_encoder/pytorch_model.bin",
        "text_encoder_2/model-00001-of-00002.safetensors",
        "text_encoder_2/model-00002-of-00002.safetensors",
        "text_encoder_2/model.safetensors.index.json",
        "tokenizer/merges.txt", "tokenizer_2/spiece.model", "evil/config.json",
        "unet/../../x.json", "unet/code.py", "unet/sub/config.json",
    ]  # fmt: skip
    always = {
        "model_index.json", "LICENSE.md", "unet/config.json", "text_encoder/model.fp16.safetensors",
        *(name for name in names if name.startswith(("text_encoder_2/", "tokenizer"))),
    }  # fmt: skip
    assert set(wanted_files(names, fp16=False)) == always | {
        "unet/diffusion_pytorch_model.safetensors"
    }
    assert set(wanted_files(names, fp16=True)) == always | {
        "unet/diffusion_pytorch_model.fp16.safetensors"
    }


@pytest.mark.parametrize("index", ["", "[]", "{", '{"unet": 3}'])
def test_damaged_index_is_no_whole_model(tmp_path, index):
    (tmp_path / "model_index.json").write_text(index)
    assert missing_parts(tmp_path) == ["model_index.json"]
