"""The files of guides: part of the job's identity, looked at again where they are loaded."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from doodl.pocket import weights_dir
from jobs import exits
from jobs.cli import main
from manifests.errors import JobConflictError
from manifests.identity import params_fingerprint
from pipeline.errors import UnusableEnvironmentError
from pipeline.plan import RunChoice, preview_plan
from pipeline.replay import Replayer
from pipeline.run import run_job
from pipeline.spec import JobSpec, make_spec
from pipeline.stages import RowProcessor
from tests.photos import collection
from tests.pipeline.conftest import results, spec_of

HEAD, LABELLED = "head.safetensors", "dogs.pth"

# Computed by the version before, on `write_guides`'s files: what is done stays done.
FINGERPRINTS = [
    ("generate", ["aesthetic:{}/head.safetensors=1"], "af9db750cdef37047021fe39ff3fa2b3"),
    ("generate", ["classifier:{}/birds=1"], "4a681bc3c4f0b92591d373e23bb864ca"),
    ("generate", ["classifier:{}/birds/wren=2", "text=1"], "3f0a1068e9e3b64ebe8048f9275f2b44"),
    ("personalize", ["classifier:bce:{}/birds/robin=1"], "1ab332a4515a59c72bbf3a99ee6fbdf9"),
    (
        "personalize",
        ["aesthetic:ViT-B-16:openai@{}/head.safetensors=1", "symmetry=0.1"],
        "ecf62a1df9408f00ad98563ec017b929",
    ),
    ("generate", ["classifier:resnet50@{}/dogs.pth/3=1"], "9907efdad277e3f9668ab7bd9e06319c"),
    ("generate", ["callable:json:dumps=1"], "85821aead03851e9fcdb01efea17f65d"),
    ("generate", ["text=1", "aesthetic=0.5"], "3b8fd78844ea77b4f81ab0ed8b0fc0b9"),
    ("enhance", ["aesthetic:laion-v1=1", "symmetry=0.1"], "91bf8f0cc9e6dbe2c53a2536dce6016f"),
    ("enhance", ["callable:json:dumps=1", "aesthetic"], "83e9afcc1d5046c48b262155fa7e42f3"),
    ("enhance", None, "17007b750d4ff9cb4609cc729ee05867"),
]


def write_guides(folder):
    """A head with its tower beside it, a classifier's folder, and a file of weights."""
    birds = folder / "birds"
    birds.mkdir(parents=True)
    config = {
        "architecture": "test_resnet", "num_classes": 2, "label_names": ["wren", "robin"],
        "pretrained_cfg": {},
    }  # fmt: skip
    (birds / "config.json").write_text(json.dumps(config))
    (birds / "model.safetensors").write_bytes(b"weights")
    (folder / HEAD).write_bytes(b"head")
    (folder / LABELLED).write_bytes(b"dogs")
    (folder / "open_clip_config.json").write_text("{}")
    (folder / "open_clip_model.safetensors").write_bytes(b"tower")
    return folder


@pytest.fixture
def guides(tmp_path):
    return write_guides(tmp_path / "guides")


@pytest.fixture
def photos(tmp_path):
    return collection(tmp_path / "photos", 2)


def enhance(photos, *guides, **options):
    return spec_of(photos, overrides={"guides": list(guides)}, **options)


def generate(out, *guides, **options):
    options = {
        "task": "generate",
        "prompts": ["a rose"],
        "width_px": 32,
        "height_px": 32,
        **options,
    }
    return make_spec(
        options.pop("manifest", None), out, runner="inline", editor="tests.fakes:load_generator",
        overrides={"guides": list(guides)} if guides else {}, **options,
    )  # fmt: skip


@pytest.mark.parametrize(("task", "texts", "fingerprint"), FINGERPRINTS)
def test_fingerprints_stay_what_they_were(guides, task, texts, fingerprint):
    options = {"prompts": ["a"], "subjects": ["/s.jpg"]} if task != "enhance" else {}
    overrides = {} if texts is None else {"guides": [text.format(guides) for text in texts]}
    photos = "/photos" if task == "enhance" else None
    spec = make_spec(photos, "/out", task=task, overrides=overrides, **options)
    spec = JobSpec.from_json(spec.to_json().replace(str(guides), "/guides"))
    # The rest of the recipe and the model come with the software.
    spec = replace(spec, config={"guides": list(spec.guides)}, model_revision="blake2b:00")
    assert params_fingerprint(spec.params()) == fingerprint


