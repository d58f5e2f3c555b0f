"""Configs of models from outside: nothing in them runs code, and nothing is fetched."""

import json
import shutil
import socket

import pytest
import torch

from doodl.backbones import load_backbone
from doodl.backbones.check import check_backbone
from doodl.errors import ModelError
from doodl.generation.checker import load_safety_checker
from doodl.guidance.networks import load_classifier
from doodl.guidance.revisions import check_guides
from doodl.guidance.spec import parse_guides
from doodl.guidance.towers import load_tower
from doodl.models.configs import check_configs, read_config
from doodl.pocket import weights_dir
from tests.doodl.test_classifiers import hugging_face_folder
from tests.doodl.test_weights import safety_checker, single_file, timm_folder
from tests.doodl.tiny_models import make_folder
from tests.doodl.tiny_towers import write_tower


@pytest.fixture(autouse=True)
def _nobody_calls(monkeypatch):
    """Whatever looks up a name or connects fails the test."""

    def called(*arguments, **options):
        raise AssertionError(f"the network was asked for: {arguments}")

    monkeypatch.setattr(socket, "getaddrinfo", called)
    monkeypatch.setattr(socket, "create_connection", called)
    monkeypatch.setattr(socket.socket, "connect", called)
    monkeypatch.setattr(socket.socket, "connect_ex", called)


@pytest.fixture(autouse=True)
def _nothing_runs(tmp_path):
    """Code that lies in the folders ends the tests if it is run."""
    yield
    assert not (tmp_path / "ran").exists()


def edit(path, dotted="", **changes):
    config = json.loads(path.read_text()) if path.exists() else {}
    node = config
    for part in dotted.split(".") if dotted else ():
        node = node.setdefault(part, {})
    node |= changes
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(config))


def plant(tmp_path, folder):
    """Code under the names that the configs ask for."""
    for name in ("evil", "modeling_evil", "pipeline"):
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")


def tower(tmp_path):
    folder = shutil.copytree(weights_dir() / "tower", tmp_path / "tower")
    return folder, lambda: load_tower(folder).embed_texts(["a rose"])


def bare_tower(tmp_path):
    """A tower of open_clip's own text classes, without a tokenizer of its own."""
    folder = write_tower(tmp_path / "bare")
    return folder, lambda: load_tower(folder)


def timm_classifier(tmp_path):
    case = timm_folder(tmp_path)
    return case.weights.parent, case.load


def hf_classifier(tmp_path):
    folder = tmp_path / "vit"
    folder.mkdir()
    hugging_face_folder(folder)
    return folder, lambda: load_classifier(str(folder))


def pipeline(kind):
    def make(tmp_path):
        folder = make_folder(tmp_path / kind, kind)
        return folder, lambda: load_backbone(folder)

    return make


def pocket(tmp_path):
    folder = shutil.copytree(weights_dir() / "pipeline", tmp_path / "pocket")
    return folder, lambda: load_backbone(folder)


def checker(tmp_path):
    case = safety_checker(tmp_path)
    return tmp_path, case.load


def one_file(tmp_path):
    case = single_file("")(tmp_path)
    return tmp_path / "tiny", case.load


