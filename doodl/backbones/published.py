"""The configs of the models whose single files carry none, as their publishers state them.

Source: the config.json files of Stable Diffusion 1.5, 2.1 and XL base 1.0 in diffusers' format.
What is left out has the libraries' default.
"""

from __future__ import annotations

from typing import Any

_CROSS_DOWN = ("CrossAttnDownBlock2D",)
_CROSS_UP = ("CrossAttnUpBlock2D",)

_UNET_1: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "down_block_types": _CROSS_DOWN * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + _CROSS_UP * 3,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
_UNET_2 = {
    **_UNET_1,
    "sample_size": 96,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
    # Its attention overflows in float16 otherwise.
    "upcast_attention": True,
}
_UNET_XL = {
    **_UNET_1,
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D",) + _CROSS_DOWN * 2,
    "up_block_types": _CROSS_UP * 2 + ("UpBlock2D",),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "sample_size": 512,
    "scaling_factor": 0.18215,
    "force_upcast": False,
}
_CLIP_L = {
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
# OpenCLIP's ViT-H/14 without its last layer.
_OPENCLIP_H = {
    **_CLIP_L,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "projection_dim": 512,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
}
_OPENCLIP_G = {
    **_CLIP_L,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "projection_dim": 1280,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
}
_SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "epsilon",
}

PUBLISHED: dict[str, dict[str, dict[str, Any]]] = {
    "sd1": {
        "unet": _UNET_1,
        "vae": _VAE,
        "text_encoder": _CLIP_L,
        "scheduler": _SCHEDULER,
    },
    "sd2": {
        "unet": _UNET_2,
        "vae": {**_VAE, "sample_size": 768},
        "text_encoder": _OPENCLIP_H,
        # 2.1 at 768 px; the 512 px base predicts epsilon.
        "scheduler": {**_SCHEDULER, "prediction_type": "v_prediction"},
    },
    "sdxl": {
        "unet": _UNET_XL,
        "vae": {**_VAE, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
        "text_encoder": _CLIP_L,
        "text_encoder_2": _OPENCLIP_G,
        "scheduler": _SCHEDULER,
    },
}