# (guides, the file that is replaced, the name under which it is told)
REPLACED = [
    ("aesthetic:{}/head.safetensors=1", HEAD, "aesthetic:{}/head.safetensors"),
    # A name with words in it that records use for what comes with the software.
    ("aesthetic:{}/my.recipe.safetensors=1", "my.recipe.safetensors", "aesthetic:{}/my.recipe"),
    (
        "aesthetic:{}/head.safetensors=1",
        "open_clip_model.safetensors",
        "tower of aesthetic:{}/head.safetensors",
    ),
    ("aesthetic:{0}@{0}/birds/h.safetensors=1", "open_clip_config.json", "tower of aesthetic:"),
    ("aesthetic:{}@laion-v2=1", "open_clip_model.safetensors", "tower of aesthetic:"),
    ("aesthetic:ViT-B-32:{}/dogs.pth@laion-v1-b32=1", LABELLED, "tower of aesthetic:ViT-B-32:"),
    ("classifier:{}/birds/wren=1", "birds/model.safetensors", "classifier:{}/birds/wren"),
    ("classifier:bce:{}/birds=1", "birds/config.json", "classifier:bce:{}/birds"),
    ("classifier:resnet50@{}/dogs.pth/1=1", LABELLED, "classifier:resnet50@{}/dogs.pth/1"),
    ("classifier:{}/dogs.pth=1", "dogs.labels.txt", "labels of classifier:{}/dogs.pth"),
]


@pytest.mark.parametrize(("guide", "file", "name"), REPLACED)
def test_a_replaced_file_is_another_job(guides, photos, guide, file, name, edits):
    (guides / "birds" / "h.safetensors").write_bytes(b"another head")
    (guides / "my.recipe.safetensors").write_bytes(b"a third head")
    (guides / "dogs.labels.txt").write_text("poodle\nterrier\n")
    guide, name = guide.format(guides), name.format(guides)
    spec = enhance(photos, guide)
    assert run_job(spec).exit_code == 0
    (guides / file).write_text((guides / file).read_text() + " ")
    changed = enhance(photos, guide)
    assert params_fingerprint(changed.params()) != params_fingerprint(spec.params())
    (key,) = [k for k, v in changed.guide_revisions.items() if v != spec.guide_revisions[k]]
    assert key.startswith(name)
    for attempt in (run_job, lambda job: preview_plan(job, RunChoice())):
        with pytest.raises(JobConflictError) as caught:
            attempt(changed)
        said = str(caught.value)
        assert f"guide {key}" in said
        for spec_then in (spec, changed):
            assert spec_then.guide_revisions[key][:16] in said
            assert spec_then.guide_revisions[key][:17] not in said
        assert "another --out" in said
        assert "--redo" in said
        assert "\n" not in said
    assert edits() == 2
    assert run_job(changed, RunChoice(redo=True)).computed == 2
    assert run_job(enhance(photos, guide)).computed == 0


