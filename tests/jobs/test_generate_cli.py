"""generate, personalize and invert as a person types them, on the pocket model, very short."""

import json
import sys

import pandas as pd
import pytest
import torch
from safetensors import safe_open

from doodl.images import decode_photo
from doodl.measures.fidelity import psnr_db
from jobs import exits
from jobs.cli import main
from jobs.generate import parse_size
from pipeline.run import run_job
from pipeline.spec import make_spec
from tests.fakes import DIE, LOG
from tests.photos import collection, jpeg

SETTINGS = {
    "sampler.num_inference_steps": 2,
    "sampler.guidance_scale": 1.0,
    "optimiser.num_optim_steps": 1,
    "num_crops": 1,
}
SHORT = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")]
QUICK = ["--runner", "inline", "--size", "64", *SHORT]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def doodl_batch(monkeypatch, capsys, *arguments):
    """Run the command in this process; return (exit code, stdout, stderr)."""
    monkeypatch.setattr(sys, "argv", ["doodl-batch", *map(str, arguments)])
    try:
        main()
        code = exits.OK
    except SystemExit as ended:
        code = ended.code or exits.OK
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def results(out):
    return pd.read_parquet(out / "results").set_index("row_id").sort_index()


def test_generate_makes_pictures_a_table_and_a_page_and_resumes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = ["generate", "--prompt", "a photo of a <sunflower>", "--guide", "text=1", *QUICK]
    code, out, err = doodl_batch(monkeypatch, capsys, *line, "--seeds", "2", "--batch-size", "2")
    assert code == exits.OK, err
    folder = tmp_path / "doodl-generated"
    assert f"results: {folder}" in out
    table = results(folder)
    assert len(table) == 2
    assert set(table["status"]) <= {"ok", "rejected"}
    for row_id, row in table.iterrows():
        assert row["model"] == "pocket"
        assert row["judge_before"] != row["judge_after"]
        picture = decode_photo((folder / row["unguided_uri"]).read_bytes())
        assert (picture.width_px, picture.height_px) == (64, 64)
        assert (folder / "edited" / f"{row_id}.png").is_file() == (row["status"] == "ok")
        assert "text" in json.loads(row["guide_values_after"])
    page = (folder / "report" / "index.html").read_text()
    assert "a photo of a \\u003csunflower\\u003e" in page
    assert "<sunflower>" not in page
    assert page.count("-before.jpg") == 2
    assert "generate, guides text=1, model pocket, preset pocket-text" in page
    code, _, err = doodl_batch(monkeypatch, capsys, *line, "--seeds", "2")
    assert (code, "0 computed" in err) == (exits.OK, True)
    code, out, _ = doodl_batch(monkeypatch, capsys, "status", folder, "--json")
    counts = json.loads(out)["counts"]
    assert counts["ok"] + counts["rejected"] == 2
    code, out, _ = doodl_batch(monkeypatch, capsys, *line, "--seeds", "5", "--dry-run", "--json")
    planned = json.loads(out)
    assert (planned["compute"], planned["counts"]["done"]) == (3, 2)
    code, _, err = doodl_batch(monkeypatch, capsys, "run", folder / "_state" / "spec.json")
    assert (code, "0 computed" in err) == (exits.OK, True)


def test_personalize_takes_subjects_and_names_those_it_cannot_read(tmp_path, monkeypatch, capsys):
    for name in ("dog.jpg", "dog2.jpg"):
        (tmp_path / name).write_bytes(jpeg(len(name)))
    prompts = tmp_path / "prompts.jsonl"
    rows = [
        {"prompt": "a dog in a bucket"},
        {"prompt": "a dog at sea", "subject_uris": ["gone.jpg"]},
    ]
    prompts.write_text("\n".join(map(json.dumps, rows)))
    code, _, err = doodl_batch(
        monkeypatch, capsys, "personalize", prompts, "--subject", tmp_path / "dog.jpg",
        "--subject", tmp_path / "dog2.jpg", *QUICK,
    )  # fmt: skip
    assert code == exits.ROWS_FAILED
    assert "gone.jpg" in err
    table = results(tmp_path / "prompts-doodl")
    good = table.loc["a-dog-in-a-bucket-seed0"]
    assert (good["task"], good["guides"], good["num_subjects"]) == ("personalize", "subject=1", 2)
    assert -1 <= good["score_before"] <= 1
    assert table.loc["a-dog-at-sea-seed0", "status"] == "failed"


