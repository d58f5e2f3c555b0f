"""Each trainer runs, resumes and writes files that load; on a tiny synthetic Parquet file."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from doodl.pocket.autoencoder import PatchAutoencoder
from doodl.pocket.scorer import load_scorer
from doodl.pocket.train import main
from doodl.pocket.training.improve import natural_score
from doodl.pocket.training.loop import Average, Budget, Checkpointed, run_loop
from doodl.pocket.training.photos import load_photos, random_crops, split_photos
from doodl.pocket.training.train_tower import direction_loss
from doodl.pocket.training.versions import make_versions
from tests.pocket.conftest import smooth_photos


def _run(part: str, photos: Path, out: Path, iterations: int) -> dict:
    threads = torch.get_num_threads()
    arguments = [part, "--photos", str(photos), "--held-out", str(photos), "--out", str(out)]
    arguments += ["--device", "cpu", "--iterations", str(iterations), "--limit", "12"]
    try:
        main([*arguments, "--threads", str(threads)])
    finally:
        torch.set_num_threads(threads)
    return json.loads((out / "metrics.json").read_text())[part]


@pytest.mark.parametrize("part", ["tower", "judge", "referee"])
def test_scorer_trains_resumes_and_loads(part: str, tiny_parquet: Path, tmp_path: Path) -> None:
    assert _run(part, tiny_parquet, tmp_path, 1)["iterations"] == 1
    assert _run(part, tiny_parquet, tmp_path, 2)["iterations"] == 2
    scorer = load_scorer(tmp_path / part)
    assert scorer.score(torch.rand(2, 3, 100, 140)).shape == (2,)


def test_autoencoder_and_unet_train_resume_and_load(tiny_parquet: Path, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    assert _run("autoencoder", tiny_parquet, tmp_path, 2)["round_trip_db"] > 15
    autoencoder = PatchAutoencoder.from_pretrained(tmp_path / "pipeline" / "vae")
    assert autoencoder.encode(torch.rand(1, 3, 64, 96)).latents.shape == (1, 8, 8, 12)
    assert _run("unet", tiny_parquet, tmp_path, 1)["iterations"] == 1
    assert _run("unet", tiny_parquet, tmp_path, 2)["iterations"] == 2
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "pipeline", subfolder="unet")
    states = torch.zeros(1, 24, 128)
    assert unet(torch.rand(1, 8, 8, 12), 10, encoder_hidden_states=states).sample.isfinite().all()


def test_unet_goes_on_from_another_folders_weights(tiny_parquet: Path, tmp_path: Path) -> None:
    from doodl.pocket import weights_dir
    from doodl.pocket.training.captions import load_tokenizer
    from doodl.pocket.training.train_unet import Denoiser, warm_start

    pipeline = weights_dir() / "pipeline"
    network = Denoiser(load_tokenizer(pipeline / "tokenizer"))
    before = network.unet.conv_in.weight.clone()
    warm_start(network, pipeline)
    assert not torch.equal(network.unet.conv_in.weight, before)
    with pytest.raises(ValueError, match="of another shape"):
        warm_start(Denoiser(load_tokenizer(pipeline / "tokenizer"), latent_channels=4), pipeline)


def test_classifier_trains_resumes_and_loads_in_timm(tiny_parquet: Path, tmp_path: Path) -> None:
    import timm

    assert _run("classifier", tiny_parquet, tmp_path, 1)["iterations"] == 1
    assert 0 <= _run("classifier", tiny_parquet, tmp_path, 2)["accuracy"] <= 1
    network = timm.create_model(f"local-dir:{tmp_path / 'classifier'}", pretrained=True)
    assert network.eval()(torch.rand(2, 3, 64, 64)).shape == (2, 5)


def test_classifier_without_flowers_names_the_labels(tiny_parquet: Path, tmp_path: Path) -> None:
    from doodl.pocket.training.train_classifier import train_classifier

    photos = load_photos([tiny_parquet])
    scenes = photos.subset([i for i, label in enumerate(photos.labels) if not label])
    with pytest.raises(ValueError, match="daisy, dandelion, roses"):
        train_classifier(scenes, tmp_path, Budget(iterations=1))


def test_direction_loss_is_least_where_the_gradient_leads_back(held_out_photos: Tensor) -> None:
    """A scorer that is minus the squared distance to the clean photo points exactly back."""
    photos = held_out_photos[:6]
    versions = make_versions(photos, ("under_exposed", "cast"), torch.Generator().manual_seed(0))

    class Distance(torch.nn.Module):
        def __init__(self, sign: float) -> None:
            super().__init__()
            self.sign = sign

        def score(self, image: Tensor) -> Tensor:
            back = versions.undamaged[versions.toned]
            return -self.sign * (image - back).square().sum((1, 2, 3))

    assert float(direction_loss(Distance(1.0), versions).detach()) < 1e-4
    assert float(direction_loss(Distance(-1.0), versions).detach()) > 2 - 1e-4


def test_a_smooth_attack_that_dulls_a_photo_does_not_earn_a_natural_score() -> None:
    """Dulled by an attack or by a degradation: the score deserved must be as low."""
    from doodl.pocket.training.attack import deserved_score
    from doodl.pocket.training.degrade import degrade, luma

    photo = smooth_photos(4)
    grey = luma(photo).expand_as(photo)
    dull = degrade("dull", photo, torch.full((4,), 0.8), torch.Generator().manual_seed(0))
    natural = natural_score(photo)
    assert (deserved_score(photo, grey) < natural - 2).all()
    assert (deserved_score(photo, dull) < natural - 2).all()
    assert torch.allclose(deserved_score(photo, photo), natural, atol=1e-3)


def test_unet_without_autoencoder_says_what_to_train(tiny_parquet: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no autoencoder; train that part first"):
        _run("unet", tiny_parquet, tmp_path, 1)


def _fit_line(path: Path, iterations: int) -> torch.Tensor:
    torch.manual_seed(0)
    network = torch.nn.Linear(4, 1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    average = Average(network)

    def step_fn(step: int, progress: float) -> tuple[torch.Tensor, dict[str, float]]:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        return (network(x) - x.sum(1, keepdim=True)).square().mean(), {}

    parts = {"network": network, "optimizer": optimizer, "average": average}
    checkpoint = Checkpointed(path, parts)
    # The schedule must be that of the whole training, wherever it is cut.
    budget = Budget(iterations=20)
    if iterations < 20:

        class CutError(Exception):
            pass

        def cut_step(step: int, progress: float) -> tuple[torch.Tensor, dict[str, float]]:
            if step == iterations:
                raise CutError
            return step_fn(step, progress)

        averages = {"network": (average, network)}
        with pytest.raises(CutError):
            run_loop(
                cut_step, optimizer, budget, checkpoint, averages=averages, checkpoint_seconds=-1
            )
    else:
        run_loop(step_fn, optimizer, budget, checkpoint, averages={"network": (average, network)})
    return torch.cat([average.values["weight"].flatten(), network.weight.detach().flatten()])


def test_a_resumed_training_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    unbroken = _fit_line(tmp_path / "a.pt", 20)
    _fit_line(tmp_path / "b.pt", 7)
    resumed = _fit_line(tmp_path / "b.pt", 20)
    assert torch.equal(unbroken, resumed)


def test_shares_are_disjoint_and_complete(tiny_parquet: Path) -> None:
    photos = load_photos([tiny_parquet])
    shares = [split_photos(photos, *bounds) for bounds in ((0, 0.5), (0.5, 0.8), (0.8, 1))]
    names = [name for share in shares for name in share.names]
    assert sorted(names) == sorted(photos.names)


def test_crops_fit_any_shape(tiny_parquet: Path) -> None:
    photos = load_photos([tiny_parquet], limit=3)
    crops = random_crops(photos, [0, 1, 2], (128, 192), torch.Generator().manual_seed(0))
    assert crops.shape == (3, 3, 128, 192)
    assert crops.min() >= 0
    assert crops.max() <= 1


def test_a_parquet_without_images_is_named(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    path = tmp_path / "words.parquet"
    pandas.DataFrame({"word": ["a"]}).to_parquet(path)
    with pytest.raises(ValueError, match=r"words\.parquet has columns \['word'\]"):
        load_photos([path])
