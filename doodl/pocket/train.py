"""Train the pocket model: python -m doodl.pocket.train all --photos A.parquet --out DIR.

Parts: autoencoder, tower (the guide), judge, referee, unet, classifier, or all of them in that
order. Each part writes its own sub-folder and its entry of metrics.json; state to resume from is
kept in OUT/work. The unet needs the autoencoder; the scorers use it for round trips if it is there.
"""

import argparse
import json
import logging
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from doodl.pocket.autoencoder import PatchAutoencoder
from doodl.pocket.scorer import save_scorer
from doodl.pocket.training.captions import load_tokenizer, train_tokenizer
from doodl.pocket.training.loop import Budget, LoopReport
from doodl.pocket.training.measure import measure_scorer
from doodl.pocket.training.photos import PhotoSet, load_photos, split_photos
from doodl.pocket.training.recipes import RECIPES
from doodl.pocket.training.train_autoencoder import reconstruction_db, train_autoencoder
from doodl.pocket.training.train_classifier import (
    accuracy,
    flowers_of,
    save_classifier,
    train_classifier,
)
from doodl.pocket.training.train_tower import train_scorer
from doodl.pocket.training.train_unet import save_pipeline, train_unet, validation_loss

PARTS = ("autoencoder", "tower", "judge", "referee", "unet", "classifier")
# How `all` shares its minutes.
_SHARES = {
    "autoencoder": 0.14,
    "tower": 0.25,
    "judge": 0.13,
    "referee": 0.1,
    "unet": 0.33,
    "classifier": 0.05,
}

logger = logging.getLogger("doodl.pocket.train")


@dataclass(frozen=True)
class Job:
    """What one part's training works from."""

    photos: PhotoSet
    held_out: PhotoSet
    tokenizer: PreTrainedTokenizerFast
    out: Path
    budget: Budget
    seed: int
    device: torch.device
    start_from: Path | None = None

    @property
    def work(self) -> Path:
        """Where checkpoints are kept."""
        return self.out / "work"

    def autoencoder(self) -> PatchAutoencoder | None:
        """The autoencoder trained before, if there is one."""
        folder = self.out / "pipeline" / "vae"
        if not (folder / "config.json").is_file():
            return None
        network = PatchAutoencoder.from_pretrained(folder, torch_dtype=torch.float32)
        return network.eval().requires_grad_(False).to(self.device)


def _train_autoencoder(job: Job) -> tuple[dict[str, object], LoopReport]:
    network, report = train_autoencoder(
        job.photos, job.work, job.budget, seed=job.seed, device=job.device
    )
    metrics: dict[str, object] = {}
    if len(job.held_out):
        metrics["round_trip_db"] = round(reconstruction_db(network, job.held_out), 2)
    network.cpu().half().save_pretrained(job.out / "pipeline" / "vae")
    return metrics, report


def _scorer_part(name: str) -> Callable[[Job], tuple[dict[str, object], LoopReport]]:
    recipe = RECIPES[name]

    def train(job: Job) -> tuple[dict[str, object], LoopReport]:
        share = split_photos(job.photos, *recipe.share)
        if not len(share):
            raise ValueError(f"no photo falls into the share of {name}; give more photos")
        autoencoder = job.autoencoder()
        # Its own seed: the scorers must not start alike.
        seed = job.seed + 100 * (1 + list(RECIPES).index(name))
        scorer, report = train_scorer(
            recipe,
            share,
            job.tokenizer,
            job.work,
            job.budget,
            autoencoder=autoencoder,
            seed=seed,
            device=job.device,
        )
        metrics: dict[str, object] = {"training_photos": len(share)}
        if len(job.held_out):
            metrics |= measure_scorer(scorer, recipe, job.held_out, job.tokenizer, autoencoder)
        save_scorer(scorer, recipe.open_clip_config(), job.tokenizer, job.out / name)
        return metrics, report

    return train