AUTO_MAP = {"auto_map": {"AutoModel": "evil--modeling_evil.Evil"}}
# (model, file, where in it, what is put there, the key that is named)
ASKING = [
    (
        tower,
        "open_clip_config.json",
        "model_cfg.text_cfg",
        {"hf_model_name": "evil/text"},
        "hf_model_name",
    ),
    (
        tower,
        "open_clip_config.json",
        "model_cfg.text_cfg",
        {"hf_model_name": "roberta-base", "hf_model_pretrained": True},
        "hf_model_name",
    ),
    (
        bare_tower,
        "open_clip_config.json",
        "model_cfg.text_cfg",
        {"hf_tokenizer_name": "evil/words"},
        "hf_tokenizer_name",
    ),
    (
        tower,
        "open_clip_config.json",
        "model_cfg.text_cfg",
        {"hf_tokenizer_name": "hf-hub:evil/words"},
        "hf_tokenizer_name",
    ),
    (
        tower,
        "open_clip_config.json",
        "model_cfg.text_cfg",
        {"tokenizer_kwargs": {"trust_remote_code": True}},
        "trust_remote_code",
    ),
    (
        tower,
        "open_clip_config.json",
        "model_cfg.vision_cfg",
        {"timm_model_name": "hf-hub:evil/net"},
        "timm_model_name",
    ),
    (
        tower,
        "open_clip_config.json",
        "model_cfg.vision_cfg",
        {"timm_model_name": "local-dir:/evil"},
        "timm_model_name",
    ),
    (
        tower,
        "tokenizer_config.json",
        "",
        {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}},
        "auto_map",
    ),
    (
        tower,
        "tokenizer_config.json",
        "",
        {"tokenizer_file": "https://evil.example/t.json"},
        "tokenizer_file",
    ),
    (tower, "config.json", "", AUTO_MAP, "auto_map"),
    (
        timm_classifier,
        "config.json",
        "pretrained_cfg",
        {"url": "https://evil.example/w"},
        "pretrained_cfg.url",
    ),
    (
        timm_classifier,
        "config.json",
        "pretrained_cfg",
        {"hf_hub_id": "evil/net"},
        "pretrained_cfg.hf_hub_id",
    ),
    (
        timm_classifier,
        "config.json",
        "pretrained_cfg",
        {"file": "/evil.pth"},
        "pretrained_cfg.file",
    ),
    (hf_classifier, "config.json", "", AUTO_MAP, "auto_map"),
    (
        hf_classifier,
        "config.json",
        "",
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        "quantization_config",
    ),
    (hf_classifier, "config.json", "", {"trust_remote_code": True}, "trust_remote_code"),
    (
        hf_classifier,
        "config.json",
        "",
        {"_attn_implementation": "evil/kernels"},
        "_attn_implementation",
    ),
    (
        hf_classifier,
        "preprocessor_config.json",
        "",
        {"auto_map": {"AutoImageProcessor": "evil.E"}},
        "auto_map",
    ),
    (
        hf_classifier,
        "adapter_config.json",
        "",
        {"base_model_name_or_path": "evil/base"},
        "base_model_name_or_path",
    ),
    (
        pipeline("sd1"),
        "model_index.json",
        "",
        {"custom_pipeline": "evil/pipeline"},
        "custom_pipeline",
    ),
    (pipeline("sd1"), "model_index.json", "", {"_class_name": ["pipeline", "Evil"]}, "_class_name"),
    (pipeline("sd1"), "model_index.json", "", {"_class_name": "EvilPipeline"}, "_class_name"),
    (pipeline("sd1"), "model_index.json", "", {"unet": ["evil", "UNet2DConditionModel"]}, "unet"),
    (
        pipeline("sd1"),
        "model_index.json",
        "",
        {"image_encoder": ["evil", "CLIPVisionModel"]},
        "image_encoder",
    ),
    (pipeline("sd1"), "unet/config.json", "", {"_class_name": "EvilUNet"}, "_class_name"),
    (pipeline("sd1"), "vae/config.json", "", AUTO_MAP, "auto_map"),
    (
        pipeline("sd1"),
        "scheduler/scheduler_config.json",
        "",
        {"_class_name": "EvilScheduler"},
        "_class_name",
    ),
    (
        pipeline("sd3"),
        "text_encoder_3/config.json",
        "",
        {"quantization_config": {"quant_method": "gptq"}},
        "quantization_config",
    ),
    (
        pipeline("sd3"),
        "tokenizer_2/tokenizer_config.json",
        "",
        {"vocab_file": "http://evil.example/v"},
        "vocab_file",
    ),
    (
        pipeline("flux"),
        "transformer/config.json",
        "",
        {"quantization_config": {"quant_method": "torchao"}},
        "quantization_config",
    ),
    (pocket, "text_encoder/config.json", "", AUTO_MAP, "auto_map"),
    (pocket, "text_encoder/config.json", "text_config", AUTO_MAP, "text_config.auto_map"),
    (checker, "safety_checker/config.json", "", AUTO_MAP, "auto_map"),
    (
        checker,
        "model_index.json",
        "",
        {"safety_checker": ["evil", "StableDiffusionSafetyChecker"]},
        "safety_checker",
    ),
    (one_file, "unet/config.json", "", AUTO_MAP, "auto_map"),
    (
        one_file,
        "tokenizer/tokenizer_config.json",
        "",
        {"auto_map": {"AutoTokenizer": ["evil.E", None]}},
        "auto_map",
    ),
]


@pytest.mark.parametrize(("make", "file", "where", "changes", "key"), ASKING)
def test_what_asks_to_run_code_or_to_fetch_is_refused(tmp_path, make, file, where, changes, key):
    folder, load = make(tmp_path)
    folder.mkdir(exist_ok=True)
    edit(folder / file, where, **changes)
    plant(tmp_path, (folder / file).parent)
    with pytest.raises(ModelError) as caught:
        load()
    said = str(caught.value)
    assert str(folder / file) in said
    assert key in said
    assert "\n" not in said


@pytest.mark.parametrize(("make", "file", "where", "changes", "key"), ASKING[:3] + ASKING[10:14])
def test_it_is_refused_before_any_class_is_built(
    tmp_path, make, file, where, changes, key, monkeypatch
):
    folder, load = make(tmp_path)
    edit(folder / file, where, **changes)

    def built(*arguments, **options):
        raise AssertionError("a network was built")

    monkeypatch.setattr(torch.nn.Module, "__init__", built)
    with pytest.raises(ModelError, match=key.replace(".", r"\.")):
        load()


def test_what_is_asked_of_the_last_part_is_refused_before_the_first_is_read(tmp_path, monkeypatch):
    folder, load = pipeline("sd3")(tmp_path)
    edit(folder / "vae" / "config.json", **AUTO_MAP)
    monkeypatch.setattr(
        "doodl.backbones.loading.load_component", lambda *_: pytest.fail("a part was loaded")
    )
    with pytest.raises(ModelError, match="auto_map"):
        load()


