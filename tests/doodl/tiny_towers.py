"""Small open_clip models with random weights, made from configs: towers of several sizes."""

import json

import torch
from open_clip import CLIP
from safetensors.torch import save_file

from doodl.guidance.towers import ImageTower, load_tower


def config(size_px=32, embed_dim=24, context_length=16):
    return {
        "model_cfg": {
            "embed_dim": embed_dim,
            "vision_cfg": {
                "layers": 2, "width": 32, "head_width": 16, "patch_size": 8,
                "image_size": size_px,
            },
            "text_cfg": {"context_length": context_length, "width": 32, "heads": 2, "layers": 2},
        },
        "preprocess_cfg": {
            "size": size_px, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3],
            "interpolation": "bicubic", "resize_mode": "squash",
        },
    }  # fmt: skip


def write_tower(folder, seed=0, **options):
    """Write an open_clip folder with random weights and return its path."""
    settings = config(**options)
    cfg = settings["model_cfg"]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        clip = CLIP(cfg["embed_dim"], {**cfg["vision_cfg"]}, {**cfg["text_cfg"]})
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    save_file(clip.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def tower(folder, seed=0, **options) -> ImageTower:
    return load_tower(write_tower(folder, seed, **options))