def _train_unet(job: Job) -> tuple[dict[str, object], LoopReport]:
    autoencoder = job.autoencoder()
    if autoencoder is None:
        raise ValueError(
            f"{job.out / 'pipeline' / 'vae'} holds no autoencoder; train that part first"
        )
    network, report = train_unet(
        job.photos,
        autoencoder,
        job.tokenizer,
        job.work,
        job.budget,
        seed=job.seed,
        device=job.device,
        start_from=None if job.start_from is None else job.start_from / "pipeline",
    )
    metrics: dict[str, object] = {}
    if len(job.held_out):
        metrics = {
            f"noise_mse_{key}": round(
                validation_loss(
                    network, job.held_out, autoencoder, job.tokenizer, with_captions=flag
                ),
                4,
            )
            for key, flag in (("captions", True), ("no_captions", False))
        }
    save_pipeline(network.cpu(), autoencoder.cpu(), job.tokenizer, job.out / "pipeline")
    return metrics, report


def _train_classifier(job: Job) -> tuple[dict[str, object], LoopReport]:
    network, report = train_classifier(
        job.photos,
        job.work,
        job.budget,
        autoencoder=job.autoencoder(),
        seed=job.seed,
        device=job.device,
    )
    metrics: dict[str, object] = {"training_photos": len(flowers_of(job.photos))}
    if len(job.held_out):
        metrics["accuracy"] = accuracy(network, job.held_out)
    save_classifier(network, job.out / "classifier")
    return metrics, report


_TRAINERS: dict[str, Callable[[Job], tuple[dict[str, object], LoopReport]]] = {
    "autoencoder": _train_autoencoder,
    "unet": _train_unet,
    "classifier": _train_classifier,
    **{name: _scorer_part(name) for name in RECIPES},
}


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m doodl.pocket.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", choices=(*PARTS, "all"))
    parser.add_argument("--photos", type=Path, nargs="+", required=True, metavar="A.parquet")
    parser.add_argument(
        "--held-out",
        type=Path,
        nargs="*",
        default=[],
        metavar="B.parquet",
        help="photos for the metrics only",
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 … (auto)")
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="work time (10); `all` shares it"
    )
    parser.add_argument("--iterations", type=int, help="instead of minutes: reproducible by seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="more are slower at these sizes (1)")
    parser.add_argument(
        "--start-from",
        type=Path,
        metavar="DIR",
        help="the unet goes on from the weights of another output folder",
    )
    parser.add_argument("--limit", type=int, help="read at most this many photos of each file")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the parts asked for; a part whose training was cut short goes on."""
    options = _parse(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("doodl").setLevel(logging.INFO)
    torch.set_num_threads(options.threads)
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    photos = load_photos(options.photos, options.limit)
    held_out = load_photos(options.held_out, options.limit)
    tokenizer_folder = options.out / "pipeline" / "tokenizer"
    if (tokenizer_folder / "tokenizer.json").is_file():
        tokenizer = load_tokenizer(tokenizer_folder)
    else:
        tokenizer = train_tokenizer(photos.labels, tokenizer_folder)
    for part in PARTS if options.part == "all" else (options.part,):
        minutes = options.minutes * (_SHARES[part] if options.part == "all" else 1)
        job = Job(
            photos,
            held_out,
            tokenizer,
            options.out,
            Budget(minutes, options.iterations),
            options.seed,
            torch.device(device),
            options.start_from,
        )
        metrics, report = _TRAINERS[part](job)
        record = {
            **metrics,
            "iterations": report.iterations,
            "minutes": round(report.minutes, 2),
            "losses": {name: round(value, 4) for name, value in report.losses.items()},
            "seed": options.seed,
            "device": str(device),
            "threads": options.threads,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "command": "python -m doodl.pocket.train "
            + shlex.join(sys.argv[1:] if arguments is None else arguments),
        }
        _record(options.out / "metrics.json", part, record)
        logger.info("%s done: %s", part, {k: v for k, v in record.items() if k != "per_type"})


def _record(path: Path, part: str, record: dict[str, object]) -> None:
    """Set one part's entry of metrics.json."""
    metrics = json.loads(path.read_text()) if path.is_file() else {}
    metrics[part] = record
    path.write_text(json.dumps(metrics, indent=2) + "\n")


if __name__ == "__main__":
    main()