def test_invert_there_and_back(tmp_path, monkeypatch, capsys):
    photos = collection(tmp_path / "photos", 2)
    (photos / "bad.jpg").write_bytes(b"no photo")
    line = ["--runner", "inline", "--set", "sampler.num_inference_steps=4"]
    out = tmp_path / "inverted"
    code, _, err = doodl_batch(monkeypatch, capsys, "invert", photos, "--out", out, *line)
    assert code == exits.ROWS_FAILED, err
    table = results(out)
    assert list(table["status"]) == ["failed", "ok", "ok"]
    row = table.loc["sub/p001.jpg"]
    assert row["latents_uri"] == "latents/sub/p001.jpg.safetensors"
    assert row["edited_uri"] == "edited/sub/p001.jpg.png"
    assert row["inversion_error"] < 1e-3
    assert row["psnr_db"] == pytest.approx(row["autoencoder_psnr_db"], abs=0.2)
    with safe_open(out / row["latents_uri"], "pt") as file:
        assert sorted(file.keys()) == ["x_T", "y_T"]
    (out / "latents" / "foreign.safetensors").write_bytes(b"\x80\x04pickle")
    code, _, err = doodl_batch(
        monkeypatch, capsys, "invert", out, "--back", "--out", tmp_path / "back", *line
    )
    assert code == exits.ROWS_FAILED, err
    assert "failed: foreign: the file is no latents file" in err
    for row_id in ("p000.jpg", "sub/p001.jpg"):
        again = decode_photo((tmp_path / "back" / "edited" / f"{row_id}.png").read_bytes())
        before = decode_photo((out / "edited" / f"{row_id}.png").read_bytes())
        assert psnr_db(again.pixels, before.pixels) > 50
    page = (out / "report" / "index.html").read_text()
    assert "autoencoder alone" in page
    code, _, err = doodl_batch(monkeypatch, capsys, "invert", photos, "--out", out, *line)
    assert "0 computed" in err


def test_an_interrupted_picture_goes_on_from_its_last_checkpoint(tmp_path, monkeypatch):
    log = tmp_path / "iterations.log"
    monkeypatch.setenv(LOG, str(log))
    spec = make_spec(
        None, tmp_path / "out", task="generate", prompts=["a rose"], num_seeds=2, runner="inline",
        editor="tests.fakes:load_dying_generator", width_px=64, height_px=64, checkpoint_every=1,
        overrides={**SETTINGS, "optimiser.num_optim_steps": 3},
    )  # fmt: skip
    monkeypatch.setenv(DIE, "1")
    with pytest.raises(KeyboardInterrupt):
        run_job(spec)
    monkeypatch.delenv(DIE)
    summary = run_job(spec)
    assert summary.exit_code == 0
    assert summary.counts["pending"] == 0
    lines = log.read_text().splitlines()
    # Seed 1 was interrupted in its second update: seed 0 is done, and nothing is made twice.
    assert lines == ["0 1", "0 2", "0 3", "0 3", "1 1", "1 2", "1 3", "1 3"]
    assert list((tmp_path / "out" / "_state" / "checkpoints").iterdir()) == []
    assert run_job(spec).computed == 0
    assert log.read_text().splitlines() == lines


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate"], "give either --prompt"),
        (["personalize", "--prompt", "a dog"], "give --subject PHOTO"),
        (["generate", "--prompt", "x", "--size", "large"], "--size 'large' must be"),
        (["generate", "--prompt", "x", "--size", "5"], "width_px (=5) must be in"),
        (["generate", "--prompt", "x", "--guide", "beauty=1"], "guide 'beauty=1'"),
        (["generate", "--prompt", "x", "--guide", "text=-1"], "weight of guide text"),
        (["generate", "--prompt", "x", "--seeds", "0"], "num_seeds (=0)"),
        (["generate", "--prompt", "x", "--format", "gif"], "image_format (='gif')"),
        (["generate", "--prompt", "x", "--safety-checker", "no"], "safety_checker (='no')"),
        (["generate", "--prompt", "x", "--preset", "grand"], "preset (='grand')"),
        (["generate", "nowhere.csv"], "nowhere.csv does not exist"),
        (["invert", "nowhere"], "nowhere does not exist"),
        (["invert", ".", "--back"], "holds no .safetensors file"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_exit_2(
    tmp_path, monkeypatch, capsys, arguments, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("x")
    out = ["--out", tmp_path / "out"]
    code, _, err = doodl_batch(monkeypatch, capsys, *arguments, *out)
    assert code == exits.USAGE
    assert words in err
    assert len(err.strip().splitlines()) <= 3  # which model, where, and what is wrong
    assert not (tmp_path / "out").exists()


def test_a_size_that_the_model_cannot_make_ends_the_run_before_any_row(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    line = ["generate", "--prompt", "x", "--guide", "none", "--size", "100", "--runner", "inline"]
    code, _, err = doodl_batch(monkeypatch, capsys, *line)
    assert code == exits.ENVIRONMENT
    assert "100x100 must be multiples of 16 px with this model; try 96x96" in err
    assert not list((tmp_path / "doodl-generated").glob("results/*"))


@pytest.mark.parametrize(
    ("text", "size"), [("512", (512, 512)), ("768X512", (768, 512)), (None, (0, 0))]
)
def test_a_size_is_one_side_or_two(text, size):
    assert parse_size(text) == size
