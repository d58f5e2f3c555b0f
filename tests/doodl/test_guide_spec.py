"""Guides as they are written on a command line and in a manifest."""

import hashlib
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from doodl.evaluation.cases import Draw
from doodl.evaluation.guided.run import _revisions
from doodl.evaluation.guided.spec import GuidedSpec, Item
from doodl.evaluation.work import EvaluationSpec
from doodl.guidance.revisions import (
    all_revisions,
    current_revision,
    guide_place,
    guide_revisions,
)
from doodl.guidance.spec import KINDS, GuideSpec, absolute_guide, parse_guide, parse_guides
from doodl.models.revisions import file_revision, folder_revision
from doodl.pocket import weights_dir
from doodl.recipes.presets import preset

VALUED = ("aesthetic", "text", "classifier")
weights = st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False)
words = st.text(min_size=1).filter(str.strip)
specs = st.one_of(
    st.builds(
        GuideSpec, st.sampled_from([k for k in KINDS if k != "callable"]), st.none(), weights
    ),
    st.builds(GuideSpec, st.sampled_from(VALUED), words, weights),
    st.builds(GuideSpec, st.just("callable"), st.just("my.losses:red_sky"), weights),
)


@given(specs)
def test_a_guide_survives_its_text(spec):
    assert parse_guide(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "kind", "value", "weight"),
    [
        ("aesthetic=1", "aesthetic", None, 1.0),
        ("aesthetic", "aesthetic", None, 1.0),
        ("aesthetic:laion-v1=2", "aesthetic", "laion-v1", 2.0),
        ('text:"a red rose"=0.5', "text", "a red rose", 0.5),
        ("text:a red rose=0.5", "text", "a red rose", 0.5),  # as a shell hands the line above over
        ("text=0.3", "text", None, 0.3),
        ('text:"1 = 2, \\"sure\\""', "text", '1 = 2, "sure"', 1.0),
        ("classifier:pocket/tulips=2", "classifier", "pocket/tulips", 2.0),
        ("classifier:bce:/models/birds.pth/17", "classifier", "bce:/models/birds.pth/17", 1.0),
        ("symmetry=1e-1", "symmetry", None, 0.1),
        ("subject=1", "subject", None, 1.0),
        ("fidelity=6", "fidelity", None, 6.0),
        ("callable:my.losses:red=3", "callable", "my.losses:red", 3.0),
    ],
)
def test_the_forms_people_write(text, kind, value, weight):
    assert parse_guide(text) == GuideSpec(kind, value, weight)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("beauty=1", "must be one of aesthetic, text"),
        ("", "must be one of"),
        ("text:=1", "empty value"),
        ('text:"a rose=1', "do not close"),
        ('text:"a rose" and more=1', "follows the closing quotation mark"),
        ("text:a=b", "'b' is not a number"),
        ("aesthetic=much", "'much' is not a number"),
        ("aesthetic=0", "above zero"),
        ("aesthetic=-1", "above zero"),
        ("aesthetic=nan", "finite"),
        ("aesthetic=inf", "finite"),
        ("aesthetic 1", "neither : nor ="),
        ("symmetry:left=1", "takes no value"),
        ("callable:os.system=1", "module:function"),
        ("callable=1", "module:function"),
    ],
)
def test_what_cannot_be_read_is_named_with_the_form(text, words):
    with pytest.raises(ValueError, match=words) as caught:
        parse_guide(text)
    assert repr(text) in str(caught.value)
    assert "KIND[:VALUE][=WEIGHT]" in str(caught.value)


def test_a_guide_named_twice_is_refused():
    assert len(parse_guides(["text:a=1", "text:b=1"])) == 2
    with pytest.raises(ValueError, match="named twice"):
        parse_guides(["text:a=1", "text:a=2"])


def test_paths_become_absolute_and_names_do_not(tmp_path):
    (tmp_path / "birds").mkdir()
    (tmp_path / "pocket").mkdir()
    (tmp_path / "head.safetensors").touch()

    def absolute(text):
        return absolute_guide(parse_guide(text), tmp_path).value

    assert absolute("aesthetic:head.safetensors=1") == str(tmp_path / "head.safetensors")
    assert absolute("classifier:birds=1") == str(tmp_path / "birds")
    assert absolute("classifier:birds/wren=1") == str(tmp_path / "birds" / "wren")
    assert absolute("classifier:bce:birds/wren=1") == f"bce:{tmp_path / 'birds' / 'wren'}"
    assert absolute("classifier:resnet50@head.safetensors=1") == (
        f"resnet50@{tmp_path / 'head.safetensors'}"
    )
    assert absolute("classifier:pocket/tulips=1") == "pocket/tulips"
    assert absolute("classifier:resnet50.a1_in1k/goldfish=1") == "resnet50.a1_in1k/goldfish"
    assert absolute("aesthetic:laion-v1=1") == "laion-v1"
    assert absolute("text:birds=1") == "birds"
    assert absolute("aesthetic=1") is None
    assert absolute("classifier:birds/of/prey=1") == str(tmp_path / "birds" / "of" / "prey")
    (tmp_path / "birds" / "open_clip_config.json").write_text("{}")
    full = f"{tmp_path / 'birds'}@{tmp_path / 'head.safetensors'}"
    assert absolute("aesthetic:birds@head.safetensors=1") == full
    assert absolute("aesthetic:ViT-B-32:openai@head.safetensors=1") == (
        f"ViT-B-32:openai@{tmp_path / 'head.safetensors'}"
    )
    assert absolute("aesthetic:ViT-B-32:head.safetensors@laion-v1-b32=1") == (
        f"ViT-B-32:{tmp_path / 'head.safetensors'}@laion-v1-b32"
    )


