"""Each guide's loss against another way to compute it, and what a batch may not change."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from doodl.guidance import guidance as guidance_module
from doodl.guidance.crops import multicrop
from doodl.guidance.guidance import Guidance, GuideRow, load_guidance
from doodl.guidance.similarity import SubjectGuide, TextGuide, spherical_distance
from doodl.guidance.spec import GuideSpec, parse_guides
from doodl.guidance.towers import LAION_B32, LAION_G14, LAION_L14, load_tower
from doodl.recipes.config import CropConfig
from doodl.scores import AestheticScorer, LinearHead, ScorerEnsemble, load_scorer
from tests.doodl.tiny_towers import tower

CROPS = CropConfig(num_crops=3, cut_power=0.3, whole_view=True)
ROWS = [GuideRow("a red rose"), GuideRow("two tulips"), GuideRow("a grey wall")]


def photos(batch=3, height=48, width=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(batch, 3, 6, 8, generator=generator) * 2.4 - 1.2
    return F.interpolate(small, (height, width), mode="bicubic")


def generators(batch=3):
    return [torch.Generator().manual_seed(100 + i) for i in range(batch)]


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("towers")
    return [
        tower(folder / "small", seed=0),
        tower(folder / "twin", seed=1),
        tower(folder / "large", seed=2, size_px=40, embed_dim=20),
    ]


def only(kind, guide, weight=1.0):
    return Guidance((GuideSpec(kind, weight=weight),), (guide,))


def views_by_hand(network, images, crops=CROPS):
    """The crops and the whole frame of each image, as `loss` shows them to a network."""
    clamped = images.clamp(-1, 1)
    size = network.size_px
    cut = multicrop(
        clamped,
        crops.num_crops,
        size,
        cut_power=crops.cut_power,
        generators=generators(len(images)),
    )
    whole = F.interpolate(clamped, (size, size), mode="bicubic", antialias=True)
    return [torch.cat([c, w[None]]) for c, w in zip(cut.split(crops.num_crops), whole, strict=True)]


def embed_by_hand(network, views, clamp=True):
    """Normalise, encode, normalise: without the tower's own preparation."""
    pixels = ((views.clamp(-1, 1) if clamp else views) + 1) / 2
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.4, 0.5, 0.6], [0.2, 0.25, 0.3]))
    embeddings = network.clip.visual((pixels - mean) / std)
    return embeddings / embeddings.norm(dim=1, keepdim=True)


def angle_loss(u, v):
    """2 arcsin(|u - v| / 2)^2 with the mathematics library's own arcsin, in float64."""
    return 2 * math.asin(min(1.0, (u.double() - v.double()).norm().item() / 2)) ** 2


@pytest.mark.parametrize("angle", [0.0, 1e-6, 1e-3, 0.5, 1.5, 3.0, math.pi - 1e-3, math.pi])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_spherical_distance_is_half_the_squared_angle_and_finite_to_its_ends(angle, dtype):
    u = torch.tensor([1.0, 0.0, 0.0], dtype=dtype, requires_grad=True)
    v = torch.tensor([math.cos(angle), math.sin(angle), 0.0], dtype=dtype)
    if angle == math.pi:
        v = -u.detach()
    distance = spherical_distance(u, v)
    # The angle of rounded unit vectors is off by their rounding.
    rounding = torch.finfo(dtype).eps
    assert distance.item() == pytest.approx(angle**2 / 2, rel=1e-3, abs=8 * rounding)
    (gradient,) = torch.autograd.grad(distance, u)
    assert gradient.isfinite().all()
    # Away from the ends the gradient along the sphere is the angle itself.
    if 1e-3 <= angle <= 3:
        assert abs(gradient[1].item()) == pytest.approx(angle, rel=1e-2)


def test_spherical_distance_is_the_arcsins():
    u, v = F.normalize(torch.randn(2, 50, 7, dtype=torch.float64), dim=-1)
    expected = [angle_loss(a, b) for a, b in zip(u, v, strict=True)]
    torch.testing.assert_close(spherical_distance(u, v), torch.tensor(expected).double())


