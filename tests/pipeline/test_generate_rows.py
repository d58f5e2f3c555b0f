"""Prompts as rows: named, seeded, resumed and failed like photos. The pictures are cheap."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests.errors import JobConflictError, ManifestError
from manifests.identity import params_fingerprint
from pipeline.collection import OutputView
from pipeline.plan import RunChoice, preview_plan
from pipeline.prompts import load_prompts, split_guides
from pipeline.run import run_job
from pipeline.spec import JobSpec, make_spec
from tests.photos import jpeg
from tests.pipeline.conftest import results

CHEAP = {
    "runner": "inline",
    "editor": "tests.fakes:load_generator",
    "width_px": 32,
    "height_px": 32,
}


def spec_of(tmp_path, prompts=(), manifest=None, **options):
    options = {"task": "generate", **CHEAP, **options}
    return make_spec(manifest, tmp_path / "out", prompts=prompts, **options)


def manifest(tmp_path, rows, name="prompts.jsonl"):
    path = tmp_path / name
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_each_seed_of_a_prompt_is_a_row_and_a_picture_named_after_both(tmp_path):
    spec = spec_of(tmp_path, ["a photo of a sunflower"], num_seeds=3)
    summary = run_job(spec)
    table = results(spec)
    assert summary.exit_code == 0
    assert list(table.index) == [f"a-photo-of-a-sunflower-seed{i}" for i in range(3)]
    assert list(table["seed"]) == [0, 1, 2]
    assert set(table["task"]) == {"generate"}
    assert set(table["prompt"]) == {"a photo of a sunflower"}
    assert set(table["guides"]) == {"text=1"}
    assert table["image_uri"].isna().all()
    assert json.loads(table["guide_values_after"].iloc[0]) == {"text=1": 0.3}
    for name, row in table.iterrows():
        assert row["edited_uri"] == f"edited/{name}.png"
        assert row["unguided_uri"] == f"unguided/{name}.png"
        for uri in (row["edited_uri"], row["unguided_uri"]):
            assert (tmp_path / "out" / uri).read_bytes()[:4] == b"\x89PNG"
    images = pq.read_table(tmp_path / "out" / "images")
    assert sorted(images["row_id"].to_pylist()) == list(table.index)


def test_again_makes_nothing_and_more_seeds_make_only_the_new_pictures(tmp_path, edits):
    run_job(spec_of(tmp_path, ["a rose"], num_seeds=2))
    assert run_job(spec_of(tmp_path, ["a rose"], num_seeds=2)).computed == 0
    assert run_job(spec_of(tmp_path, ["a rose"], num_seeds=4)).computed == 2
    assert run_job(spec_of(tmp_path, ["a rose", "a tulip"], num_seeds=4)).computed == 4
    assert edits() == 8


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("overrides.guides", {"overrides": {"guides": ["symmetry=2"]}}),
        ("negative_prompt", {"negative_prompt": "blur"}),
        ("width_px", {"width_px": 64}),
        ("image_format", {"image_format": "webp"}),
        ("safety_checker", {"safety_checker": "off"}),
        ("overrides.sampler.guidance_scale", {"overrides": {"sampler.guidance_scale": 5.0}}),
        ("direction", {"direction": "down"}),
        ("task", {"task": "personalize", "subjects": ["/none.jpg"]}),
    ],
)
def test_what_changes_the_pictures_is_part_of_the_job(tmp_path, name, options):
    first = spec_of(tmp_path, ["a rose"])
    run_job(first)
    other = spec_of(tmp_path, ["a rose"], **options)
    assert params_fingerprint(other.params()) != params_fingerprint(first.params())
    with pytest.raises(JobConflictError) as refused:
        run_job(other)
    assert name in refused.value.differences


def test_what_only_names_rows_or_machines_is_not(tmp_path):
    first = spec_of(tmp_path, ["a rose"])
    options = {"num_seeds": 7, "seed": 3, "num_workers": 2, "checkpoint_every": 1}
    other = spec_of(tmp_path, ["a tulip"], **options)
    assert other.params() == first.params()


def test_a_local_files_contents_are_part_of_the_job(tmp_path):
    head = tmp_path / "head.safetensors"
    head.write_bytes(b"one")
    guides = {"overrides": {"guides": [f"aesthetic:{head}=1"]}}
    first = spec_of(tmp_path, ["a rose"], **guides)
    head.write_bytes(b"two")
    other = spec_of(tmp_path, ["a rose"], **guides)
    assert first.guides == other.guides
    assert params_fingerprint(other.params()) != params_fingerprint(first.params())


def test_a_manifests_columns_say_what_each_row_is(tmp_path):
    path = manifest(
        tmp_path,
        [
            {"prompt": "a rose", "seed": 5, "negative_prompt": "blur", "shelf": "A"},
            {"prompt": "a tulip", "guides": 'text:"red; bright"=0.5; symmetry=1', "shelf": "B"},
            {"prompt": "", "label": "daisy", "guides": "classifier=1", "row_id": "mine"},
        ],
    )
    spec = spec_of(tmp_path, manifest=path, num_seeds=2)
    assert run_job(spec).counts["ok"] == 5
    table = results(spec)
    assert list(table.index) == [
        "a-rose-seed5", "a-tulip-seed0", "a-tulip-seed1", "mine-seed0", "mine-seed1",
    ]  # fmt: skip
    assert table.loc["a-rose-seed5", "negative_prompt"] == "blur"
    assert table.loc["a-rose-seed5", "guides"] == "text=1"
    assert table.loc["a-tulip-seed0", "guides"] == 'text:"red; bright"=0.5; symmetry=1'
    assert table.loc["mine-seed1", "label"] == "daisy"
    assert list(table["shelf"].dropna()) == ["A", "B", "B"]


@pytest.mark.parametrize("column", ["label", "negative_prompt", "guides", "prompt", "seed"])
def test_a_changed_cell_remakes_that_row_only(tmp_path, column):
    rows = [
        {"row_id": f"r{i}", "prompt": f"p{i}", "seed": i, "label": "rose", "guides": "text=1",
         "negative_prompt": "blur"}
        for i in range(3)
    ]  # fmt: skip
    run_job(spec_of(tmp_path, manifest=manifest(tmp_path, rows)))
    rows[1][column] = {"seed": 9, "guides": "text=2"}.get(column, "other")
    assert run_job(spec_of(tmp_path, manifest=manifest(tmp_path, rows))).computed == 1


def test_rows_that_cannot_run_fail_alone_with_a_clear_line(tmp_path, edits):
    path = manifest(
        tmp_path,
        [
            {"row_id": "good", "prompt": "a rose"},
            {"row_id": "empty", "prompt": " "},
            {"row_id": "unreadable", "prompt": "a rose", "guides": "beauty=1"},
            {"row_id": "no subject", "prompt": "a rose", "guides": "subject=1"},
            {"row_id": "endless", "prompt": "x" * 20_000},
            {"row_id": "unknown class", "prompt": "", "guides": "classifier=1", "label": "cactus"},
            {"row_id": "breaks", "prompt": "fail"},
        ],
    )
    spec = spec_of(tmp_path, manifest=path)
    summary = run_job(spec)
    assert summary.exit_code == 3
    assert (summary.counts["ok"], summary.counts["failed"]) == (1, 6)
    messages = results(spec)["error_message"]
    assert "guide text takes the row's prompt, which is empty" in messages["empty"]
    assert "'beauty'" in messages["unreadable"]
    assert "needs subject photos" in messages["no subject"]
    assert "longer than 10,000 characters" in messages["endless"]
    assert "no class cactus" in messages["unknown class-seed0"]
    assert edits() == 3  # the rows that are wrong by themselves never reach a worker
    assert run_job(spec).computed == 0


def test_flagged_pictures_are_rejected_and_not_kept(tmp_path):
    spec = spec_of(tmp_path, ["flag me", "a rose"])
    summary = run_job(spec)
    row = results(spec).loc["flag-me-seed0"]
    assert (summary.counts["rejected"], summary.counts["ok"], summary.exit_code) == (1, 1, 0)
    assert (row["status"], row["safety"], row["stop_reason"]) == ("rejected", "flagged", "flagged")
    assert "safety checker" in row["error_message"]
    assert pd.isna(row["edited_uri"])
    assert [p.name for p in (tmp_path / "out" / "edited").iterdir()] == ["a-rose-seed0.png"]


def test_subjects_are_hashed_and_a_missing_or_broken_one_is_its_rows_error(tmp_path, edits):
    for name, seed in (("dog.jpg", 1), ("dog2.jpg", 2)):
        (tmp_path / name).write_bytes(jpeg(seed))
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    path = manifest(
        tmp_path,
        [
            {"prompt": "a dog"},
            {"prompt": "its dog", "subject_uris": ["dog2.jpg", "dog.jpg"]},
            {"prompt": "no dog", "subject_uris": ["gone.jpg"]},
            {"prompt": "half a dog", "subject_uris": ["broken.jpg"]},
        ],
    )
    options = {"task": "personalize", "subjects": [str(tmp_path / "dog.jpg")]}
    spec = spec_of(tmp_path, manifest=path, **options)
    summary = run_job(spec)
    table = results(spec)
    assert (summary.counts["ok"], summary.counts["failed"]) == (2, 2)
    assert table["num_subjects"].to_dict() == {
        "a-dog-seed0": 1, "half-a-dog-seed0": 1, "its-dog-seed0": 2, "no-dog-seed0": 1,
    }  # fmt: skip
    assert "gone.jpg" in table.loc["no-dog-seed0", "error_message"]
    assert "broken.jpg" in table.loc["half-a-dog-seed0", "error_message"]
    assert set(table["guides"]) == {"subject=1"}
    assert edits() == 2
    (tmp_path / "dog2.jpg").write_bytes(jpeg(3))
    assert run_job(spec_of(tmp_path, manifest=path, **options)).computed == 1


def test_personalize_without_any_subject_fails_each_row(tmp_path):
    spec = spec_of(tmp_path, ["a dog"], task="personalize")
    assert run_job(spec).counts["failed"] == 1
    assert "no subject photo" in results(spec)["error_message"].iloc[0]


NAMES = [
    "",
    "../../etc/passwd",
    "/root",
    "x" * 500,
    "日本の花",
    "a.png",
    "a~0123456789ab",
    "\x01",
    "CON:",
]


def test_no_prompt_leaves_the_folder_or_shares_a_name(tmp_path):
    spec = spec_of(tmp_path, NAMES, overrides={"guides": ["symmetry=1"]})
    assert run_job(spec).counts["ok"] == len(NAMES)
    table = results(spec)
    out = tmp_path / "out"
    files = {p.relative_to(out).as_posix() for p in (out / "edited").rglob("*") if p.is_file()}
    assert files == set(table["edited_uri"])
    assert len(files) == len(NAMES)
    assert [p.name for p in tmp_path.iterdir() if p.name != "edits.log"] == ["out"]


def test_equal_prompts_have_rows_of_their_own(tmp_path):
    table = load_prompts(spec_of(tmp_path, ["a rose", "a rose"], num_seeds=2))
    assert table["row_id"].to_pylist() == [
        "a-rose-seed0", "a-rose-seed1", "a-rose-seed0~2", "a-rose-seed1~2",
    ]  # fmt: skip
    spec = spec_of(tmp_path, ["a rose", "a rose"])
    summary = run_job(spec)
    assert (summary.computed, summary.copied) == (1, 1)
    copied = results(spec).loc["a-rose-seed0~2"]
    for column in ("edited_uri", "unguided_uri"):
        assert (tmp_path / "out" / copied[column]).is_file()


def test_row_ids_in_a_manifest_never_meet_those_made_by_seeds(tmp_path):
    rows = [{"row_id": "x", "prompt": "a"}, {"row_id": "x-seed0", "prompt": "b", "seed": 1}]
    table = load_prompts(spec_of(tmp_path, manifest=manifest(tmp_path, rows)))
    assert table["row_id"].to_pylist() == ["x-seed0", "x-seed0~2"]


def test_a_plan_says_what_a_run_would_do_without_touching_anything(tmp_path):
    spec = spec_of(tmp_path, ["a rose", ""], num_seeds=3)
    plan = preview_plan(spec, RunChoice())
    assert (plan.counts["new"], plan.counts["invalid"]) == (3, 1)
    assert not (tmp_path / "out").exists()
    run_job(spec)
    assert preview_plan(spec, RunChoice()).counts["done"] == 3


def test_a_spec_with_prompts_survives_its_json(tmp_path):
    spec = spec_of(tmp_path, ["a", "b"], num_seeds=2)
    again = JobSpec.from_json(spec.to_json())
    assert again == spec
    assert run_job(again).counts["ok"] == 4


def test_pictures_that_are_moved_away_cost_a_copy_its_source(tmp_path, edits):
    spec = spec_of(tmp_path, ["a rose"], images="files")
    run_job(spec)
    shutil.rmtree(tmp_path / "out" / "unguided")
    run_job(spec_of(tmp_path, ["a rose", "a rose"], images="files"))
    assert edits() == 2


def test_a_redo_in_another_format_leaves_no_old_file(tmp_path):
    run_job(spec_of(tmp_path, ["a rose"]))
    spec = spec_of(tmp_path, ["a rose"], image_format="webp")
    run_job(spec, RunChoice(redo=True))
    names = sorted(p.name for f in ("edited", "unguided") for p in (tmp_path / "out" / f).iterdir())
    assert names == ["a-rose-seed0.webp", "a-rose-seed0.webp"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("text=1", ["text=1"]),
        (" text=1 ;aesthetic=2; ", ["text=1", "aesthetic=2"]),
        ('text:"a;b"=1;symmetry=1', ['text:"a;b"=1', "symmetry=1"]),
        (r'text:"say \"hi; you\""', [r'text:"say \"hi; you\""']),
        ("", []),
    ],
)
def test_a_cell_of_guides_is_split_outside_its_quotation_marks(text, parts):
    assert split_guides(text) == parts


def test_a_manifest_of_prompts_may_be_csv_or_parquet(tmp_path):
    (tmp_path / "p.csv").write_text("prompt,seed\na rose,3\n")
    pq.write_table(
        pa.table({"prompt": ["a tulip"], "guides": [["text=1"]]}), tmp_path / "p.parquet"
    )
    for name, row_id in (("p.csv", "a-rose-seed3"), ("p.parquet", "a-tulip-seed0")):
        table = load_prompts(spec_of(tmp_path, manifest=tmp_path / name))
        assert table["row_id"].to_pylist() == [row_id]


def test_a_manifest_that_is_not_there_or_no_table_says_so(tmp_path):
    with pytest.raises(ManifestError, match="is no manifest"):
        load_prompts(spec_of(tmp_path, manifest=tmp_path))


def test_the_facts_of_a_job_name_its_guides_and_no_direction(tmp_path):
    spec = spec_of(tmp_path, ["a rose"])
    run_job(spec)
    facts = OutputView(spec.out).job_facts()
    assert (facts["task"], facts["guides"], facts["direction"]) == ("generate", "text=1", None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_seeds": 0}, "num_seeds"),
        ({"width_px": 5}, "width_px"),
        ({"negative_prompt": "\udcff"}, "not valid UTF-8"),
        ({"height_px": 100_000}, "height_px"),
        ({"image_format": "gif"}, "image_format"),
        ({"safety_checker": "maybe"}, "safety_checker"),
        ({"task": "paint"}, "task"),
        ({"overrides": {"guides": ["beauty=1"]}}, "beauty"),
        ({"overrides": {"guides": ["none", "text=1"]}}, "none"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        spec_of(tmp_path, ["a rose"], **options)


def test_default_recipes_are_those_of_what_guides(tmp_path):
    def recipe(task="generate", **options):
        return make_spec(None, tmp_path / "o", prompts=["p"], task=task, **options).preset

    assert recipe() == "pocket-text"
    assert recipe(overrides={"guides": ["classifier=1"]}) == "pocket-classifier"
    assert recipe("personalize") == "pocket-personalize"
    assert Path(make_spec(None, prompts=["p"], task="generate").out).name == "doodl-generated"
