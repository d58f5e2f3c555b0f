"""Train a scorer (guide, judge or referee) on graded degradations and captions."""

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedTokenizerFast

from doodl.pocket.autoencoder import PatchAutoencoder
from doodl.pocket.scorer import Scorer, tokenize
from doodl.pocket.training.attack import attack
from doodl.pocket.training.captions import caption
from doodl.pocket.training.loop import Average, Budget, Checkpointed, LoopReport, autocast, run_loop
from doodl.pocket.training.photos import PhotoSet, random_crops
from doodl.pocket.training.recipes import ScorerRecipe
from doodl.pocket.training.versions import Versions, make_versions

__all__ = ["train_scorer"]

# From this share of the budget on, batches also hold round trips and attacked photos.
_ROBUST_FROM = 0.35
_ROUND_TRIP_SHARE = 0.15
_ROUND_TRIP_COST = 0.3
_ATTACK_SHARE = 0.6
# Every other batch teaches where the gradient must point, from the start: a tower that has first
# learnt to rank by texture hardly learns it any more. The cells are what an edit's blur leaves.
_DIRECTION_EVERY = 2
_DIRECTION_CELL_PX = 16
_DIRECTION_WEIGHT = 2.0


def train_scorer(
    recipe: ScorerRecipe,
    photos: PhotoSet,
    tokenizer: PreTrainedTokenizerFast,
    work: Path,
    budget: Budget,
    *,
    autoencoder: PatchAutoencoder | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    photos_per_batch: int = 24,
) -> tuple[Scorer, LoopReport]:
    """A trained scorer (float32, eval mode) and its report.

    Args:
        photos: its own share of the photos (split_photos by recipe.share).
        autoencoder: teaches that a round trip is no damage, and makes the attacked photos; without
            one, attacks are made on pixels only.
    """
    device = torch.device(device)
    torch.manual_seed(seed)
    scorer = Scorer(recipe.open_clip_config()).to(device).to(memory_format=torch.channels_last)
    if autoencoder is not None:
        autoencoder = autoencoder.to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        scorer.parameters(), lr=recipe.learning_rate, weight_decay=0.05, betas=(0.9, 0.98)
    )
    average = Average(scorer)

    def step_fn(step: int, progress: float) -> tuple[Tensor, dict[str, float]]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rng = random.Random(seed * 1_000_003 + step)
        chosen = torch.randint(len(photos), (photos_per_batch,), generator=generator).tolist()
        crops = random_crops(photos, chosen, (128, 128), generator, min_scale=0.5).to(device)
        versions = make_versions(crops, recipe.draws, generator)
        image, target = versions.image, versions.target
        robust = progress >= _ROBUST_FROM
        if robust and autoencoder is not None and rng.random() < _ROUND_TRIP_SHARE:
            with torch.no_grad(), autocast(device):
                decoded = autoencoder(image * 2 - 1).sample.float()
            image = (decoded / 2 + 0.5).clamp(0, 1)
            target = target - _ROUND_TRIP_COST
        victims = len(crops) // 2 if robust and rng.random() < _ATTACK_SHARE else 0
        if victims:
            scorer.eval()
            attacked, deserved = attack(scorer, crops[:victims], autoencoder, generator)
            image = torch.cat((image, attacked))
            target = torch.cat((target, deserved))
        image = _zoomed(image, rng)
        scorer.train()
        with autocast(device):
            embeddings = scorer.embed(image)
        scores = (embeddings @ scorer.head.weight.T + scorer.head.bias)[:, 0]
        regression = F.huber_loss(scores, target, delta=1.0)
        count = 4 * photos_per_batch
        ranking = ranking_loss(scores[:count], target[:count], photos_per_batch)
        labels = [photos.labels[i] for i in chosen]
        contrast = _caption_loss(scorer, embeddings, versions, labels, tokenizer, rng)
        loss = regression + ranking + 0.4 * contrast
        numbers = {
            "regression": float(regression.detach()),
            "ranking": float(ranking.detach()),
            "contrast": float(contrast.detach()),
        }
        if recipe.teach_direction and step % _DIRECTION_EVERY == 0:
            direction = direction_loss(scorer, versions)
            loss = loss + _DIRECTION_WEIGHT * direction
            numbers["direction"] = float(direction.detach())
        return loss, numbers

    parts = {"network": scorer, "optimizer": optimizer, "average": average}
    checkpoint = Checkpointed(work / f"{recipe.name}.pt", parts)
    report = run_loop(
        step_fn,
        optimizer,
        budget,
        checkpoint,
        averages={"network": (average, scorer)},
        on_cpu=device.type == "cpu",
    )
    average.copy_to(scorer)
    return scorer.eval().requires_grad_(False), report


