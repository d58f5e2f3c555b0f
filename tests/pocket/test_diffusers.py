"""The pocket model's folder in diffusers' own pipeline, by whoever knows diffusers."""

import numpy as np
import torch
from diffusers import DiffusionPipeline

import doodl.pocket.autoencoder  # noqa: F401  the class that the folder's model_index.json names
from doodl.backbones import load_backbone
from doodl.pocket import weights_dir
from doodl.pocket.autoencoder import PatchAutoencoder


def test_the_folder_makes_a_picture_in_diffusers_pipeline():
    folder = weights_dir() / "pipeline"
    pipeline = DiffusionPipeline.from_pretrained(
        folder, local_files_only=True, torch_dtype=torch.float32
    )
    assert pipeline.vae_scale_factor == 8
    picture = pipeline(
        "a photo of a rose", num_inference_steps=2, height=64, width=64, output_type="np",
        generator=torch.Generator().manual_seed(0),
    ).images[0]  # fmt: skip
    assert picture.shape == (64, 64, 3)
    assert np.isfinite(picture).all()
    assert picture.std() > 0.02


def test_its_networks_are_those_that_we_load():
    folder = weights_dir() / "pipeline"
    theirs = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    ours = load_backbone("pocket")
    for mine, other in ((ours.unet, theirs.unet), (ours.vae, theirs.vae)):
        for name, tensor in mine.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name]), name


def test_the_length_of_block_out_channels_says_the_factor():
    config = PatchAutoencoder().config
    assert 2 ** (len(config["block_out_channels"]) - 1) == config["downsampling_factor"]