def test_a_changed_file_of_a_guide_changes_its_revision(tmp_path):
    head, model = tmp_path / "head.safetensors", tmp_path / "birds"
    head.write_bytes(b"one")
    model.mkdir()
    (model / "config.json").write_text("{}")
    specs = parse_guides(
        [f"aesthetic:{head}=1", f"classifier:{model}/wren=1", "text:rose=1", "symmetry=1",
         "classifier:pocket/tulips=1", f"classifier:{tmp_path}/absent/wren=1"]
    )  # fmt: skip
    before = guide_revisions(specs)
    assert set(before) == {specs[0].name, specs[1].name}
    assert before[specs[0].name] == f"blake2b:{hashlib.blake2b(b'one', digest_size=16).hexdigest()}"
    head.write_bytes(b"two")
    (model / "model.safetensors").write_bytes(b"weights")
    after = guide_revisions(specs)
    assert all(after[name] != before[name] for name in before)


def test_the_fingerprint_is_of_the_longest_model_that_is_there(tmp_path):
    birds = tmp_path / "birds"
    (birds / "wren" / "photos").mkdir(parents=True)
    (birds / "config.json").write_text("{}")
    for value in ("birds", "birds/wren", "birds/wren/photos", "birds/of/prey"):
        (spec,) = parse_guides([f"classifier:{tmp_path}/{value}=1"])
        assert guide_place(spec) == birds
        assert guide_revisions([spec]) == {spec.name: folder_revision(birds)}
    (birds / "wren" / "config.json").write_text("{}")
    (spec,) = parse_guides([f"classifier:{tmp_path}/birds/wren/photos=1"])
    assert guide_place(spec) == birds / "wren"


@pytest.mark.parametrize(
    "text",
    ["aesthetic=1", "aesthetic:laion-v2=1", "classifier:pocket/tulips=1", "classifier:resnet50=1",
     "text:rose=1", "symmetry=1", "callable:no_such_module.at.all:f=1", "callable:sys:exit=1"],
)  # fmt: skip
def test_guides_by_name_alone_have_no_fingerprint(text):
    (spec,) = parse_guides([text])
    assert all_revisions([spec]) == {}
    assert current_revision(spec.name) is None


def test_every_name_in_the_tables_leads_back_to_its_file(tmp_path):
    folder = tmp_path / "a tower of mine"
    folder.mkdir()
    for name in ("head.safetensors", "open_clip_model.safetensors", "dogs.pth"):
        (folder / name).write_bytes(name.encode())
    (folder / "open_clip_config.json").write_text("{}")
    (folder / "dogs.labels.txt").write_text("poodle")
    specs = parse_guides(
        [f"aesthetic:{json.dumps(str(folder / 'head.safetensors'))}=1",
         f"classifier:{json.dumps(str(folder / 'dogs.pth') + '/poodle')}=1",
         "callable:json.encoder:dumps=1"]
    )  # fmt: skip
    found = all_revisions(specs)
    assert [name.partition(":")[0] for name in found] == [
        "aesthetic", "classifier", "tower of aesthetic", "labels of classifier",
        "module of callable",
    ]  # fmt: skip
    assert {name: current_revision(name) for name in found} == found
    (folder / "open_clip_config.json").unlink()
    gone = [name for name in found if current_revision(name) is None]
    assert gone == [f"tower of {specs[0].name}"]


def test_evaluations_are_of_the_files_that_guide_and_measure(tmp_path):
    head = tmp_path / "head.safetensors"
    head.write_bytes(b"one")
    config = replace(preset("pocket"), guides=(f"aesthetic:{head}=1",))
    edits = EvaluationSpec(str(weights_dir() / "referee"), Draw(), config)
    pictures = GuidedSpec(
        "text", (Item("a rose"),), preset("pocket-text"), measures=("pocket-judge", str(head))
    )
    plain = replace(edits, config=preset("pocket")).revisions()
    before = edits.revisions(), _revisions(pictures)
    assert before[0] == plain | {f"aesthetic:{head}": file_revision(head)}
    assert before[1]["measure 1 head.safetensors"] == file_revision(head)
    head.write_bytes(b"two")
    after = edits.revisions(), _revisions(pictures)
    changed = [
        [name for name in now if now[name] != then[name]]
        for then, now in zip(before, after, strict=True)
    ]
    assert changed == [[f"aesthetic:{head}"], ["measure 1 head.safetensors"]]