def direction_loss(scorer: Scorer, versions: Versions) -> Tensor:
    """1 - cosine between the score's gradient and the way back to the undamaged photo.

    Both as an edit sees them: means over cells of 16 px, per channel. A score that only ranks may
    rise in directions that mend nothing; this one must rise toward the photo as it was.
    Source: the idea of gradient-step denoisers (arXiv:2110.03220), whose network is a gradient.
    """
    rows = versions.toned.nonzero()[:, 0]
    if not len(rows):
        return versions.image.new_zeros(())
    image = versions.image[rows].requires_grad_(True)
    scorer.eval()  # with the batch's own statistics, one photo's gradient would hold the others'
    with sdpa_kernel(SDPBackend.MATH):  # the fused attention has no second derivative
        (gradient,) = torch.autograd.grad(scorer.score(image).sum(), image, create_graph=True)
    scorer.train()
    gradient = F.avg_pool2d(gradient, _DIRECTION_CELL_PX).flatten(1)
    back = F.avg_pool2d(versions.undamaged[rows] - image.detach(), _DIRECTION_CELL_PX).flatten(1)
    # Hardly damaged: the way back is noise.
    weight = (back.square().mean(1).sqrt() / 0.03).clamp(max=1)
    cosine = F.cosine_similarity(gradient, back, dim=1, eps=1e-12)
    return ((1 - cosine) * weight).sum() / weight.sum().clamp_min(1e-3)


def ranking_loss(scores: Tensor, target: Tensor, photos: int) -> Tensor:
    """Logistic loss over pairs of versions of one photo, weighted by their target's difference.

    Args:
        scores, target: (V · photos,), the versions of photo i at i, photos + i, 2·photos + i, …
    """
    s, t = scores.view(-1, photos), target.view(-1, photos)
    difference = t[:, None] - t[None, :]
    weight = difference.clamp(0, 1) * (difference > 0.15)
    losses = F.softplus(-3 * (s[:, None] - s[None, :]))
    return (losses * weight).sum() / weight.sum().clamp_min(1e-3)


def _zoomed(image: Tensor, rng: random.Random) -> Tensor:
    """The whole frame, or, half of the time, one part of it: an edit scores crops too."""
    if rng.random() < 0.5:
        return image
    side = rng.randrange(64, 121, 8)
    top, left = rng.randint(0, 128 - side), rng.randint(0, 128 - side)
    return image[..., top : top + side, left : left + side]


def _caption_loss(
    scorer: Scorer,
    embeddings: Tensor,
    versions: Versions,
    labels: list[str],
    tokenizer: PreTrainedTokenizerFast,
    rng: random.Random,
) -> Tensor:
    """CLIP's symmetric loss; images with the same caption are all right answers."""
    count = len(versions.damage)
    texts = [caption(labels[i % len(labels)], rng, versions.damage[i]) for i in range(count)]
    unique = sorted(set(texts))
    device = embeddings.device
    own = torch.tensor([unique.index(text) for text in texts], device=device)
    with autocast(device):
        text_embeddings = scorer.embed_text(tokenize(tokenizer, unique).to(device))
    scale = scorer.clip.logit_scale.exp().clamp(max=50)
    logits = scale * embeddings[:count] @ text_embeddings.T
    images_of_text = F.one_hot(own, len(unique)).T.float()
    images_of_text = images_of_text / images_of_text.sum(1, keepdim=True)
    by_image = F.cross_entropy(logits, own)
    by_text = -(images_of_text * logits.T.log_softmax(1)).sum(1).mean()
    return (by_image + by_text) / 2