def test_text_loss_is_the_mean_distance_of_the_crops_to_the_words(towers):
    network, images = towers[0], photos()
    bound = only("text", TextGuide(network)).bind(ROWS)
    got = bound.loss(images, generators(), crops=CROPS)
    texts = network.embed_texts([row.prompt for row in ROWS])
    expected = []
    for views, text in zip(views_by_hand(network, images), texts, strict=True):
        distances = [angle_loss(e, text) for e in embed_by_hand(network, views)]
        expected.append(sum(distances) / 4)  # three crops and the frame, none of them preferred
    torch.testing.assert_close(got, torch.tensor(expected), rtol=1e-5, atol=1e-5)
    # A frame that is resized by the tower itself is clamped before, not after.
    whole = F.interpolate(images.clamp(-1, 1), (32, 32), mode="bicubic", antialias=True)
    cosines = (embed_by_hand(network, whole, clamp=False) * texts).sum(1)
    torch.testing.assert_close(bound.values(images)["text"], cosines, rtol=1e-5, atol=1e-5)


def test_own_words_come_before_the_rows(towers):
    named = only("text", TextGuide(towers[0], "a red rose")).bind(ROWS)
    alone = only("text", TextGuide(towers[0])).bind([ROWS[0]] * 3)
    torch.testing.assert_close(named.value(photos()), alone.value(photos()))


def test_texts_differ_and_long_ones_are_cut_off(towers):
    texts = towers[0].embed_texts(["a red rose", "a grey wall", "rose " * 200])
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(3))
    assert (texts[0] - texts[1]).norm() > 1e-3


def test_a_row_without_words_is_refused(towers):
    with pytest.raises(ValueError, match="no words"):
        only("text", TextGuide(towers[0])).bind([ROWS[0], GuideRow("  ")])


SUBJECTS = (photos(1, 50, 30, seed=7)[0], photos(1, 32, 32, seed=8)[0])


def subject_loss_by_hand(networks, weights, images, exemplars):
    total = torch.zeros(len(images), dtype=torch.float64)
    for network, weight in zip(networks, weights, strict=True):
        size = (network.size_px, network.size_px)
        squeezed = [
            F.interpolate(e[None].clamp(-1, 1), size, mode="bicubic", antialias=True)
            for e in exemplars
        ]
        embeddings = torch.cat([embed_by_hand(network, i, clamp=False) for i in squeezed])
        target = F.normalize(embeddings.mean(0), dim=0)
        for i, views in enumerate(views_by_hand(network, images)):
            distances = [angle_loss(e, target) for e in embed_by_hand(network, views)]
            total[i] += weight * sum(distances) / len(distances)
    return total.float()


@pytest.mark.parametrize("weights", [(0.5, 0.25, 0.25), (1.0, 0.0, 0.0), (2.0, 1.0, 1.0)])
def test_subject_loss_is_the_weighted_ensembles_distance_to_the_mean_exemplar(towers, weights):
    # One generator per photo draws once per input size, so a large tower alone would crop
    # differently: each tower's reference uses its own draws only where it is the first.
    networks = towers[:2]
    weights = weights[:2]
    rows = [replace(row, subjects=SUBJECTS) for row in ROWS]
    bound = only("subject", SubjectGuide(tuple(networks), weights)).bind(rows)
    got = bound.loss(photos(), generators(), crops=CROPS)
    shares = [weight / sum(weights) for weight in weights]
    expected = subject_loss_by_hand(networks, shares, photos(), SUBJECTS)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_every_weight_of_an_ensemble_acts_on_loss_value_and_gradient(towers):
    rows = [GuideRow(subjects=SUBJECTS)]
    images = photos(1)

    def outcome(weights):
        bound = only("subject", SubjectGuide(tuple(towers), weights)).bind(rows)
        leaf = images.clone().requires_grad_()
        loss = bound.value(leaf).sum()
        return loss.item(), torch.autograd.grad(loss, leaf)[0]

    singles = [outcome(tuple(float(i == k) for i in range(3))) for k in range(3)]
    assert len({round(loss, 4) for loss, _ in singles}) == 3
    mixed, gradient = outcome((0.5, 0.25, 0.25))
    shares = (0.5, 0.25, 0.25)
    by_hand = sum(w * loss for w, (loss, _) in zip(shares, singles, strict=True))
    assert mixed == pytest.approx(by_hand, rel=1e-5)
    gradient_by_hand = sum(w * g for w, (_, g) in zip(shares, singles, strict=True))
    torch.testing.assert_close(gradient, gradient_by_hand, rtol=1e-4, atol=1e-7)


