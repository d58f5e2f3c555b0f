"""The pair judge and the proposal: they train, resume, load, learn a little, and are measured."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from doodl.delivery.transfer.apply import apply_transfer
from doodl.pocket import photo_split
from doodl.pocket.pair_judge import PairJudge, PairJudgeConfig, Verdict, load_pair_judge
from doodl.pocket.proposal import (
    Proposal,
    ProposalConfig,
    changed,
    load_proposal,
    moments,
    seen_colours,
)
from doodl.pocket.training import measure_pairs, train_pairs
from doodl.pocket.training.damage import draw_damage
from doodl.pocket.training.loop import Budget
from doodl.pocket.training.measure_pairs import (
    PickCases,
    Wariness,
    always,
    make_cases,
    perfect,
    pick,
    summary,
)
from doodl.pocket.training.pairs import PairBatch
from doodl.pocket.training.photos import PhotoSet
from doodl.pocket.training.train_pair_judge import PairLoss, pair_loss
from doodl.pocket.training.train_proposal import ProposalTraining, colour_loss, train_proposal
from tests.pocket.conftest import smooth_photos

_SMALL = ProposalConfig(width=16, blocks=1, context=16, bins=8, dropout=0.0)


def _judge(seed: int = 0) -> PairJudge:
    torch.manual_seed(seed)
    config = PairJudgeConfig(reader=_SMALL, width=16, blocks=1, context=16)
    return PairJudge(config).eval().requires_grad_(False)


def _photos(count: int, height: int = 64, width: int = 64) -> PhotoSet:
    pixels = tuple((photo * 255).byte() for photo in smooth_photos(count, height, width))
    return PhotoSet(pixels, ("",) * count, tuple(f"a/{i}" for i in range(count)))


@pytest.fixture(scope="module")
def shared(tiny_parquet: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as ../shared is, with its own list of which photo serves what."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "photos").mkdir()
    (folder / "photos" / "flowers-train.parquet").write_bytes(tiny_parquet.read_bytes())
    photo_split.main(["--shared", str(folder), "--out", str(folder / "split.json")])
    return folder


def _train(part: str, shared: Path, out: Path, iterations: int, *more: str) -> dict[str, object]:
    threads = torch.get_num_threads()
    arguments = [part, "--shared", str(shared), "--split", str(shared / "split.json")]
    arguments += ["--out", str(out), "--iterations", str(iterations), "--photos-per-step", "2"]
    try:
        train_pairs.main([*arguments, "--threads", str(threads), *more])
    finally:
        torch.set_num_threads(threads)
    record: dict[str, object] = json.loads((out / part / "metrics.json").read_text())
    return record


def test_parts_train_resume_load_and_are_measured(shared: Path, tmp_path: Path) -> None:
    assert _train("proposal", shared, tmp_path, 1)["iterations"] == 1
    assert _train("proposal", shared, tmp_path, 2)["iterations"] == 2
    assert _train("judge-reader", shared, tmp_path, 1)["iterations"] == 1
    proposal = ("--proposal", str(tmp_path / "proposal"))
    assert _train("judge", shared, tmp_path, 1, *proposal)["iterations"] == 1
    assert _train("judge", shared, tmp_path, 2, *proposal)["iterations"] == 2
    photo = smooth_photos(2, 50, 70)
    assert load_proposal(tmp_path / "proposal").propose(photo).shape == photo.shape
    verdict = load_pair_judge(tmp_path / "judge")(photo, photo[:, None].expand(-1, 3, -1, -1, -1))
    assert verdict.gain.shape == verdict.nearer.shape == (2, 3)
    written = tmp_path / "table.md"
    measure_pairs.main(
        ["--shared", str(shared), "--split", str(shared / "split.json"), "--per-kind", "1",
         "--untouched", "2", "--judge", str(tmp_path / "judge"), *proposal, "--out", str(written)]
    )  # fmt: skip
    assert "| judge | untouched | 2 |" in written.read_text()


def test_a_judge_without_its_reader_says_what_to_train(shared: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train referee-reader first"):
        _train("referee", shared, tmp_path, 1)


def test_a_list_of_other_photos_is_refused(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "split.json").write_text('{"train-guide": ["0000000000000000"]}')
    arguments = ["proposal", "--shared", str(shared), "--split", str(tmp_path / "split.json")]
    with pytest.raises(ValueError, match="has no photo of"):
        train_pairs.main([*arguments, "--out", str(tmp_path)])


def test_judge_and_referee_never_share_photos_shapes_or_seeds() -> None:
    parts = train_pairs.PARTS
    assert parts["judge"].split == parts["judge-reader"].split
    assert parts["referee"].split == parts["referee-reader"].split
    assert len({parts[name].split for name in ("proposal", "judge", "referee")}) == 3
    assert len({part.seed for part in parts.values()}) == len(parts)
    assert parts["judge-reader"].shape != parts["referee-reader"].shape


@pytest.mark.parametrize("shape", [(64, 64), (48, 90), (144, 100)])
def test_the_photo_itself_gains_nothing(shape: tuple[int, int]) -> None:
    photo = smooth_photos(3, *shape)
    candidates = torch.stack((photo, photo**2, photo), 1)
    verdict = _judge()(photo, candidates)
    assert verdict.gain[:, [0, 2]].abs().max() < 1e-5
    assert verdict.gain[:, 1].abs().min() > 1e-5


def test_verdicts_depend_on_neither_the_other_candidates_nor_the_batch() -> None:
    photo = smooth_photos(3, 64, 64)
    candidates = torch.stack((photo**2, photo.sqrt(), 1 - photo), 1)
    together, alone = _judge()(photo, candidates), _judge()(photo[1:2], candidates[1:2, 2:])
    assert (together.gain[1, 2] - alone.gain[0, 0]).abs() < 1e-4
    assert (together.nearer[1, 2] - alone.nearer[0, 0]).abs() < 1e-4


def test_the_gain_is_the_mean_of_its_map_and_has_a_gradient() -> None:
    photo = smooth_photos(2, 64, 64)
    candidates = (0.8 * photo)[:, None].clone().requires_grad_(True)
    verdict = _judge()(photo, candidates)
    assert (verdict.map.mean((2, 3)) - verdict.gain).abs().max() < 1e-5
    (gradient,) = torch.autograd.grad(verdict.gain.sum(), candidates)
    assert gradient.abs().sum() > 0


def test_an_untrained_proposal_leaves_photos_as_they_are() -> None:
    photo = smooth_photos(2, 90, 60)
    assert (Proposal(_SMALL).propose(photo) - photo).abs().max() < 1e-5


def test_the_proposals_transfer_is_what_it_proposes() -> None:
    network = Proposal(_SMALL)
    torch.nn.init.normal_(network.local.bias, std=0.1)
    photo = 0.3 + 0.3 * smooth_photos(2, 64, 64)
    carried = apply_transfer(network.transfer(photo), photo * 2 - 1)
    assert ((carried + 1) / 2 - network.propose(photo)).abs().max() < 1e-5
    assert (network.propose(photo) - photo).abs().max() > 0.01


def test_a_proposal_learns_to_undo_what_it_is_shown(tmp_path: Path) -> None:
    training = ProposalTraining(_SMALL, photos=12, untouched=0.0, learning_rate=1e-2)
    network, _ = train_proposal(_photos(4), tmp_path / "a.pt", Budget(iterations=80), training)
    clean = smooth_photos(12)
    damaged = draw_damage(clean, torch.Generator().manual_seed(7))
    left = colour_loss(network.propose(damaged), clean) / colour_loss(damaged, clean)
    assert left < 0.95


def test_colour_loss_is_least_at_the_goal() -> None:
    photo = smooth_photos(2, 32, 32)
    assert colour_loss(photo, photo) < colour_loss(0.9 * photo, photo)
    assert colour_loss(0.9 * photo, photo) < colour_loss(0.7 * photo, photo)


def test_histograms_hold_all_pixels() -> None:
    seen = seen_colours(smooth_photos(2, 64, 64))
    histogram = moments(seen, 8)[:, :24].view(2, 3, 8)
    shares = (histogram / 2).square() - 1e-4
    assert (shares.sum(2) - 1).abs().max() < 1e-4


def test_no_coefficients_change_nothing() -> None:
    photo = smooth_photos(2, 32, 48)
    assert (changed(photo, torch.zeros(2, 18, 8, 8)) - photo).abs().max() < 1e-6


def _batch(gain: Tensor) -> PairBatch:
    photo = torch.zeros(len(gain), 3, 8, 8)
    regions = gain[..., None, None].expand(-1, -1, 8, 8)
    return PairBatch(photo, photo, photo[:, None], gain, regions)


def _verdict(gain: Tensor) -> Verdict:
    return Verdict(gain, 10 * gain, gain[..., None, None].expand(-1, -1, 8, 8))


def test_the_loss_is_least_for_the_right_gains() -> None:
    gain = torch.tensor([[0.0, 2.0, -1.0], [0.0, -3.0, -5.0]])
    batch = _batch(gain)
    for wrong in (gain * 0, -gain, gain.flip(1)):
        right_parts = pair_loss(_verdict(gain), batch, PairLoss())
        wrong_parts = pair_loss(_verdict(wrong), batch, PairLoss())
        assert all(right_parts[name] < wrong_parts[name] for name in right_parts)


def test_the_listwise_loss_asks_for_order_not_for_size() -> None:
    gain = torch.tensor([[0.0, 2.0, -1.0]])
    parts = pair_loss(_verdict(gain + 5), _batch(gain), PairLoss())
    assert parts["listwise"] < 1e-5
    assert parts["regression"] > 1


def _cases() -> PickCases:
    return make_cases(_photos(6), per_kind=2, untouched=4, size_px=48, view_px=32)


def test_a_perfect_pick_is_never_worse_than_any_other() -> None:
    cases = _cases()
    best = perfect(cases)
    assert (best.gain >= 0).all()
    for name in cases.names:
        assert (always(cases, name).gain <= best.gain + 1e-6).all()
    assert always(cases, "as it is").change.abs().max() < 1e-5


def test_what_promises_too_little_or_is_unsure_is_left() -> None:
    cases = _cases()
    gain = torch.zeros(len(cases.kinds), len(cases.names))
    gain[:, 5], nearer = 0.4, torch.ones_like(gain)
    assert pick(cases, gain, nearer, Wariness(0, 0.5)).change.max() < 1e-5
    taken = pick(cases, gain, nearer, Wariness(0, 0.3))
    assert torch.equal(taken.gain, always(cases, cases.names[5]).gain)
    nearer[:, 5] = 0.4
    assert pick(cases, gain, nearer, Wariness(0, 0.3, sure=0.5)).change.max() < 1e-5


def test_of_equal_promises_the_smaller_change_is_taken() -> None:
    cases = _cases()
    gain, nearer = torch.full((len(cases.kinds), len(cases.names)), 3.0), torch.tensor(1.0)
    taken = pick(cases, gain, nearer.expand_as(gain), Wariness(price=0.2, margin=-1))
    least = cases.change[:, 1:].amin(1)
    assert torch.allclose(taken.change, least)
    dear = pick(cases, gain, nearer.expand_as(gain), Wariness(price=100, margin=0.1))
    assert (dear.change <= 0.03).all()


def test_the_summary_counts_what_is_nearer_worse_and_left() -> None:
    cases = _cases()
    left = summary(cases, always(cases, "as it is"), ("untouched",))
    assert (left["cases"], left["left_alone"], left["worse"], left["gain"]) == (4, 1, 0, 0)
    stretched = summary(cases, always(cases, "gamma +0.5"), ("untouched",))
    assert stretched["worse"] == 1
    assert stretched["left_alone"] == 0