HARMLESS = [
    (
        tower,
        "open_clip_config.json",
        "model_cfg.text_cfg",
        {"hf_tokenizer_name": "timm/ViT-B-16-SigLIP"},
    ),
    (tower, "tokenizer_config.json", "", {"name_or_path": "openai/clip", "tokenizer_file": None}),
    (
        timm_classifier,
        "config.json",
        "pretrained_cfg",
        {
            "url": "",
            "hf_hub_id": None,
            "license": "mit",
            "origin_url": "https://a.example/b",
            "paper_ids": "arXiv:1",
        },
    ),
    (
        timm_classifier,
        "config.json",
        "",
        {"label_names": ["url", "auto_map", "hf-hub:x", "file", "e"]},
    ),
    (
        hf_classifier,
        "config.json",
        "",
        {
            "_name_or_path": "google/vit",
            "transformers_version": "4",
            "trust_remote_code": False,
            "quantization_config": None,
        },
    ),
    (
        hf_classifier,
        "config.json",
        "",
        {
            "id2label": {"0": "a", "1": "b", "2": "c", "3": "url", "4": "e"},
            "label2id": {"auto_map": 0, "url": 1, "c": 2, "d": 3, "e": 4},
        },
    ),
    (
        pipeline("sd1"),
        "model_index.json",
        "",
        {
            "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
            "feature_extractor": ["transformers", "CLIPImageProcessor"],
            "requires_safety_checker": True,
            "_name_or_path": "/home/someone/x",
            "image_encoder": [None, None],
        },
    ),
    (
        pipeline("sd1"),
        "unet/config.json",
        "",
        {"_name_or_path": "runwayml/sd", "_diffusers_version": "0.6.0"},
    ),
    (pipeline("sd1"), "vae/config.json", "", {"_name_or_path": "https://huggingface.example/vae"}),
    (
        pipeline("sdxl"),
        "tokenizer_2/tokenizer_config.json",
        "",
        {
            "special_tokens_map_file": "./special_tokens_map.json",
            "tokenizer_file": "/home/someone/t.json",
            "name_or_path": "laion/clip",
        },
    ),
    (
        pipeline("sd3"),
        "text_encoder/config.json",
        "",
        {"_name_or_path": "/raid/.cache/clip", "auto_map": {}},
    ),
    (pocket, "model_index.json", "", {"_name_or_path": "somewhere/else"}),
]


@pytest.mark.parametrize(("make", "file", "where", "changes"), HARMLESS)
def test_published_layouts_go_through_and_nobody_is_called(tmp_path, make, file, where, changes):
    folder, load = make(tmp_path)
    edit(folder / file, where, **changes)
    plant(tmp_path, folder)
    load()


@pytest.mark.parametrize("name", ["tower", "judge", "referee"])
def test_the_shipped_towers_call_nobody(name):
    assert load_tower(weights_dir() / name).embed_texts(["a rose"]).shape[0] == 1


def test_the_shipped_models_call_nobody():
    load_backbone("pocket")
    load_classifier("pocket/tulips")
    assert load_safety_checker(weights_dir() / "pipeline") is None


def test_models_check_says_what_a_config_asks_for(tmp_path):
    folder, _ = pipeline("sd1")(tmp_path)
    edit(folder / "text_encoder" / "config.json", **AUTO_MAP)
    with pytest.raises(ModelError, match="auto_map asks to run code of its own"):
        check_backbone(folder)


def test_planning_looks_at_the_configs_of_classifiers_too(tmp_path):
    folder, _ = timm_classifier(tmp_path)
    edit(folder / "config.json", "pretrained_cfg", hf_hub_id="evil/net")
    with pytest.raises(ModelError, match="hf_hub_id asks to fetch"):
        check_guides(parse_guides([f"classifier:{folder}/1=1"]))


@pytest.mark.parametrize(
    "text", ["[1]", "{", '"auto_map"', "[" * 100_000, '{"a":' * 900 + "[" * 200, b"\xff\xfe{}"]
)
def test_a_config_that_is_no_object_is_one_line(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    for read in (lambda: read_config(path), lambda: check_configs(tmp_path)):
        with pytest.raises(ModelError, match=r"config\.json") as caught:
            read()
        assert "\n" not in str(caught.value)


def test_a_demand_is_found_however_deep_it_lies(tmp_path):
    path = tmp_path / "config.json"
    for depth in (1, 10, 300):
        path.write_text('{"a":[' * depth + json.dumps(AUTO_MAP) + "]}" * depth)
        with pytest.raises(ModelError, match="auto_map asks to run code"):
            read_config(path)
    path.write_text('{"a":' * 970 + json.dumps(AUTO_MAP) + "}" * 970)
    with pytest.raises(ModelError, match=r"config\.json"):
        read_config(path)


def test_the_guard_of_these_tests_guards():
    with pytest.raises(AssertionError, match="the network was asked for"):
        socket.create_connection(("127.0.0.1", 9))
