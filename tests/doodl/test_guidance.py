"""Losses, crops, heads and towers."""

import hashlib
import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from doodl import scores
from doodl.backbones import load_backbone
from doodl.editing.objective import Aim
from doodl.errors import ModelError
from doodl.guidance import towers
from doodl.guidance.aesthetic import aesthetic_loss
from doodl.guidance.crops import CropViews, crop_count, multicrop
from doodl.guidance.guidance import SUBJECT_TOWERS
from doodl.guidance.towers import (
    LAION_G14,
    OPENAI_B16,
    OPENAI_B32,
    OPENAI_L14,
    clamp_straight_through,
    load_tower,
)
from doodl.pocket import weights_dir
from doodl.recipes.config import CropConfig
from doodl.scores import (
    HEADS_FOLDER,
    PINNED_SHA256,
    LinearHead,
    load_aesthetic_head,
    load_scorer,
)
from tests.doodl.tiny_towers import config, tower, write_tower

LAION = Path(__file__).parents[3] / "shared" / "weights"


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize(
    ("direction", "target", "expected"),
    [("up", None, [-3.0, -12.0]), ("down", None, [3.0, 12.0]), ("target", 7.0, [4.0, 5.0])],
)
def test_aesthetic_loss_and_its_gradient_outside_one_to_ten(direction, target, expected):
    scores = torch.tensor([3.0, 12.0], requires_grad=True)
    loss = aesthetic_loss(scores, direction, target)
    assert loss.tolist() == expected
    (grad,) = torch.autograd.grad(loss.sum(), scores)
    assert (grad.abs() == 1).all()


@pytest.mark.parametrize(
    ("direction", "target"), [("sideways", None), ("up", 5.0), ("target", None)]
)
def test_direction_and_target_must_agree(direction, target):
    with pytest.raises(ValueError, match="direction"):
        aesthetic_loss(torch.zeros(1), direction, target)
    with pytest.raises(ValueError, match="direction"):
        Aim(direction, target)


@pytest.mark.parametrize("target", [float("nan"), float("inf")])
def test_target_must_be_a_finite_score(target):
    with pytest.raises(ValueError, match="finite"):
        Aim("target", target)


def test_crops_of_a_photo_do_not_depend_on_its_batch():
    images = torch.rand(2, 3, 40, 60, generator=torch.Generator().manual_seed(0))
    both = multicrop(images, 4, 16, cut_power=0.3, generators=generators(1, 2))
    alone = multicrop(images[1:], 4, 16, cut_power=0.3, generators=generators(2))
    assert both.shape == (8, 3, 16, 16)
    torch.testing.assert_close(both[4:], alone, rtol=0, atol=0)


def test_crop_sides_follow_the_power_law():
    """side = U^p (max - min) + min; its mean over U is (max - min) / (p + 1) + min."""
    image = torch.arange(64.0).view(1, 1, 1, 64).expand(1, 3, 64, 64)
    crops = multicrop(image, 400, 8, cut_power=0.3, generators=generators(0))
    # On a ramp with slope 1, a crop pooled to 8 columns spans 7/8 of its side.
    sides = (crops[:, 0, 0, -1] - crops[:, 0, 0, 0]) * 8 / 7
    assert sides.min() >= 8 - 1e-3
    assert sides.max() <= 64 + 1e-3
    assert sides.mean().item() == pytest.approx((64 - 8) / 1.3 + 8, abs=2.0)


def test_every_pixel_of_a_crop_gets_gradient():
    images = torch.rand(1, 3, 32, 32, requires_grad=True)
    crops = multicrop(images, 64, 16, cut_power=0.3, generators=generators(3))
    (grad,) = torch.autograd.grad(crops.sum(), images)
    assert (grad > 0).float().mean() > 0.95


def test_crops_that_would_all_be_the_image_fall_back_to_one():
    assert crop_count((64, 64), 16, 64) == 1
    assert crop_count((48, 48), 16, 64) == 1
    assert crop_count((64, 96), 16, 64) == 16
    assert crop_count((128, 128), 16, 64) == 16
    images = torch.rand(2, 3, 16, 16)
    crops = multicrop(images, 4, 16, cut_power=0.3, generators=generators(0, 1))
    torch.testing.assert_close(crops, images, rtol=0, atol=0)


