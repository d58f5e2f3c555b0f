"""What distinguishes the scorers: architecture, photos, and the degradations each is taught."""

from dataclasses import dataclass
from typing import Any

from doodl.pocket.training.captions import CONTEXT_LENGTH, VOCABULARY
from doodl.pocket.training.degrade import DEGRADATIONS

__all__ = ["RECIPES", "ScorerRecipe"]

EMBED_DIM = 256

# Neither the guide nor the judge ever sees these in training, so that an evaluation of the edit
# on them is honest.
UNSEEN = ("faded", "vignetted")

# Colour is harder to learn than light: these are drawn twice as often.
_DRAWN_TWICE = ("grey", "garish", "cast", "tinted_whites", "tinted_midtones")


@dataclass(frozen=True)
class ScorerRecipe:
    """One scorer: a CLIP-style pair of towers with an aesthetic head.

    vision_cfg: open_clip's description of the image tower.
    text_width: width of the two-layer text tower.
    share: the interval of the photos' hash (see split_photos) it is trained on.
    left_out: names in DEGRADATIONS that it never sees in training.
    teach_direction: its gradient is taught to point back to the undamaged photo.
    """

    name: str
    vision_cfg: dict[str, Any]
    text_width: int
    share: tuple[float, float]
    left_out: tuple[str, ...]
    learning_rate: float = 1.2e-3
    teach_direction: bool = False

    @property
    def degradations(self) -> tuple[str, ...]:
        """The names in DEGRADATIONS it is trained on."""
        return tuple(name for name in DEGRADATIONS if name not in self.left_out)

    @property
    def draws(self) -> tuple[str, ...]:
        """The names to draw a degradation from in training, some of them twice."""
        names = self.degradations
        return names + tuple(name for name in names if name in _DRAWN_TWICE)

    @property
    def image_size_px(self) -> int:
        """Side of the square the image tower reads."""
        return self.vision_cfg["image_size"]

    def open_clip_config(self) -> dict[str, Any]:
        """The content of open_clip_config.json."""
        return {
            "model_cfg": {
                "embed_dim": EMBED_DIM,
                "vision_cfg": dict(self.vision_cfg),
                "text_cfg": {
                    "context_length": CONTEXT_LENGTH,
                    "vocab_size": VOCABULARY,
                    "hf_tokenizer_name": "tokenizer in this folder",
                    "width": self.text_width,
                    "heads": 4,
                    "layers": 2,
                },
            },
            "preprocess_cfg": {
                "size": self.image_size_px,
                "mean": [0.5, 0.5, 0.5],
                "std": [0.25, 0.25, 0.25],
                "interpolation": "bilinear",
                "resize_mode": "squash",
            },
        }


def _timm(name: str) -> dict[str, Any]:
    return {"timm_model_name": name, "timm_pool": "", "timm_proj": "linear", "image_size": 64}


RECIPES = {
    "tower": ScorerRecipe(
        name="tower",
        # Of seven small networks the one that learnt soonest both to rank and where to point; and
        # the cheapest: an edit asks it for ten views an iteration.
        vision_cfg=_timm("test_byobnet"),
        text_width=128,
        share=(0.0, 0.5),
        left_out=(*UNSEEN, "posterised"),
        learning_rate=2e-3,
        teach_direction=True,
    ),
    "judge": ScorerRecipe(
        name="judge",
        vision_cfg=_timm("test_resnet"),
        text_width=64,
        share=(0.5, 0.8),
        left_out=(*UNSEEN, "patchy_haze", "flat_midtones", "tinted_midtones"),
        learning_rate=2.5e-3,
    ),
    "referee": ScorerRecipe(
        name="referee",
        # open_clip's own ResNet, with strides averaged and attention at the end.
        vision_cfg={"layers": [1, 2, 2, 1], "width": 20, "image_size": 64},
        text_width=64,
        share=(0.8, 1.0),
        left_out=("hazy", "dull", "low_contrast", "tinted_whites", "mosaic", "blotchy"),
    ),
}
