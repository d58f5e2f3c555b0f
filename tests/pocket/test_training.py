"""Each trainer runs, resumes and writes files that load; on a tiny synthetic Parquet file."""

import json
from pathlib import Path

import pytest
import torch

from doodl.pocket.autoencoder import PatchAutoencoder
from doodl.pocket.loop import Average, Budget, Checkpointed, run_loop
from doodl.pocket.photos import load_photos, random_crops, split_photos
from doodl.pocket.scorer import load_scorer
from doodl.pocket.train import main


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