def test_no_crops_leave_the_whole_view_and_draw_nothing():
    images = torch.rand(2, 3, 24, 16) * 2 - 1
    draws = generators(0, 1)
    before = [draw.get_state() for draw in draws]
    tower = load_scorer("pocket").tower
    seen = CropViews(images, draws, CropConfig(num_crops=0, whole_view=True)).of(tower)
    assert torch.equal(seen, tower.resize(images))
    assert all(torch.equal(a, b.get_state()) for a, b in zip(before, draws, strict=True))


def test_blown_pixels_have_a_gradient():
    image = torch.tensor([-0.5, 0.5, 1.5], requires_grad=True)
    clamped = clamp_straight_through(image)
    assert clamped.tolist() == [0.0, 0.5, 1.0]
    (grad,) = torch.autograd.grad(clamped.sum(), image)
    assert grad.tolist() == [1.0, 1.0, 1.0]


def test_scorer_takes_any_frame_and_gives_one_score_each():
    guide = load_scorer("pocket")
    scores = guide(torch.rand(2, 3, 96, 160) * 2 - 1)
    assert scores.shape == (2,)
    embeddings = guide.tower(torch.rand(2, 3, 96, 160) * 2 - 1)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2))


def test_guide_and_judge_are_different_networks():
    guide, judge = load_scorer("pocket"), load_scorer("pocket-judge")
    assert [p.shape for p in guide.parameters()] != [p.shape for p in judge.parameters()]


def linear_state(size=8):
    return {"weight": torch.randn(1, size), "bias": torch.randn(1)}


def mlp_state(sizes=(12, 8, 6, 4, 3, 1)):
    state = {}
    for index, (n_in, n_out) in zip((0, 2, 4, 6, 7), pairwise(sizes), strict=True):
        state[f"layers.{index}.weight"] = torch.randn(n_out, n_in)
        state[f"layers.{index}.bias"] = torch.randn(n_out)
    return state


def test_linear_head_is_weight_times_embedding_plus_bias(tmp_path):
    state = linear_state()
    save_file(state, tmp_path / "head.safetensors")
    head = load_aesthetic_head(tmp_path / "head.safetensors")
    embeddings = torch.randn(5, 8)
    expected = (embeddings * state["weight"]).sum(1) + state["bias"]
    torch.testing.assert_close(head(embeddings), expected)
    assert not any(p.requires_grad for p in head.parameters())


def test_mlp_head_is_its_linear_layers_in_a_row(tmp_path):
    state, expected = mlp_state(), torch.randn(7, 12)
    embeddings = expected
    for index in (0, 2, 4, 6, 7):
        expected = expected @ state[f"layers.{index}.weight"].T + state[f"layers.{index}.bias"]
    save_file(state, tmp_path / "mlp.safetensors")
    got = load_aesthetic_head(tmp_path / "mlp.safetensors")(embeddings)
    torch.testing.assert_close(got, expected[:, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["nowhere.safetensors", "pockets"])
def test_absent_head_is_a_clear_error(name):
    with pytest.raises(ModelError, match="pocket"):
        load_aesthetic_head(name)


def test_unpinned_pickle_is_not_opened(tmp_path):
    path = tmp_path / "head.pth"
    torch.save({"weight": torch.zeros(1, 4), "bias": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match=hashlib.sha256(path.read_bytes()).hexdigest()[:12]):
        load_aesthetic_head(path)


def test_tensors_of_another_layout_are_refused(tmp_path):
    save_file({"kernel": torch.zeros(4)}, tmp_path / "head.safetensors")
    with pytest.raises(ModelError, match="kernel"):
        load_aesthetic_head(tmp_path / "head.safetensors")


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    "state",
    [
        {"weight": torch.zeros(2, 8), "bias": torch.zeros(2)},
        {"weight": torch.zeros(1, 8), "bias": torch.zeros(3)},
        {"weight": torch.zeros(8), "bias": torch.zeros(1)},
        without(linear_state(), "bias"),
        without(mlp_state(), "layers.4.bias"),
        without(mlp_state(), "layers.7.weight"),
        mlp_state((12, 8, 6, 4, 3, 2)),
        {**mlp_state(), "layers.2.weight": torch.zeros(6, 9)},
        {**mlp_state(), "layers.2.bias": torch.zeros(1)},
        {**mlp_state(), "layers.0.weight": torch.zeros(96)},
    ],
)
def test_head_whose_shapes_make_no_score_is_refused(tmp_path, state):
    save_file(state, tmp_path / "head.safetensors")
    with pytest.raises(ModelError, match="want weight"):
        load_aesthetic_head(tmp_path / "head.safetensors")


@pytest.mark.parametrize("kept", [0, 5, 60, -1])
def test_cut_off_head_is_a_model_error(tmp_path, kept):
    path = tmp_path / "head.safetensors"
    save_file(linear_state(), path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ModelError, match="cannot be read"):
        load_aesthetic_head(path)


def cut_copy(source, folder, weights):
    """Copy a model folder; of its weights file only the first half."""
    shutil.copytree(source, folder)
    path = folder / weights
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return folder


def test_cut_off_tower_is_a_model_error(tmp_path):
    (weights,) = (p.name for p in (weights_dir() / "tower").glob("open_clip*.safetensors"))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_tower(cut_copy(weights_dir() / "tower", tmp_path / "tower", weights))


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_cut_off_component_is_a_model_error(tmp_path, component):
    pipeline = weights_dir() / "pipeline"
    (weights,) = (pipeline / component).glob("*.safetensors")
    folder = cut_copy(pipeline, tmp_path / "pipeline", f"{component}/{weights.name}")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_backbone(folder)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"trained_betas": [0.1, 0.2]}, "trained_betas"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ({"prediction_type": "sample"}, "prediction_type"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "flow matching"),
        ({"use_flow_sigmas": True}, "flow matching"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule"),
    ],
)
def test_scheduler_that_is_not_ddims_is_refused_at_load(tmp_path, change, named):
    folder = tmp_path / "pipeline"
    shutil.copytree(weights_dir() / "pipeline", folder)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=named):
        load_backbone(folder)


