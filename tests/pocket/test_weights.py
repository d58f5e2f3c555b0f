"""The shipped weights load offline through the libraries' own loaders and have learnt something."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from doodl.pocket import weights_dir
from doodl.pocket.autoencoder import PatchAutoencoder
from doodl.pocket.scorer import load_scorer
from doodl.pocket.training.degrade import degrade
from tests.pocket.conftest import smooth_photos

PIPELINE = weights_dir() / "pipeline"
SCORERS = ("tower", "judge", "referee")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")


@pytest.fixture(scope="module")
def autoencoder() -> PatchAutoencoder:
    network = PatchAutoencoder.from_pretrained(PIPELINE, subfolder="vae", torch_dtype=torch.float32)
    return network.eval().requires_grad_(False)


def _decoded(network: PatchAutoencoder, image: Tensor) -> Tensor:
    return (network(image * 2 - 1).sample / 2 + 0.5).clamp(0, 1)


def _psnr_db(first: Tensor, second: Tensor) -> float:
    return float(-10 * torch.log10((first - second).square().mean()))


def test_the_weights_fit_in_25_megabytes() -> None:
    total_bytes = sum(path.stat().st_size for path in weights_dir().rglob("*") if path.is_file())
    assert total_bytes <= 25_000_000


def test_every_tensor_on_disk_is_float16() -> None:
    files = list(weights_dir().rglob("*.safetensors"))
    assert files
    for path in files:
        for name, value in load_file(path).items():
            assert value.dtype in (torch.float16, torch.int64), f"{path.name}: {name}"


def test_pipeline_parts_load_and_predict_noise_for_any_even_shape() -> None:
    from diffusers import DDIMScheduler, UNet2DConditionModel
    from transformers import AutoTokenizer, CLIPTextModel

    unet = UNet2DConditionModel.from_pretrained(PIPELINE, subfolder="unet").float()
    encoder = CLIPTextModel.from_pretrained(PIPELINE, subfolder="text_encoder").float()
    tokenizer = AutoTokenizer.from_pretrained(PIPELINE / "tokenizer")
    scheduler = DDIMScheduler.from_pretrained(PIPELINE, subfolder="scheduler")
    assert scheduler.config.prediction_type == "epsilon"
    assert scheduler.config.steps_offset == 0
    tokens = tokenizer(["a photo of tulips", ""], padding="max_length", return_tensors="pt")
    states = encoder(tokens.input_ids).last_hidden_state
    for shape in ((16, 16), (10, 24), (22, 16)):
        noise_pred = unet(torch.randn(2, 8, *shape), 500, encoder_hidden_states=states).sample
        assert noise_pred.shape == (2, 8, *shape)


def test_any_text_tokenises_and_reads_back() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(PIPELINE / "tokenizer")
    text = "a zörgö of 花"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True).strip() == text


@pytest.mark.parametrize("name", SCORERS)
def test_scorers_load_through_open_clip(name: str) -> None:
    import open_clip

    folder = f"local-dir:{weights_dir() / name}"
    model, _, preprocess = open_clip.create_model_and_transforms(folder)
    model.eval()
    tokens = open_clip.get_tokenizer(folder)(["a photo of tulips", "a hazy photo of a rose"])
    head = load_file(weights_dir() / name / "aesthetic_head.safetensors")
    size_px = model.visual.image_size
    size_px = size_px if isinstance(size_px, int) else size_px[0]
    image = smooth_photos(2, size_px, size_px)
    with torch.no_grad():
        assert model.encode_text(tokens).shape == (2, 256)
        embedded = F.normalize(model.encode_image((image - 0.5) / 0.25), dim=-1)
    scores = embedded @ head["weight"].float().T + head["bias"].float()
    assert head["weight"].shape == (1, 256)
    assert preprocess is not None
    # open_clip's loader and ours must agree on what the score is.
    assert torch.allclose(scores[:, 0], load_scorer(weights_dir() / name).score(image), atol=1e-3)


def test_round_trip_of_a_smooth_image_beats_29_db(autoencoder: PatchAutoencoder) -> None:
    image = smooth_photos(4, 96, 144)
    assert _psnr_db(_decoded(autoencoder, image), image) > 29


def test_latents_are_about_whitened(autoencoder: PatchAutoencoder, held_out_photos: Tensor) -> None:
    latents = autoencoder.encode(held_out_photos * 2 - 1).latents
    # Thirty-two photos are few: their channel means wander by about a fifth.
    assert latents.mean((0, 2, 3)).abs().max() < 0.6
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 0.5


def test_sides_off_the_factor_are_refused(autoencoder: PatchAutoencoder) -> None:
    with pytest.raises(ValueError, match="100×64 px; both sides must be multiples of 8"):
        autoencoder.encode(torch.zeros(1, 3, 100, 64))


@pytest.mark.parametrize("name", SCORERS)
def test_damage_lowers_the_score_of_a_synthetic_photo(name: str) -> None:
    scorer = load_scorer(weights_dir() / name)
    photo = smooth_photos(8)
    for damage in ("under_exposed", "hazy", "low_contrast"):
        damaged = degrade(damage, photo, torch.ones(8), torch.Generator().manual_seed(0))
        assert scorer.score(damaged).mean() < scorer.score(photo).mean(), damage


@pytest.mark.parametrize("name", SCORERS)
def test_damage_lowers_the_score_of_unseen_photos(name: str, held_out_photos: Tensor) -> None:
    scorer = load_scorer(weights_dir() / name)
    natural = scorer.score(held_out_photos)
    # A dark photo gains by over-exposure, and one hue may suit a tint: those are not for all.
    shares = {"under_exposed": 0.9, "low_contrast": 0.9, "hazy": 0.9, "dull": 0.9}
    shares |= {"over_exposed": 0.7, "cast": 0.7}
    for damage, share in shares.items():
        severity = torch.full((len(natural),), 0.7)
        generator = torch.Generator().manual_seed(0)
        damaged = scorer.score(degrade(damage, held_out_photos, severity, generator))
        assert (damaged < natural).float().mean() >= share, damage


@pytest.mark.parametrize("name", SCORERS)
def test_a_round_trip_costs_little_score(
    name: str, autoencoder: PatchAutoencoder, held_out_photos: Tensor
) -> None:
    scorer = load_scorer(weights_dir() / name)
    change = scorer.score(_decoded(autoencoder, held_out_photos)) - scorer.score(held_out_photos)
    assert -1.5 < float(change.mean()) < 0.5


def test_metrics_name_the_command_of_every_part() -> None:
    metrics = json.loads((weights_dir() / "metrics.json").read_text())
    assert {"autoencoder", "tower", "judge", "referee", "classifier", "unet"} <= set(metrics)
    for part, record in metrics.items():
        assert record["command"].startswith(f"python -m doodl.pocket.train {part}"), part


def test_the_model_card_is_shipped() -> None:
    card = Path(weights_dir() / "MODEL_CARD.md").read_text()
    assert "Creative Commons" in card