def test_one_exemplar_and_several_make_different_targets(towers):
    guide = only("subject", SubjectGuide((towers[0],), (1.0,)))
    values = [
        guide.bind([GuideRow(subjects=subjects)]).value(photos(1)).item()
        for subjects in (SUBJECTS[:1], SUBJECTS[1:], SUBJECTS)
    ]
    assert len({round(value, 4) for value in values}) == 3
    itself = only("subject", SubjectGuide((towers[0],), (1.0,))).bind(
        [GuideRow(subjects=(SUBJECTS[1],))]
    )
    assert itself.values(SUBJECTS[1][None])["subject"].item() == pytest.approx(1.0, abs=1e-5)


def test_a_row_without_exemplars_is_refused(towers):
    with pytest.raises(ValueError, match="no exemplar"):
        only("subject", SubjectGuide((towers[0],), (1.0,))).bind(ROWS)


def scorer(network, seed=0):
    weight = torch.randn(1, 24, generator=torch.Generator().manual_seed(seed)) * 20
    return AestheticScorer(network, LinearHead(weight, torch.tensor([60.0])).requires_grad_(False))


@pytest.mark.parametrize(("direction", "target"), [("up", None), ("down", None), ("target", 10.0)])
def test_aesthetic_loss_of_an_ensemble_is_of_the_weighted_mean_score(towers, direction, target):
    one, two = scorer(towers[0]), scorer(towers[1], 1)
    # The released code's .5 and 1.5 over their count: what the sum of 1 must come to.
    guidance = Guidance.of_scorer(ScorerEnsemble([one, two], [0.5, 1.5]))
    rows = [GuideRow(direction=direction, target=target)] * 3
    got = guidance.bind(rows).loss(photos(), generators(), crops=CROPS)
    expected = []
    for i in range(3):
        score = 0.0
        for each, weight in ((one, 0.25), (two, 0.75)):
            views = views_by_hand(each.tower, photos())[i]
            linear = each.head.linear
            scores = embed_by_hand(each.tower, views) @ linear.weight[0] + linear.bias
            score += weight * scores.mean().item()
        assert score > 10  # outside the nominal range, and the loss still follows
        expected.append({"up": -score, "down": score, "target": abs(score - 10)}[direction])
    torch.testing.assert_close(got, torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_scores_outside_one_to_ten_have_a_gradient(towers):
    images = photos().requires_grad_()
    bound = Guidance.of_scorer(scorer(towers[0])).bind(ROWS)
    assert bound.values(images)["aesthetic"].min() > 10
    (gradient,) = torch.autograd.grad(bound.value(images).sum(), images)
    assert gradient.flatten(1).norm(dim=1).min() > 1e-3


def test_symmetry_and_fidelity_are_mean_squares(towers):
    images, sources = photos(), photos(seed=5)
    guidance = load_guidance(parse_guides(["symmetry=1", "fidelity=1"]), model="pocket")
    values = guidance.bind(ROWS, sources).values(images)
    clamped = images.clamp(-1, 1).double().numpy()
    mirrored = clamped[..., ::-1]
    for i in range(3):
        mse = ((clamped[i] - mirrored[i]) ** 2).mean()
        assert values["symmetry"][i].item() == pytest.approx(-mse, rel=1e-5)
        mse = ((clamped[i] - sources[i].double().numpy()) ** 2).mean()
        assert values["fidelity"][i].item() == pytest.approx(-mse, rel=1e-5)
    with pytest.raises(ValueError, match="there is none"):
        guidance.bind(ROWS)


def redness(images):
    return -images[:, 0].mean((1, 2))


def one_number(images):
    return images.mean()


def whole_numbers(images):
    return torch.zeros(len(images), dtype=torch.int64)


def without_gradient(images):
    return images.detach().mean((1, 2, 3))


def broken(images):
    raise KeyError("no such colour")


def callable_guide(name):
    return load_guidance([GuideSpec("callable", f"tests.doodl.test_guides:{name}")], model="pocket")


def test_a_callable_is_any_function_of_images():
    bound = callable_guide("redness").bind(ROWS)
    images = photos().requires_grad_()
    loss = bound.loss(images, generators(), crops=CROPS)
    expected = torch.tensor([-x[0].clamp(-1, 1).mean().item() for x in images.detach()])
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss.sum(), images)
    # Blown pixels too: minus one share of the mean for each red pixel, nothing for the others.
    torch.testing.assert_close(gradient[:, 0], torch.full((3, 48, 64), -1 / (48 * 64)))
    assert gradient[:, 1:].abs().max() == 0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("one_number", r"one loss per image.*shape \(3,\); got \(\) torch.float32"),
        ("whole_numbers", "must return floats; got"),
        ("without_gradient", "without a gradient"),
        ("broken", "KeyError: 'no such colour'"),
    ],
)
def test_what_a_callable_does_wrong_is_named(name, words):
    bound = callable_guide(name).bind(ROWS)
    with pytest.raises(ValueError, match=words) as caught:
        bound.loss(photos().requires_grad_(), generators(), crops=CROPS)
    assert f"callable:tests.doodl.test_guides:{name}" in str(caught.value)


