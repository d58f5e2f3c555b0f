"""What the pair judge is shown: damage, scenes that stay as they are, candidates, gains."""

import pytest
import torch

from doodl.pocket.candidates import CANDIDATES, make_candidates
from doodl.pocket.colour import delta_e
from doodl.pocket.training.clean import SCENES, make_scenes, random_views, varied
from doodl.pocket.training.damage import DamageDraw, apply_curves, draw_damage, scale_chroma
from doodl.pocket.training.degrade import luma
from doodl.pocket.training.pairs import PairDraw, draw_pairs
from doodl.pocket.training.photos import PhotoSet, balanced_indices
from tests.pocket.conftest import smooth_photos


def _photo_set(count: int = 6) -> PhotoSet:
    pixels = [(photo * 255).byte() for photo in smooth_photos(count, 80, 120)]
    return PhotoSet(tuple(pixels), ("",) * count, tuple(f"a/{i}" for i in range(count)))


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_no_share_of_damage_leaves_photos_as_they_are() -> None:
    photo = (smooth_photos(6, 64, 64) * 255).round() / 255
    none = DamageDraw(bend=0, range=0, cast=0, saturation=0, field=0, detail=0)
    assert (draw_damage(photo, _seeded(), none) - photo).abs().max() < 1e-5


@pytest.mark.parametrize("part", ["bend", "range", "cast", "saturation", "detail"])
def test_each_part_of_the_damage_damages(part: str) -> None:
    photo = smooth_photos(16, 64, 64)
    none = dict.fromkeys(("bend", "range", "cast", "saturation", "field", "detail"), 0.0)
    damaged = draw_damage(photo, _seeded(), DamageDraw(**{**none, part: 1.0}))
    assert delta_e(damaged, photo).mean((1, 2)).min() > 0.3
    assert 0 <= damaged.min() <= damaged.max() <= 1


def test_half_of_the_damage_is_of_one_part() -> None:
    parts = DamageDraw(single=0.5).parts(2000, _seeded()).sum(0)
    alone = (parts == 1).float().mean()
    assert 0.6 < alone < 0.8  # and of the other half some have one by chance
    assert (DamageDraw(single=1).parts(100, _seeded()).sum(0) == 1).all()
    assert (DamageDraw(single=0).parts(2000, _seeded()).sum(0) == 4).float().mean() > 0.01


def test_bent_curves_keep_black_and_white() -> None:
    photo = smooth_photos(8, 64, 64)
    photo[:, :, :8], photo[:, :, -8:] = 0.0, 1.0
    bend = DamageDraw(bend=1, range=0, cast=0, saturation=0, field=0, detail=0)
    damaged = draw_damage(photo, _seeded(), bend)
    assert damaged[:, :, :8].max() < 1e-3
    assert damaged[:, :, -8:].min() > 0.999


def test_a_field_damages_one_part_more_than_another() -> None:
    photo = torch.full((12, 3, 64, 64), 0.5)
    draw = DamageDraw(bend=0, range=1, cast=0, saturation=0, field=1, detail=0)
    away = delta_e(draw_damage(photo, _seeded(), draw), photo)
    assert (away.amax((1, 2)) > 1.5 * away.amin((1, 2)) + 0.5).float().mean() > 0.7


def test_straight_curves_change_nothing_and_curves_are_looked_up() -> None:
    photo = smooth_photos(2, 16, 16)
    straight = torch.linspace(0, 1, 64).expand(2, 3, -1)
    assert (apply_curves(photo, straight) - photo).abs().max() < 1e-6
    assert (apply_curves(photo, 1 - straight) - (1 - photo)).abs().max() < 1e-6


def test_chroma_scaled_by_nothing_is_grey() -> None:
    photo = smooth_photos(2, 16, 16)
    assert (scale_chroma(photo, torch.zeros(2)) - luma(photo)).abs().max() < 1e-6
    assert (scale_chroma(photo, torch.ones(2)) - photo).abs().max() < 1e-6


@pytest.mark.parametrize("name", SCENES)
def test_scenes_are_images_that_differ_from_the_photo(name: str) -> None:
    photo = smooth_photos(4, 64, 64)
    made = SCENES[name](photo, _seeded()).clamp(0, 1)
    assert made.shape == photo.shape
    assert (delta_e(made, photo).mean((1, 2)) > 1).all()


def test_grey_scenes_have_no_colour_and_those_on_black_are_black_around() -> None:
    photo = smooth_photos(4, 64, 64)
    grey, black = SCENES["grey"](photo, _seeded()), SCENES["on black"](photo, _seeded())
    assert (grey.amax(1) - grey.amin(1)).max() < 1e-6
    assert black[:, :, 0, 0].max() < 0.1