@pytest.mark.skipif(not LAION.is_dir(), reason="the published LAION heads are not here")
@pytest.mark.parametrize(
    ("name", "dimension"),
    [
        ("sa_0_4_vit_b_16_linear.pth", 512),
        ("sa_0_4_vit_b_32_linear.pth", 512),
        ("sa_0_4_vit_l_14_linear.pth", 768),
        ("sac+logos+ava1-l14-linearMSE.pth", 768),
    ],
)
def test_published_laion_heads_load_and_are_affine(name, dimension):
    path = LAION / name
    assert hashlib.sha256(path.read_bytes()).hexdigest() in PINNED_SHA256
    head = load_aesthetic_head(path)
    a, b = torch.randn(2, 3, dimension, generator=torch.Generator().manual_seed(0))
    # Without activations even the MLP is affine: f((a+b)/2) = (f(a)+f(b))/2.
    torch.testing.assert_close(head((a + b) / 2), (head(a) + head(b)) / 2, rtol=1e-4, atol=1e-4)
    assert isinstance(head, LinearHead) == ("linear.pth" in name)


@pytest.mark.skipif(not LAION.is_dir(), reason="the published LAION heads are not here")
def test_published_heads_of_one_tower_rank_embeddings_alike(monkeypatch):
    """Trained apart, on other ratings: if a layout were misread they would agree by chance only.

    Two unrelated directions in 768 dimensions have a cosine of 0 +- 0.036.
    """
    monkeypatch.setenv(HEADS_FOLDER, str(LAION))
    v1, v2 = (load_aesthetic_head(name) for name in ("laion-v1-l14", "laion-v2"))
    origin = torch.zeros(1, 768, requires_grad=True)
    directions = [torch.autograd.grad(head(origin).sum(), origin)[0][0] for head in (v1, v2)]
    first, second = (direction / direction.norm() for direction in directions)
    assert float(first @ second) > 0.2
    # Unit embeddings from the one head's worst to its best: the other ranks them the same way.
    for head, direction in ((v1, second), (v2, first)):
        start = torch.nn.functional.normalize(torch.randn(768), dim=0)
        path = torch.stack([start + step * direction for step in (-1.0, -0.5, 0.0, 0.5, 1.0)])
        scores = head(torch.nn.functional.normalize(path, dim=1))
        assert (scores.diff() > 0).all()


