"""Loading: full-size configurations by shape, precision, text encoders, and what is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig

from doodl.backbones import load_backbone
from doodl.backbones.check import check_backbone
from doodl.backbones.clip_tokenizer import clip_tokenizer
from doodl.backbones.published import PUBLISHED
from doodl.errors import ModelError
from doodl.models.hub import missing_parts
from tests.doodl.tiny_models import make_folder, unet

CLASSES = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "text_encoder_2": "CLIPTextModelWithProjection",
}
# Counted on the published files: (network, autoencoder, text encoders).
PARAMETERS = {
    "sd1": (859_520_964, 83_653_863, [123_060_480]),
    "sd2": (865_910_724, 83_653_863, [340_387_840]),
    "sdxl": (2_567_463_684, 83_653_863, [123_060_480, 694_659_840]),
}


@pytest.fixture
def folder_of(tmp_path):
    def make(kind):
        path = tmp_path / kind
        path.mkdir()
        return make_folder(path, kind)

    return make


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def full_size_folder(path, kind):
    """The folder of a published model without its weights: configs and tokenizers."""
    index = {"scheduler": ["diffusers", "DDIMScheduler"]}
    for part, config in PUBLISHED[kind].items():
        (path / part).mkdir()
        if part == "scheduler":
            (path / part / "scheduler_config.json").write_text(json.dumps(config))
            continue
        index[part] = ["", CLASSES[part]]
        if part in ("unet", "vae"):
            config = {"_class_name": CLASSES[part], **config}
            (path / part / "config.json").write_text(json.dumps(config))
        else:
            CLIPTextConfig(**config).save_pretrained(path / part)
            tokenizer = part.replace("text_encoder", "tokenizer")
            clip_tokenizer().save_pretrained(path / tokenizer)
    (path / "model_index.json").write_text(json.dumps(index))
    return path


@pytest.mark.parametrize(
    ("kind", "native_px", "size_multiple", "embeds", "pooled"),
    [
        ("sd1", 512, 64, (1, 77, 768), None),
        ("sd2", 768, 64, (1, 77, 1024), None),
        ("sdxl", 1024, 32, (1, 77, 2048), (1, 1280)),
    ],
)
def test_full_size_shapes_run_through_loader_and_predictor(
    tmp_path, kind, native_px, size_multiple, embeds, pooled
):
    """On the meta device: every layer of the real size, no number in it."""
    backbone = load_backbone(full_size_folder(tmp_path, kind), device="meta")
    assert (backbone.native_px, backbone.size_multiple) == (native_px, size_multiple)
    networks = (backbone.unet, backbone.vae, *backbone.text.encoders)
    network, vae, *text = (sum(p.numel() for p in part.parameters()) for part in networks)
    assert (network, vae, text) == PARAMETERS[kind]
    assert backbone.prediction_type == ("v_prediction" if kind == "sd2" else "epsilon")

    conditioning = backbone.text(["a photo"])
    assert tuple(conditioning.embeds.shape) == embeds
    assert (None if conditioning.pooled is None else tuple(conditioning.pooled.shape)) == pooled
    height, width = native_px, native_px + size_multiple
    shape = (2, 4, height // 8, width // 8)
    assert backbone.latent_shape(height, width) == shape[1:]
    latents = torch.zeros(shape, device="meta")
    t = backbone.schedule(50).timesteps[0].to("meta")
    predictor = backbone.predictor(["a photo", "another"], guidance_scale=7.5)
    assert predictor(latents, t).shape == shape
    assert backbone.decode(latents).shape == (2, 3, height, width)
    assert backbone.encode(torch.zeros(2, 3, height, width)).shape == shape


@pytest.mark.parametrize("kind", ["sd2", "sdxl", "lcm", "sd3", "flux"])
def test_check_finds_what_a_model_is(folder_of, kind):
    folder = folder_of(kind)
    facts = check_backbone(folder)
    backbone = load_backbone(folder)
    assert facts.loaded
    assert facts.kind == backbone.kind
    assert facts.prediction_type == backbone.prediction_type
    assert facts.few_steps == (kind in ("turbo", "lcm"))
    assert facts.guidance_embedded == (kind in ("lcm", "flux"))
    assert facts.revision == backbone.revision
    assert facts.file_dtypes == "F32"
    files = [*folder.rglob("*.safetensors")]
    assert facts.size_bytes == sum(file.stat().st_size for file in files)
    assert missing_parts(folder) == []


def test_check_finds_damage(folder_of):
    folder = folder_of("sd1")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, "conv_in.bias": torch.full((8,), float("nan"))}, weights)
    with pytest.raises(ModelError, match="not finite"):
        check_backbone(folder)
    save_file({**tensors, "conv_in.bias": torch.zeros(9)}, weights)
    with pytest.raises(ModelError, match=r"conv_in\.bias should be \[8\]"):
        check_backbone(folder)
    weights.unlink()
    with pytest.raises(ModelError, match="unet's weights"):
        check_backbone(folder)


def test_check_without_memory_for_the_weights_looks_at_the_shapes(folder_of, monkeypatch):
    monkeypatch.setattr("doodl.backbones.check._free_bytes", lambda: 1000)
    assert not check_backbone(folder_of("sdxl")).loaded


@pytest.mark.parametrize("lost", ["conv_in.bias", "mid_block.resnets.0.norm1.weight"])
def test_weights_that_are_not_whole_are_not_filled_with_random_numbers(folder_of, lost):
    folder = folder_of("sd1")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    del tensors[lost]
    save_file(tensors, weights)
    with pytest.raises(ModelError, match="not whole"):
        load_backbone(folder)


def test_text_encoder_that_is_not_whole_is_not_loaded(folder_of):
    folder = folder_of("sd3")
    weights = folder / "text_encoder_2" / "model.safetensors"
    tensors = load_file(weights)
    del tensors["text_projection.weight"]
    save_file(tensors, weights)
    with pytest.raises(ModelError, match="not whole"):
        load_backbone(folder)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("sdxl", torch.bfloat16),
        *((kind, torch.float16) for kind in ("sdxl", "sd3", "flux")),
    ],
)
def test_half_precision_networks_keep_a_float32_state(folder_of, kind, dtype):
    backbone = load_backbone(folder_of(kind), dtype=dtype)
    assert {p.dtype for p in backbone.unet.parameters()} == {dtype}
    latents = backbone.init_noise([torch.Generator().manual_seed(0)], 16, 24)
    schedule = backbone.schedule(4)
    latents.requires_grad_()
    prediction = backbone.predictor(["a rose"], guidance_scale=3.0)(latents, schedule.timesteps[0])
    image = backbone.decode(latents)
    for value in (prediction, image, backbone.encode(image.detach())):
        assert value.dtype == torch.float32
    (grad,) = torch.autograd.grad(1e-8 * (prediction.sum() + image.sum()), latents)
    assert grad.dtype == torch.float32
    assert torch.isfinite(grad).all()
    assert grad.abs().max() > 1e-10


def test_autoencoder_that_overflows_stays_in_float32(folder_of):
    folder = folder_of("sdxl")
    config = folder / "vae" / "config.json"
    for upcast, dtype in ((True, torch.float32), (False, torch.float16)):
        edit_json(config, force_upcast=upcast)
        backbone = load_backbone(folder, dtype=torch.float16)
        assert backbone.vae_dtype == dtype
        assert {p.dtype for p in backbone.vae.parameters()} == {dtype}
        assert backbone.unet.dtype == torch.float16


def test_fp16_files_are_read_where_asked_for_or_alone(folder_of):
    folder = folder_of("sd1")
    full = load_backbone(folder)
    for part, stem in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        plain = folder / part / f"{stem}.safetensors"
        half = {name: t.half() + 1 for name, t in load_file(plain).items()}  # to be told apart
        save_file(half, folder / part / f"{stem}.fp16.safetensors", metadata={"format": "pt"})
    biases = {
        dtype: load_backbone(folder, dtype=dtype).unet.conv_in.bias.float()
        for dtype in (torch.float32, torch.float16)
    }
    torch.testing.assert_close(biases[torch.float32], full.unet.conv_in.bias)
    torch.testing.assert_close(biases[torch.float16], full.unet.conv_in.bias + 1, rtol=2e-3, atol=0)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    only_half = load_backbone(folder)
    assert only_half.unet.dtype == torch.float32
    torch.testing.assert_close(
        only_half.unet.conv_in.bias, full.unet.conv_in.bias + 1, rtol=2e-3, atol=0
    )


def test_sharded_weights_load_and_a_lost_shard_is_noticed(folder_of):
    folder = folder_of("sd1")
    backbone = load_backbone(folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    backbone.unet.save_pretrained(folder / "unet", max_shard_size="20KB")
    shards = sorted((folder / "unet").glob("*-of-*.safetensors"))
    assert len(shards) > 1
    sharded = load_backbone(folder)
    torch.testing.assert_close(sharded.unet.state_dict(), backbone.unet.state_dict())
    assert missing_parts(folder) == []
    shards[0].unlink()
    assert missing_parts(folder) == ["unet's weights"]
    with pytest.raises(ModelError, match="unet cannot be loaded"):
        load_backbone(folder)


def test_tiling_decodes_large_frames_and_passes_gradients(folder_of):
    folder = folder_of("sd1")
    edit_json(folder / "vae" / "config.json", sample_size=16)  # the size of a tile
    whole, tiled = load_backbone(folder), load_backbone(folder, vae_tiling=True)
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 24, 32, generator=generator) * 2 - 1
    latents = torch.randn(1, 4, 12, 16, generator=generator).requires_grad_()
    assert tiled.encode(image).shape == whole.encode(image).shape
    one, two = whole.decode(latents), tiled.decode(latents)
    assert two.shape == one.shape
    assert not torch.equal(one, two)
    assert torch.nn.functional.mse_loss(two, one) < 0.1 * one.var()
    (grad,) = torch.autograd.grad(two.sum(), latents)
    assert (grad != 0).all()


def test_each_prompt_is_encoded_once(folder_of):
    folder = folder_of("sdxl")
    backbone = load_backbone(folder)
    prompts = []
    tokenizer = backbone.text.tokenizers[0]

    def counted(texts, **options):
        prompts.append(list(texts))
        return tokenizer(texts, **options)

    counted.model_max_length = tokenizer.model_max_length
    backbone.text.tokenizers = (counted, backbone.text.tokenizers[1])
    batch = backbone.text(["a", "b", "a", "a"])
    torch.testing.assert_close(batch.embeds[0], batch.embeds[3])
    backbone.text(["b", "c"])
    backbone.predictor(["a", "c"], guidance_scale=3.0)
    assert prompts == [["a", "b"], ["c"], [""]]
    alone = load_backbone(folder)
    torch.testing.assert_close(alone.text(["b"]).embeds[0], batch.embeds[1])


def test_cache_of_prompts_is_bounded(folder_of, monkeypatch):
    monkeypatch.setattr("doodl.backbones.text._CACHED_PROMPTS", 2)
    text = load_backbone(folder_of("sd1")).text
    assert len(text(["a", "b", "c"])) == 3
    assert list(text._cache) == ["b", "c"]


def test_text_encoders_leave_the_device_after_encoding(folder_of):
    backbone = load_backbone(folder_of("flux"))
    moves = []
    for encoder in backbone.text.encoders:
        encoder.to = lambda device, e=encoder: moves.append(str(device)) or e
    backbone.text(["a rose"])
    backbone.text(["a rose"])
    assert moves == ["cpu", "cpu", "cpu", "cpu"]  # there and back, once each: here both are one


def test_sd3_without_its_largest_encoder_has_zeros_for_it(folder_of):
    folder = folder_of("sd3")
    edit_json(folder / "model_index.json", text_encoder_3=[None, None], tokenizer_3=[None, None])
    embeds = load_backbone(folder).text(["a rose"]).embeds
    assert embeds.shape == (1, 24 + 256, 32)
    assert (embeds[:, 24:] == 0).all()
    assert (embeds[:, :24] != 0).any()


def test_sizes_that_a_model_cannot_take_are_named(folder_of):
    backbone = load_backbone(folder_of("sd3"))
    with pytest.raises(ValueError, match=r"width_px \(=18\) must be a multiple of 4; try 16"):
        backbone.latent_shape(16, 18)
    with pytest.raises(ValueError, match=r"height_px \(=52\) must be at most 48"):
        backbone.latent_shape(52, 16)


def test_noise_is_each_generators_own(folder_of):
    backbone = load_backbone(folder_of("sd1"))
    three = backbone.init_noise([torch.Generator().manual_seed(i) for i in range(3)], 16, 24)
    alone = backbone.init_noise([torch.Generator().manual_seed(2)], 16, 24)
    torch.testing.assert_close(three[2:], alone, rtol=0, atol=0)


def test_dynamic_shift_follows_the_size_of_the_image(folder_of):
    backbone = load_backbone(folder_of("flux"))
    small, native = (backbone.schedule(4, size_px=size) for size in ((16, 16), None))
    assert (small.timesteps[1:] < native.timesteps[1:]).all()


def test_negative_prompt_that_cannot_act_is_refused(folder_of):
    backbone = load_backbone(folder_of("flux"))
    with pytest.raises(ValueError, match="negative_prompts cannot act"):
        backbone.predictor(["a"], negative_prompts="blurry", guidance_scale=3.5)
    with pytest.raises(ValueError, match="negative_prompts"):
        load_backbone(folder_of("sd1")).predictor(["a"], negative_prompts=["b", "c"])


def test_refiner_is_refused(folder_of):
    folder = folder_of("sdxl")
    index = folder / "model_index.json"
    edit_json(index, requires_aesthetics_score=True)
    with pytest.raises(ModelError, match="refiner"):
        load_backbone(folder)
    edit_json(index, requires_aesthetics_score=False, text_encoder=[None, None])
    with pytest.raises(ModelError, match="refiner"):
        load_backbone(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 9}, "takes 9 channels"),
        ({"num_class_embeds": 10}, "num_class_embeds"),
        (
            {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 64,
            },
            "addition_embed_type",
        ),
    ],
)
def test_networks_for_other_tasks_are_refused(folder_of, options, message):
    folder = folder_of("sd1")
    unet(**options).save_pretrained(folder / "unet")
    with pytest.raises(ModelError, match=message):
        load_backbone(folder)


@pytest.mark.parametrize(
    ("kind", "part", "entry"),
    [
        ("sd1", "text_encoder", ["transformers", "UNet2DConditionModel"]),
        ("sd1", "vae", ["transformers", "CLIPTextModel"]),
        ("sd3", "transformer", ["diffusers", "Evil"]),
        ("flux", "text_encoder_2", ["os", "system"]),
        ("sd1", "unet", ["custom", "SD3Transformer2DModel"]),
    ],
)
def test_no_class_but_the_parts_own_is_imported(folder_of, kind, part, entry):
    folder = folder_of(kind)
    edit_json(folder / "model_index.json", **{part: entry})
    with pytest.raises(ModelError):
        load_backbone(folder)


def test_tokenizer_of_an_unknown_class_is_not_loaded(folder_of):
    folder = folder_of("sd1")
    edit_json(
        folder / "tokenizer" / "tokenizer_config.json",
        tokenizer_class="EvilTokenizer",
        auto_map={"AutoTokenizer": ["evil.EvilTokenizer", None]},
    )
    (folder / "tokenizer" / "evil.py").write_text("raise SystemExit('code of the folder ran')")
    with pytest.raises(ModelError, match="EvilTokenizer"):
        load_backbone(folder)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("sd3", {"_class_name": "DDIMScheduler"}, "needs a flow matching one"),
        ("sd3", {"_class_name": "FlowMatchHeunDiscreteScheduler"}, "FlowMatchEuler"),
        ("flux", {"invert_sigmas": True}, "invert_sigmas"),
        ("flux", {"use_karras_sigmas": True}, "use_karras_sigmas"),
        ("sd1", {"_class_name": "EDMEulerScheduler"}, "EDMEulerScheduler is not one of"),
    ],
)
def test_processes_we_do_not_know_are_refused(folder_of, kind, changes, message):
    folder = folder_of(kind)
    edit_json(folder / "scheduler" / "scheduler_config.json", **changes)
    with pytest.raises(ModelError, match=message):
        load_backbone(folder)


@pytest.mark.parametrize("text", ["", "[]", "3", "{", "[" * 100_000, "\x00"])
def test_damaged_configs_are_model_errors(folder_of, text):
    folder = folder_of("sd1")
    for path in ("model_index.json", "scheduler/scheduler_config.json", "unet/config.json"):
        whole = (folder / path).read_text()
        (folder / path).write_text(text)
        with pytest.raises(ModelError):
            load_backbone(folder)
        (folder / path).write_text(whole)
    shutil.rmtree(folder / "vae")
    with pytest.raises(ModelError):
        load_backbone(folder)


def test_autoencoders_of_the_old_naming_load(folder_of):
    """Stable Diffusion 1's own files call attention's matrices query, key, value, proj_attn."""
    folder = folder_of("sd1")
    new = load_backbone(folder)
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in load_file(weights).items():
        for here, there in old.items():
            name = name.replace(f"attentions.0.{here}.", f"attentions.0.{there}.")
        tensors[name] = tensor
    assert any("proj_attn" in name for name in tensors)
    save_file(tensors, weights, metadata={"format": "pt"})
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(load_backbone(folder).decode(latents), new.decode(latents))
