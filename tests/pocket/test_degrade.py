"""Degradations, improvement and the versions that scorers learn from."""

import pytest
import torch

from doodl.pocket.training.degrade import DEGRADATIONS, degrade
from doodl.pocket.training.improve import improve, natural_score
from doodl.pocket.training.versions import make_versions
from tests.pocket.conftest import smooth_photos


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_severity_zero_changes_nothing(name: str) -> None:
    photo = (smooth_photos(3) * 255).round() / 255
    damaged = degrade(name, photo, torch.zeros(3), torch.Generator().manual_seed(0))
    # Compression at severity 0 still rounds its coefficients, to a tenth of the JPEG table.
    tolerance = 0.03 if name == "compressed" else 1e-3
    assert (damaged - photo).abs().max() < tolerance


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_more_severe_is_further_from_the_photo(name: str) -> None:
    photo = smooth_photos(3)
    distances = [
        (degrade(name, photo, torch.full((3,), s), torch.Generator().manual_seed(0)) - photo)
        .square()
        .mean()
        for s in (0.2, 0.5, 1.0)
    ]
    assert distances[0] < distances[1] < distances[2]


@pytest.mark.parametrize("name", ["murky", "washed_out", "flat_midtones", "tinted_midtones"])
def test_some_damage_keeps_black_and_white(name: str) -> None:
    photo = smooth_photos(1)
    photo[:, :, :4], photo[:, :, -4:] = 0.0, 1.0
    damaged = degrade(name, photo, torch.ones(1), torch.Generator().manual_seed(0))
    # Powers are taken of at least 1e-4, which a strong wash lifts to 0.03.
    assert damaged[:, :, :4].max() <= 0.03
    assert damaged[:, :, -4:].min() >= 0.99


def test_unknown_degradation_is_named_in_the_error() -> None:
    with pytest.raises(ValueError, match="'soggy' is unknown; known: under_exposed"):
        degrade("soggy", smooth_photos(1), torch.ones(1), torch.Generator())


def test_improving_raises_the_natural_score_of_flat_photos() -> None:
    flat = 0.12 + 0.65 * smooth_photos(4)
    assert (natural_score(improve(flat, torch.ones(4))) > natural_score(flat)).all()


def test_improving_keeps_grey_photos_grey() -> None:
    grey = smooth_photos(2).mean(1, keepdim=True).expand(-1, 3, -1, -1)
    improved = improve(grey, torch.ones(2))
    assert (improved.amax(1) - improved.amin(1)).max() < 1e-4


def test_versions_are_ordered_by_target() -> None:
    versions = make_versions(
        smooth_photos(12), tuple(DEGRADATIONS), torch.Generator().manual_seed(0)
    )
    improved, natural, mild, severe = versions.target.view(4, 12)
    assert versions.image.shape == (48, 3, 128, 128)
    assert len(versions.damage) == 48
    assert (improved >= natural - 1e-5).all()
    assert (mild >= severe).all()
    assert severe.min() >= 1.0


def test_versions_repeat_with_the_same_seed() -> None:
    first, second = (
        make_versions(smooth_photos(6), tuple(DEGRADATIONS), torch.Generator().manual_seed(5))
        for _ in range(2)
    )
    assert torch.equal(first.image, second.image)
    assert torch.equal(first.target, second.target)