def test_most_views_stay_photos() -> None:
    photo = smooth_photos(1, 32, 32).expand(400, -1, -1, -1)
    made = make_scenes(photo, _seeded())
    changed = (made - photo).abs().flatten(1).amax(1) > 0.01
    assert 0.1 < changed.float().mean() < 0.45


def test_other_renderings_are_near_and_keep_grey_black_and_white() -> None:
    photo = smooth_photos(8, 64, 64)
    photo[:4] = photo[:4].mean(1, keepdim=True)
    photo[:, :, :4], photo[:, :, -4:] = 0.0, 1.0
    other = varied(photo, _seeded())
    away = delta_e(other, photo).mean((1, 2))
    assert 0.2 < away.max() < 6
    assert (away < 1e-3).any()
    assert (other[:4].amax(1) - other[:4].amin(1)).max() < 1e-3
    assert other[:, :, :4].max() < 1e-3
    assert other[:, :, -4:].min() > 0.999


def test_views_are_squares_of_whole_range() -> None:
    views = random_views(_photo_set(), [0, 3, 3], 48, _seeded())
    assert views.shape == (3, 3, 48, 48)
    assert not torch.equal(views[1], views[2])


@pytest.mark.parametrize("name", CANDIDATES)
def test_candidates_are_finite_images_even_of_one_colour(name: str) -> None:
    photo = torch.cat((smooth_photos(2, 64, 64), torch.full((1, 3, 64, 64), 0.5)))
    made = make_candidates(photo, (name,))
    assert made.shape == (3, 1, 3, 64, 64)
    assert made.isfinite().all()


def test_the_first_candidate_is_the_photo() -> None:
    photo = smooth_photos(3, 64, 64)
    assert torch.equal(make_candidates(photo)[:, 0], photo)


@pytest.mark.parametrize("name", ["stretch", "gamma +0.5", "saturation +2", "per channel"])
def test_candidates_mend_what_they_are_the_answer_to(name: str) -> None:
    photo = smooth_photos(2, 64, 64)
    photo[:, :, :4], photo[:, :, -4:] = 0.0, 1.0
    damaged = {
        "stretch": 0.2 + 0.5 * photo,
        "gamma +0.5": photo**2,
        "saturation +2": scale_chroma(photo, torch.full((2,), 0.5)),
        "per channel": photo * torch.tensor([1.0, 0.8, 0.6]).view(3, 1, 1),
    }[name]
    mended = make_candidates(damaged, (name,))[:, 0]
    assert delta_e(mended, photo).mean() < 0.3 * delta_e(damaged, photo).mean()


def test_gains_are_those_of_ciede2000() -> None:
    draw = PairDraw(photos=4, untouched=0.0)
    batch = draw_pairs(_photo_set(), [0, 1, 2, 3], 64, draw, _seeded())
    before = delta_e(batch.photo, batch.clean).mean((1, 2))
    after = delta_e(batch.candidates[:, 3], batch.clean).mean((1, 2))
    # Measured on a sixteenth of the pixels.
    assert (batch.gain[:, 3] - (before - after)).abs().max() < 1.5
    assert batch.gain[:, 0].abs().max() < 1e-4
    assert (batch.map.mean((2, 3)) - batch.gain).abs().max() < 1e-3


def test_untouched_photos_only_lose() -> None:
    batch = draw_pairs(_photo_set(), [0, 1, 2], 64, PairDraw(untouched=1.0), _seeded())
    assert torch.equal(batch.photo, batch.clean)
    assert batch.gain.max() < 1e-4


def test_the_proposal_and_its_half_are_the_last_candidates() -> None:
    batch = draw_pairs(_photo_set(), [0, 1], 64, PairDraw(), _seeded(), propose=torch.zeros_like)
    assert batch.candidates[:, -2].abs().max() == 0
    assert (batch.candidates[:, -1] - batch.photo / 2).abs().max() < 1e-6


def test_sources_are_drawn_alike_however_many_photos_they_have() -> None:
    names = (*(f"flowers/{i}" for i in range(90)), *(f"scenes/{i}" for i in range(10)))
    photos = PhotoSet(tuple(torch.zeros(100, 3, 1, 1)), ("",) * 100, names)
    drawn = torch.tensor(balanced_indices(photos, 2000, _seeded()))
    assert 0.45 < (drawn >= 90).float().mean() < 0.55
    assert set(drawn.tolist()) == set(range(100))
