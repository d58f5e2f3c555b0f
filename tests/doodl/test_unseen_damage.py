"""Damage that evaluations prove themselves on: what each kind keeps, and that training lacks it."""

import pytest
import torch

from doodl.evaluation.unseen_damage import NO_STRETCH, UNSEEN_DAMAGE, damage_unseen
from doodl.pocket.candidates import levels
from doodl.pocket.colour import delta_e
from doodl.pocket.training.degrade import DEGRADATIONS, degrade, luma
from tests.pocket.conftest import smooth_photos


def _photos() -> torch.Tensor:
    photo = smooth_photos(3, 64, 64)
    photo[:, :, :8], photo[:, :, -8:] = 0.0, 1.0
    return photo


def _damaged(name: str, photo: torch.Tensor, severity: float, seed: int = 0) -> torch.Tensor:
    severities = torch.full((len(photo),), severity)
    return damage_unseen(name, photo, severities, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", UNSEEN_DAMAGE)
def test_the_mildest_is_visible_and_more_severe_is_farther(name: str) -> None:
    photo = _photos()
    distances = [delta_e(_damaged(name, photo, s), photo).mean() for s in (0.0, 0.5, 1.0)]
    assert 1 < distances[0] < distances[1] < distances[2] < 45


@pytest.mark.parametrize("name", UNSEEN_DAMAGE)
def test_the_same_seed_gives_the_same_damage_in_8_bits(name: str) -> None:
    photo = _photos()
    first, again = _damaged(name, photo, 0.6, seed=3), _damaged(name, photo, 0.6, seed=3)
    assert torch.equal(first, again)
    assert (first * 255 - (first * 255).round()).abs().max() < 1e-3
    assert first.min() >= 0
    assert first.max() <= 1


@pytest.mark.parametrize("name", ["flat middle", "dark gamma", "desaturated"])
def test_what_no_stretch_undoes_keeps_black_and_white(name: str) -> None:
    damaged = _damaged(name, _photos(), 1.0)
    assert damaged[:, :, :8].max() < 0.01
    assert damaged[:, :, -8:].min() > 0.99


@pytest.mark.parametrize("name", NO_STRETCH)
def test_a_stretch_hardly_undoes_it(name: str) -> None:
    photo = _photos()
    damaged = _damaged(name, photo, 0.7)
    stretched = levels(damaged, 0.005, by_channel=False)
    before, after = delta_e(damaged, photo).mean(), delta_e(stretched, photo).mean()
    assert after > 0.6 * before


@pytest.mark.parametrize("name", ["haze from one side", "shade from one side"])
def test_what_lies_on_one_side_spares_the_other(name: str) -> None:
    photo = 0.2 + 0.3 * smooth_photos(6)
    change = (luma(_damaged(name, photo, 0.8)) - luma(photo)).abs()[:, 0]
    corners = torch.stack([change[:, r, c] for r in (0, -1) for c in (0, -1)], 1)
    assert (corners.amin(1) < 0.3 * corners.amax(1)).all()


@pytest.mark.parametrize("name", UNSEEN_DAMAGE)
def test_no_validation_damage_of_any_strength_is_the_same(name: str) -> None:
    # Degradations without chance; with it they are no less different.
    photo = _photos()
    damaged = _damaged(name, photo, 0.5)
    for other in DEGRADATIONS:
        for strength in (0.2, 0.4, 0.6, 0.8, 1.0):
            severity = torch.full((len(photo),), strength)
            version = degrade(other, photo, severity, torch.Generator().manual_seed(0))
            assert delta_e(version, damaged).mean() > 0.25


def test_unknown_damage_is_named_in_the_error() -> None:
    with pytest.raises(ValueError, match="damage 'soggy' is unknown; known: flat middle"):
        _damaged("soggy", _photos(), 1.0)
