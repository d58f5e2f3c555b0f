"""Train what proposes and what judges.

    python -m doodl.pocket.training.train_pairs PART --shared S --out O

Parts: `proposal` on the guide's photos; `judge-reader` and then `judge` on the judge's;
`referee-reader` and then `referee` on the referee's. A reader is a proposal that its judge looks
at photos with. Each part writes O/PART and its state to O/work/PART.pt every five minutes; the
same command goes on from there, and with more --minutes goes on for longer.
"""

import argparse
import json
import logging
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from doodl.pocket.photo_split import LIST_PATH, load_split, read_split
from doodl.pocket.proposal import ProposalConfig, load_proposal, save_network
from doodl.pocket.training.loop import Budget, LoopReport
from doodl.pocket.training.pairs import PairDraw
from doodl.pocket.training.photos import PhotoSet
from doodl.pocket.training.train_pair_judge import PairTraining, train_pair_judge
from doodl.pocket.training.train_proposal import ProposalTraining, train_proposal

logger = logging.getLogger("doodl.pocket.training.train_pairs")


@dataclass(frozen=True)
class Part:
    """One training: the photos it has, the seed it starts from, and the reader it looks with.

    The shapes differ, so that judge and referee do not err alike.
    """

    split: str
    seed: int
    reader: str | None = None
    shape: ProposalConfig = ProposalConfig()  # noqa: RUF009  # frozen


_OTHER_SHAPE = ProposalConfig(width=64, blocks=4, context=96, bins=20)

PARTS = {
    "proposal": Part("train-guide", 3),
    "judge-reader": Part("train-judge", 1),
    "judge": Part("train-judge", 2, "judge-reader"),
    "referee-reader": Part("train-referee", 4, None, _OTHER_SHAPE),
    "referee": Part("train-referee", 5, "referee-reader"),
}


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m doodl.pocket.training.train_pairs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", choices=tuple(PARTS))
    parser.add_argument("--shared", type=Path, required=True, help="the folder that holds photos/")
    parser.add_argument("--split", type=Path, default=LIST_PATH, help="the list of hashes")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10.0, help="work time in all (10)")
    parser.add_argument("--iterations", type=int, help="instead of minutes: reproducible by seed")
    parser.add_argument("--photos-per-step", type=int, help="fewer for a trial")
    parser.add_argument(
        "--proposal", type=Path, metavar="DIR", help="its proposals are candidates of a judge's"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 … (cpu)")
    parser.add_argument("--threads", type=int, default=1, help="more are slower at these sizes (1)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train one part, or go on with it."""
    options = _parse(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("doodl").setLevel(logging.INFO)
    torch.set_num_threads(options.threads)
    part = PARTS[options.part]
    photos = load_split(options.shared, part.split, read_split(options.split))
    if not len(photos):
        raise ValueError(f"{options.split} has no photo of {options.shared} in {part.split}")
    network, report = (_train_proposal if part.reader is None else _train_judge)(
        options, part, photos
    )
    folder = options.out / options.part
    save_network(network, network.config, folder)
    record = {
        "photos": len(photos),
        **vars(report),
        "seed": part.seed,
        "torch": torch.__version__,
        "command": "python -m doodl.pocket.training.train_pairs "
        + shlex.join(sys.argv[1:] if arguments is None else arguments),
    }
    (folder / "metrics.json").write_text(json.dumps(record, indent=2) + "\n")
    logger.info("%s done: %s", options.part, record)


def _train_proposal(
    options: argparse.Namespace, part: Part, photos: PhotoSet
) -> tuple[nn.Module, LoopReport]:
    training = ProposalTraining(part.shape, seed=part.seed)
    if options.photos_per_step:
        training = ProposalTraining(part.shape, options.photos_per_step, seed=part.seed)
    return train_proposal(
        photos,
        options.out / "work" / f"{options.part}.pt",
        Budget(options.minutes, options.iterations),
        training,
        device=options.device,
    )


def _train_judge(
    options: argparse.Namespace, part: Part, photos: PhotoSet
) -> tuple[nn.Module, LoopReport]:
    reader = options.out / str(part.reader)
    if not (reader / "config.json").is_file():
        raise ValueError(f"{reader} holds no trained reader; train {part.reader} first")
    draw = PairDraw(photos=options.photos_per_step) if options.photos_per_step else PairDraw()
    proposal = None if options.proposal is None else load_proposal(options.proposal)
    return train_pair_judge(
        photos,
        load_proposal(reader),
        options.out / "work" / f"{options.part}.pt",
        Budget(options.minutes, options.iterations),
        PairTraining(draw=draw, seed=part.seed),
        propose=None if proposal is None else proposal.to(options.device).propose,
        device=options.device,
    )


if __name__ == "__main__":
    main()