def test_other_files_beside_a_head_count_for_nothing_and_are_not_read(guides, photos, monkeypatch):
    (guides / "holiday.mp4").write_bytes(b"hours of it")
    read = []
    real = Path.open

    def noting(self, *arguments, **options):
        read.append(self.name)
        return real(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", noting)
    guide = f"aesthetic:{guides}/{HEAD}=1"
    before = enhance(photos, guide).guide_revisions
    assert {HEAD, "open_clip_model.safetensors"} <= set(read)
    assert "holiday.mp4" not in read
    (guides / "holiday.mp4").write_bytes(b"others")
    (guides / "open_clip_pytorch_model.bin").write_bytes(b"not taken: there is a safetensors")
    assert enhance(photos, guide).guide_revisions == before


@pytest.mark.parametrize("task", ["enhance", "generate"])
def test_paths_are_made_full_wherever_guides_are_named(guides, photos, task, monkeypatch):
    monkeypatch.setenv("HOME", str(guides))
    monkeypatch.chdir(guides.parent)
    (guides / "link.safetensors").symlink_to(guides / HEAD)
    make = {"enhance": lambda *texts: enhance(photos, *texts),
            "generate": lambda *texts: generate(guides.parent / "out", *texts)}[task]  # fmt: skip
    spec = make(
        f"aesthetic:guides/{HEAD}=1", "classifier:~/birds/wren=1",
        f"aesthetic:guides@{guides}/link.safetensors=0.5", "symmetry=0.1",
    )  # fmt: skip
    assert spec.guides == (
        f"aesthetic:{guides}/{HEAD}=1", f"classifier:{guides}/birds/wren=1",
        f"aesthetic:{guides}@{guides}/link.safetensors=0.5", "symmetry=0.1",
    )  # fmt: skip
    own = {spec.partition("=")[0] for spec in spec.guides[:3]}
    assert own <= set(spec.guide_revisions)
    (guides / HEAD).write_bytes(b"another")
    changed = make(*spec.guides)
    assert [changed.guide_revisions[k] != spec.guide_revisions[k] for k in sorted(own)] == [
        True, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("guide", "words"),
    [
        ("classifier:{}/birds/typo=1", "no class 'typo'; it has wren, robin, or a number"),
        ("classifier:{}/birds/2=1", "no class '2'"),
        ("classifier:bce:{}/birds/wrens=1", "no class 'wrens'"),
        ("classifier:{}/typo=1", "is none that is here"),
        ("classifier:{}=1", "is none that is here"),
        ("classifier:/nowhere/at/all=1", "is none that is here"),
        ("classifier:no-such-net=1", "is none that is here"),
        ("classifier:resnet50@{}/absent.pth=1", "is none that is here"),
        ("classifier:pocket/tulpis=1", "no class 'tulpis'; it has daisy"),
        ("aesthetic:{}/absent.safetensors=1", "there is no file"),
        ("aesthetic:{}=1", "there is no file"),
        ("aesthetic:laion-v9=1", "there is no file laion-v9; give an aesthetic head's"),
        ("aesthetic:{0}/birds@{0}/head.safetensors=1", "is no open_clip folder"),
    ],
)
def test_what_is_not_there_is_said_at_once(guides, photos, guide, words):
    for make in (
        lambda text: enhance(photos, text),
        lambda text: generate(guides.parent / "out", text),
        lambda text: generate(
            guides.parent / "o", text, task="personalize", subjects=["/s.jpg"], prompts=["a"]
        ),
    ):
        with pytest.raises(ValueError, match=words):
            make(guide.format(guides))


@pytest.mark.parametrize("command", ["generate", "enhance"])
def test_what_is_not_there_is_a_usage_error(guides, photos, command, monkeypatch, capsys):
    guide = f"classifier:{guides}/birds/typo=1"
    words = {
        "generate": ["generate", "--prompt", "a", "--guide", guide],
        "enhance": ["enhance", str(photos), "--set", f"guides={json.dumps([guide])}"],
    }[command]
    monkeypatch.chdir(guides.parent)
    monkeypatch.setattr(
        sys, "argv", ["doodl-batch", *words, "--runner", "inline", "--model", "pocket"]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == exits.USAGE
    said = capsys.readouterr().err
    assert "no class 'typo'" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("guide", "file"),
    [
        ("aesthetic:{}/head.safetensors=1", HEAD),
        ("aesthetic:{}/head.safetensors=1", "open_clip_model.safetensors"),
        ("classifier:{}/birds/wren=1", "birds/model.safetensors"),
    ],
)
@pytest.mark.parametrize("task", ["enhance", "generate"])
def test_a_file_that_changes_before_the_start_charges_no_row(
    guides, photos, guide, file, task, edits
):
    guide = guide.format(guides)
    out = guides.parent / "out"
    spec = enhance(photos, guide, out=out) if task == "enhance" else generate(out, guide)
    spec = JobSpec.from_json(spec.to_json())  # as it reaches a cluster
    for change in (lambda p: p.write_bytes(b"another"), Path.unlink):
        change(guides / file)
        with pytest.raises(
            UnusableEnvironmentError, match=r"guide .*when the job was made"
        ) as caught:
            run_job(spec)
        assert caught.value.exit_code == exits.ENVIRONMENT
        with pytest.raises(UnusableEnvironmentError, match="guide "):
            RowProcessor(spec, "fingerprint", {"epoch": 1}).setup()
    assert edits() == 0
    assert not (out / "results").exists() or not list((out / "results").iterdir())


class Said:
    """An observer that keeps what a person is told."""

    def __init__(self):
        self.lines = []

    def message(self, text):
        self.lines.append(text)

    def start(self, total): ...

    def row(self, row_id, status, detail): ...

    @property
    def of_guides(self):
        return [line for line in self.lines if "files of guides" in line]


@pytest.mark.parametrize("version", ["0.0.1", None])
@pytest.mark.parametrize("guide", ["aesthetic:{}/head.safetensors=1", "classifier:{}/birds/wren=1"])
def test_a_folder_from_before_the_files_were_recorded_goes_on(
    guides, photos, guide, version, edits
):
    guide = guide.format(guides)
    spec = enhance(photos, guide)
    run_job(spec)
    record = Path(spec.out, "_job.json")
    job = json.loads(record.read_text())
    del job["params"]["guide_revisions"], job["beside_revisions"]
    job["params_fingerprint"] = params_fingerprint(job["params"])
    job["doodl_version"] = version or job["doodl_version"]
    record.write_text(json.dumps(job))
    collection(photos, 1, first_seed=9)

    assert preview_plan(spec, RunChoice()).counts["new"] == 1
    said = Said()
    assert run_job(spec, observer=said).computed == 1
    (line,) = said.of_guides
    for name, revision in spec.guide_revisions.items():
        assert f"{name} ({revision[:16]})" in line
    assert "--redo" in line
    assert "\n" not in line
    assert edits() == 3
    assert set(results(spec)["status"]) == {"ok"}

    said = Said()
    assert run_job(spec, observer=said).computed == 0
    assert said.of_guides == []
    place = guides / guide.partition(f"{guides}/")[2].partition("=")[0].partition("/")[0]
    (place if place.is_file() else place / "model.safetensors").write_bytes(b"another")
    with pytest.raises(JobConflictError, match="guide "):
        run_job(enhance(photos, guide))


def test_options_that_differ_are_refused_before_a_folder_from_before_is_touched(guides, photos):
    guide = f"aesthetic:{guides}/{HEAD}=1"
    spec = enhance(photos, guide)
    run_job(spec)
    record = Path(spec.out, "_job.json")
    job = json.loads(record.read_text())
    del job["params"]["guide_revisions"]
    record.write_text(json.dumps(job))
    with pytest.raises(JobConflictError, match=r"strength: 1\.0 → 0\.5"):
        run_job(enhance(photos, guide, strength=0.5))
    assert json.loads(record.read_text()) == job


@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "open_clip_config.json"])
def test_a_replaced_tower_of_generated_pictures_is_refused_under_the_same_fingerprint(guides, file):
    out, guide = guides.parent / "out", f"aesthetic:{guides}/{HEAD}=1"
    spec = generate(out, guide)
    run_job(spec)
    (guides / file).write_bytes(b'{"a": 1}')
    changed = generate(out, guide)
    assert changed.params() == spec.params()
    with pytest.raises(
        JobConflictError, match=f"guide tower of aesthetic:{guides}/{HEAD}: blake2b"
    ):
        run_job(changed)
    assert run_job(changed, RunChoice(redo=True)).computed == 1