@pytest.mark.skipif(not LAION.is_dir(), reason="the published LAION heads are not here")
@pytest.mark.parametrize("name", ["laion-v1-b32", "laion-v1-l14"])
def test_published_linear_heads_rank_by_their_weights(monkeypatch, name):
    monkeypatch.setenv(HEADS_FOLDER, str(LAION))
    head = load_aesthetic_head(name)
    best = torch.nn.functional.normalize(head.linear.weight, dim=1)
    ladder = torch.nn.functional.normalize(
        torch.cat([best * step + 0.3 * torch.roll(best, 1, 1) for step in (-1.0, 0.0, 1.0)]), dim=1
    )
    assert (head(ladder).diff() > 0).all()


def test_a_named_head_that_is_not_there_says_where_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv(HEADS_FOLDER, str(tmp_path))
    with pytest.raises(ModelError, match=r"sa_0_4_vit_l_14_linear.*aesthetic-predictor"):
        load_scorer("laion-v1-l14")


@pytest.mark.skipif(not LAION.is_dir(), reason="the published LAION heads are not here")
def test_laions_ensemble_is_of_both_heads_with_the_papers_weights(monkeypatch, tmp_path):
    monkeypatch.setenv(HEADS_FOLDER, str(LAION))
    stand_ins = {
        OPENAI_L14: tower(tmp_path / "l", size_px=32, embed_dim=768),
        OPENAI_B32: tower(tmp_path / "b", size_px=32, embed_dim=512),
    }
    monkeypatch.setattr(scores, "load_tower", lambda name, **options: stand_ins[name])
    ensemble = load_scorer("laion-v1")
    images = torch.rand(2, 3, 40, 40) * 2 - 1
    by_hand = sum(
        weight * load_aesthetic_head(name)(stand_ins[clip](images))
        for name, clip, weight in (
            ("laion-v1-l14", OPENAI_L14, 0.25),
            ("laion-v1-b32", OPENAI_B32, 0.75),
        )
    )
    torch.testing.assert_close(ensemble(images), by_hand)


def test_a_local_head_sits_on_the_tower_it_names(tmp_path):
    folder = write_tower(tmp_path / "tower", embed_dim=24)
    head = tmp_path / "mine.safetensors"
    save_file(linear_state(24), head)
    scorer = load_scorer(f"{folder}@{head}")
    assert scorer(torch.zeros(2, 3, 50, 40)).shape == (2,)
    beside = folder / "aesthetic_head.safetensors"
    shutil.copy(head, beside)
    assert load_scorer(str(beside)).tower.size_px == scorer.tower.size_px
    with pytest.raises(ModelError, match="TOWER@"):
        load_scorer(str(head))  # 24 numbers are no published tower's
    save_file(linear_state(10), head)
    with pytest.raises(ModelError, match=r"takes embeddings of 10, its tower .* gives 24"):
        load_scorer(f"{folder}@{head}")


def test_weights_that_were_not_pulled_say_how_to_pull_them(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a, **k: None)
    with pytest.raises(ModelError, match=r"hf download laion/CLIP-ViT-g-14-laion2B-s12B-b42K"):
        load_tower(LAION_G14)


@pytest.mark.parametrize("model", ["ViT-L-14", "ViT-B-32"])
def test_openais_weights_on_a_model_without_quick_gelu_are_an_error(model):
    with pytest.raises(ModelError, match=rf"QuickGELU.* Use {model}-quickgelu"):
        load_tower(model, pretrained="openai")


@pytest.mark.parametrize("name", [OPENAI_L14, OPENAI_B32, OPENAI_B16, *SUBJECT_TOWERS])
def test_the_towers_that_guides_use_match_their_weights(monkeypatch, name):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a, **k: None)
    with pytest.raises(ModelError, match="have not been pulled"):
        load_tower(name)


def test_open_clips_own_warning_of_the_activation_is_an_error(monkeypatch, tmp_path):
    """Its check, not ours: its real factory, on a small model under a published name."""
    from open_clip import factory

    folder = write_tower(tmp_path / "small")
    monkeypatch.setitem(factory._MODEL_CONFIGS, "RN50", config()["model_cfg"])
    weights = folder / "open_clip_model.safetensors"
    monkeypatch.setattr(factory, "download_pretrained", lambda *a, **k: str(weights))
    monkeypatch.setattr(towers, "_check_tag", lambda *a: None)
    with pytest.raises(ModelError, match=r"QuickGELU mismatch.* Use RN50-quickgelu"):
        load_tower("RN50", pretrained="openai")
    # From a file, of which open_clip knows no activation, the same weights load.
    assert load_tower("RN50", pretrained=str(weights)).size_px == 32