@pytest.mark.parametrize("name", ["no.such.module:loss", "math:no_such", "math:pi"])
def test_a_callable_that_is_not_there_is_named(name):
    with pytest.raises(ValueError, match=r"cannot be imported|not a function"):
        load_guidance([GuideSpec("callable", name)], model="pocket")


@pytest.fixture(scope="module")
def mixture(towers):
    """A weighted sum of every kind whose networks are small."""
    specs = parse_guides(
        ["aesthetic=2", "text=0.5", "subject=0.7", "symmetry=3", "fidelity=1.5",
         "callable:tests.doodl.test_guides:redness=0.1"]
    )  # fmt: skip
    plain = load_guidance(specs[3:], model="pocket").guides
    loaded = (
        Guidance.of_scorer(scorer(towers[0])).guides[0],
        TextGuide(towers[1]),
        SubjectGuide((towers[0], towers[2]), (0.5, 0.25)),
    )
    return Guidance(specs, (*loaded, *plain))


MIXED_ROWS = [
    GuideRow("a red rose", "up", None, SUBJECTS),
    GuideRow("two tulips", "down", None, SUBJECTS[:1]),
    GuideRow("a grey wall", "target", 5.0, SUBJECTS[1:]),
]


def test_the_sum_is_the_weighted_sum_of_its_guides(mixture):
    images, sources = photos(), photos(seed=5)
    total, _ = mixture.bind(MIXED_ROWS, sources).assess(images)
    by_hand = torch.zeros(3)
    for spec, guide in zip(mixture.specs, mixture.guides, strict=True):
        alone = Guidance((replace(spec, weight=1.0),), (guide,)).bind(MIXED_ROWS, sources)
        by_hand += spec.weight * alone.value(images)
    torch.testing.assert_close(total, by_hand, rtol=1e-5, atol=1e-5)


def test_a_photos_loss_and_gradient_do_not_change_when_others_join(mixture):
    images, sources = photos(), photos(seed=5)

    def gradient(places, bound):
        leaf = images[places].clone().requires_grad_()
        loss = bound.loss(leaf, [generators()[i] for i in places], crops=CROPS)
        return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]

    everyone = mixture.bind(MIXED_ROWS, sources)
    losses, gradients = gradient([0, 1, 2], everyone)
    for i in range(3):
        loss, alone = gradient([i], mixture.bind([MIXED_ROWS[i]], sources[i : i + 1]))
        torch.testing.assert_close(loss[0], losses[i], rtol=1e-6, atol=1e-6)
        assert ((alone[0] - gradients[i]).norm() / alone.norm()).item() < 1e-6
    # Those that stay when another has left are as they were.
    kept_losses, kept = gradient([2, 0], everyone.keep([2, 0]))
    torch.testing.assert_close(kept_losses, losses[[2, 0]], rtol=1e-6, atol=1e-6)
    assert ((kept - gradients[[2, 0]]).norm() / kept.norm()).item() < 1e-6


