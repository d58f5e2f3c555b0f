"""Latent diffusion models of several kinds, one interface: load one with `load_backbone`."""

from doodl.backbones.backbone import Backbone
from doodl.backbones.loading import load_backbone

__all__ = ["Backbone", "load_backbone"]