def test_a_replaced_module_is_refused_and_found_without_being_imported(guides, photos, monkeypatch):
    package = guides / "mine"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (package / "losses.py").write_text("def red(images): ...")
    monkeypatch.syspath_prepend(str(guides))
    for make in (
        lambda: enhance(photos, "callable:mine.losses:red=1"),
        lambda: generate(guides.parent / "out", "callable:mine.losses:red=1"),
    ):
        (package / "losses.py").write_text("def red(images): ...")
        spec = make()
        assert list(spec.beside_revisions) == ["module of callable:mine.losses:red"]
        run_job(spec)
        (package / "losses.py").write_text("def red(images): return images")
        changed = make()
        assert changed.params() == spec.params()
        with pytest.raises(JobConflictError, match=r"guide module of callable:mine\.losses:red"):
            run_job(changed)
        with pytest.raises(UnusableEnvironmentError, match="guide module of"):
            RowProcessor(spec, "fingerprint", {"epoch": 1}).setup()
    assert "mine" not in sys.modules


def rows(tmp_path, *guides):
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        "\n".join(
            json.dumps(
                {"row_id": f"r{i}", "prompt": "a rose", "guides": [guide] if guide else None}
            )
            for i, guide in enumerate(guides)
        )
    )
    return path


def test_a_row_that_names_what_is_not_there_fails_alone(guides, tmp_path):
    wanted = [
        None, f"classifier:{guides}/birds/wren=1", f"classifier:{guides}/birds/typo=1",
        f"aesthetic:{guides}/absent.safetensors=1", f"classifier:{guides}/typo=1",
    ]  # fmt: skip
    spec = generate(tmp_path / "out", manifest=rows(tmp_path, *wanted), prompts=[])
    run_job(spec)
    table = results(spec)
    assert list(table["status"]) == ["ok", "ok", "failed", "failed", "failed"]
    said = list(table["error_message"])
    assert "no class 'typo'" in said[2]
    assert "there is no file" in said[3]
    assert "is none that is here" in said[4]