def test_blown_pixels_get_gradient_from_every_guide(mixture):
    images = photos() + 2.0  # most of them far above white
    assert (images > 1).float().mean() > 0.5
    sources = photos(seed=5)
    for spec, guide in zip(mixture.specs, mixture.guides, strict=True):
        bound = Guidance((spec,), (guide,)).bind(MIXED_ROWS, sources)
        leaf = images.clone().requires_grad_()
        loss = bound.loss(leaf, generators(), crops=replace(CROPS, num_crops=8))
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        if spec.kind == "symmetry":  # white on both sides is symmetric already
            assert (gradient[images > 1] != 0).any()
        else:
            blown = gradient[:, 0][images[:, 0] > 1]
            assert (blown != 0).float().mean() > 0.9, spec


def test_towers_of_one_size_see_the_same_crops(towers):
    seen = []

    class Recorder(nn.Module):
        def encode_image(self, images):
            seen.append(images)
            return images.mean((2, 3)) + 1

    recorders = []
    for network in towers[:2]:
        recorder = replace_clip(network, Recorder())
        recorders.append(recorder)
    guide = SubjectGuide(tuple(recorders), (1.0, 1.0))
    bound = only("subject", guide).bind([GuideRow(subjects=SUBJECTS[:1])] * 3)
    seen.clear()
    bound.loss(photos(), generators(), crops=CROPS)
    torch.testing.assert_close(seen[0], seen[1], rtol=0, atol=0)


def replace_clip(network, clip):
    from doodl.guidance.towers import ImageTower

    clip.weight = nn.Parameter(torch.ones(1))
    mean, std = (tuple(v.flatten().tolist()) for v in (network.mean, network.std))
    return ImageTower(clip, network.size_px, mean, std)


def test_stable_diffusion_models_get_laions_towers_each_loaded_once(towers, monkeypatch):
    asked = []
    stand_ins = dict(zip((LAION_B32, LAION_L14, LAION_G14), towers, strict=True))

    def load(name, *, device, dtype):
        asked.append(name)
        return stand_ins[name]

    monkeypatch.setattr(guidance_module, "load_tower", load)
    guidance = load_guidance(parse_guides(["subject=1", "text=1"]), model="sd15")
    assert sorted(asked) == sorted(stand_ins)
    subject, text = guidance.guides
    assert subject.towers == tuple(towers)
    assert subject.weights == (0.5, 0.25, 0.25)
    assert text.tower is towers[2]


def test_the_pocket_model_guides_with_its_own_tower_loaded_once(monkeypatch):
    loaded = []
    monkeypatch.setattr(
        guidance_module, "load_tower", lambda *a, **k: loaded.append(a) or load_tower(*a, **k)
    )
    guidance = load_guidance(parse_guides(["aesthetic=1", "text=1", "subject=1"]), model="pocket")
    aesthetic, text, subject = guidance.guides
    assert text.tower is aesthetic.scorer.tower is subject.towers[0]
    assert loaded == []  # the scorer's own tower serves the others
    assert not any(p.requires_grad for net in guidance.networks() for p in net.parameters())


def test_the_pocket_aesthetic_guide_is_its_scorer():
    images = photos()
    bound = load_guidance(parse_guides(["aesthetic=1"]), model="pocket").bind(ROWS)
    torch.testing.assert_close(bound.values(images)["aesthetic"], load_scorer("pocket")(images))


def test_no_guides_at_all_and_a_classifier_without_a_network_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        load_guidance([], model="pocket")
    with pytest.raises(ValueError, match="names no network"):
        load_guidance(parse_guides(["classifier=1"]), model="sd15")
