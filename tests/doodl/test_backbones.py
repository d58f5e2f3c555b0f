"""Loading a Stable-Diffusion-like folder: a small model with random weights in the real format."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel

from doodl.backbones import load_backbone
from doodl.edict import generate, invert
from doodl.editing.editor import PhotoEditor, load_editor
from doodl.editing.objective import Aim
from doodl.editing.requests import EditRequest
from doodl.errors import ModelError
from doodl.images import decode_photo
from doodl.pocket import weights_dir
from doodl.recipes.config import EditConfig, OptimiserConfig, SamplerConfig
from doodl.scores import load_scorer
from tests.photos import jpeg


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline folder as `StableDiffusionPipeline.save_pretrained` writes it, but small."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tiny-sd")
    tokenizer = AutoTokenizer.from_pretrained(weights_dir() / "pipeline" / "tokenizer")
    UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=8,
    ).save_pretrained(path / "unet")
    AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.18215,
    ).save_pretrained(path / "vae")
    CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
        )
    ).save_pretrained(path / "text_encoder")
    tokenizer.save_pretrained(path / "tokenizer")
    PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
    ).save_pretrained(path / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "safety_checker": [None, None],
    }
    (path / "model_index.json").write_text(json.dumps(index))
    return path


@pytest.fixture(scope="module")
def backbone(folder):
    return load_backbone(folder)


def test_folder_loads_frozen_with_its_shapes(backbone):
    assert (backbone.latent_channels, backbone.latent_factor, backbone.size_multiple) == (4, 2, 4)
    for part in (backbone.unet, backbone.vae, backbone.text_encoder):
        assert not any(p.requires_grad for p in part.parameters())
    assert backbone.revision.startswith("blake2b:")


def test_encode_is_the_mode_scaled_and_decode_undoes_the_scale(backbone):
    image = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = backbone.encode(image)
    mode = backbone.vae.encode(image).latent_dist.mode()
    torch.testing.assert_close(latents, mode * 0.18215)
    torch.testing.assert_close(backbone.encode(image), latents, rtol=0, atol=0)  # no sampling
    torch.testing.assert_close(backbone.decode(latents), backbone.vae.decode(mode).sample)


def test_schedule_has_the_released_codes_offset_zero(backbone):
    assert backbone.schedule(50).timesteps.tolist() == list(range(980, -1, -20))


@pytest.mark.parametrize("guidance_scale", [1.0, 7.5])
def test_round_trip_under_a_prompt(backbone, guidance_scale):
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    predictor = backbone.predictor(["a rose", "a tulip"], guidance_scale=guidance_scale)
    schedule = backbone.schedule(50)
    with torch.no_grad():
        noise = invert(predictor, latents, latents, schedule)
        back, _ = generate(predictor, *noise, schedule)
    assert ((back - latents).norm() / latents.norm()).item() < 1e-3


def test_prompts_change_the_prediction(backbone):
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    first, second = (backbone.predictor([p])(latents, torch.tensor(500)) for p in ("a", "a rose"))
    assert not torch.equal(first, second)


def test_a_paper_like_edit_runs_on_it_and_lowers_the_loss(backbone):
    config = EditConfig(
        sampler=SamplerConfig(num_inference_steps=5, mix_weight=0.93),
        optimiser=OptimiserConfig(num_optim_steps=3, grad_clip_value=1e-1),
        working_px=32,
        num_crops=2,
    )
    editor = PhotoEditor(backbone, load_scorer("pocket"), load_scorer("pocket-judge"), config)
    photo = decode_photo(jpeg(0, (64, 64)))
    result = editor.edit([EditRequest(photo, Aim("up"), seed=0)])[0]
    assert len(result.loss_curve) == 4
    assert min(result.loss_curve[1:]) < result.loss_curve[0]


def test_steps_that_do_not_fit_the_model_are_refused_before_any_photo(folder):
    config = EditConfig(sampler=SamplerConfig(num_inference_steps=30))
    with pytest.raises(ValueError, match="must divide num_train_timesteps"):
        load_editor(str(folder), config)


def test_a_class_that_is_not_ours_is_never_imported(folder, tmp_path):
    import shutil

    copy = tmp_path / "hostile"
    shutil.copytree(folder, copy)
    index = json.loads((copy / "model_index.json").read_text())
    index["unet"] = ["os", "system"]
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="unet is a system"):
        load_backbone(copy)


def test_pickled_weights_are_not_loaded(folder, tmp_path):
    import shutil

    copy = tmp_path / "pickled"
    shutil.copytree(folder, copy)
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    torch.save({}, copy / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ModelError, match="unet"):
        load_backbone(copy)


def test_a_folder_that_is_no_pipeline_says_so(tmp_path):
    with pytest.raises(ModelError, match="model_index"):
        load_editor(str(tmp_path), EditConfig())