def test_files_that_rows_name_are_looked_at_and_a_new_one_is_welcome(guides, tmp_path):
    head, bird = f"aesthetic:{guides}/{HEAD}=1", f"classifier:{guides}/birds/wren=1"

    def job(*texts):
        return generate(tmp_path / "out", manifest=rows(tmp_path, *texts), prompts=[])

    run_job(job(None, head))
    said = Said()
    assert run_job(job(None, head, bird), observer=said).computed == 1
    assert said.of_guides == []
    assert run_job(job(None, head)).computed == 0
    (guides / "birds" / "model.safetensors").write_bytes(b"another")
    assert run_job(job(None, head)).computed == 0  # no row of it is asked for
    with pytest.raises(JobConflictError, match=f"guide classifier:{guides}/birds/wren: blake2b"):
        run_job(job(None, head, bird))
    shutil.rmtree(guides / "birds")
    (guides / HEAD).write_bytes(b"another")
    with pytest.raises(JobConflictError, match="guide aesthetic:"):
        preview_plan(job(None, head), RunChoice())


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda tower: (tower / "open_clip_model.safetensors").unlink(), "and no weights"),
        (
            lambda tower: (tower / "tokenizer_config.json").write_text(
                '{"auto_map": {"A": "e.E"}}'
            ),
            "auto_map asks to run code",
        ),
        (
            lambda tower: (tower / "open_clip_config.json").write_text(
                '{"model_cfg": {"text_cfg": {"hf_model_name": "a/b"}}}'
            ),
            "hf_model_name asks to fetch",
        ),
    ],
)
def test_a_guide_that_cannot_be_trusted_ends_the_job_before_the_first_photo(
    photos, tmp_path, spoil, words, monkeypatch, capsys
):
    tower = shutil.copytree(weights_dir() / "tower", tmp_path / "tower")
    (tower / "aesthetic_head.safetensors").rename(tmp_path / HEAD)
    spoil(tower)
    guides = json.dumps([f"aesthetic:{tower}@{tmp_path / HEAD}=1"])
    monkeypatch.setattr(
        sys, "argv",
        ["doodl-batch", "enhance", str(photos), "--runner", "inline", "--model", "pocket",
         "--set", f"guides={guides}", "--no-report"],
    )  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == exits.ENVIRONMENT
    said = capsys.readouterr().err
    assert words in said
    assert str(tower) in said.replace("\n", "")
    assert "Traceback" not in said
    out = Path(f"{photos}-doodl")
    assert not list(out.glob("results/*"))
    assert not list(out.glob("_state/staging/*"))


def test_a_row_that_is_made_again_says_which_guide_is_another(guides, photos):
    guide = f"aesthetic:{guides}/{HEAD}=1"
    spec = enhance(photos, guide)
    run_job(spec)
    row_id = results(spec).index[0]
    assert not Replayer(spec.out, editor=spec.editor)(row_id).notes
    (guides / HEAD).write_bytes(b"another")
    (note,) = Replayer(spec.out, editor=spec.editor)(row_id).notes
    then, now = (s.guide_revisions for s in (spec, enhance(photos, guide)))
    name = f"aesthetic:{guides}/{HEAD}"
    assert note == f"guide {name} was {then[name]}, is {now[name]}"
    (guides / HEAD).unlink()
    assert f"guide {name} was {then[name]}, is not there" in (
        Replayer(spec.out, editor=spec.editor)(row_id).notes
    )
