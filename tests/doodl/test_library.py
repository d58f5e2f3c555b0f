"""`import doodl` from outside: light, typed, and as docs/library.md shows it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import doodl
from doodl.errors import UnreadablePhotoError
from tests.photos import jpeg

DOCS = Path(__file__).parents[2] / "docs" / "library.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)


def run(code, folder):
    """Run code as a program of its own in a folder that holds it and a photo; return its output."""
    (folder / "photo.jpg").write_bytes(jpeg(3))
    (folder / "example.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "example.py"],
        cwd=folder, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_page_has_four_examples():
    assert len(EXAMPLES) == 4


def test_one_photo_in_one_call(tmp_path):
    status, before, after = run(EXAMPLES[0], tmp_path).split()
    assert status in ("ok", "skipped", "rejected")
    assert 0 < float(before) < 10
    assert 0 < float(after) < 10
    assert (tmp_path / "edited.jpg").read_bytes()[:2] == b"\xff\xd8"


def test_an_own_loss_moves_the_photo_its_way(tmp_path):
    warmths = [float(line.split()[1]) for line in run(EXAMPLES[1], tmp_path).splitlines()]
    assert len(warmths) == 4
    assert warmths == sorted(warmths)
    assert warmths[-1] > warmths[0]


def test_an_own_predictor_goes_there_and_back(tmp_path):
    spread, error = (float(line.split()[-1]) for line in run(EXAMPLES[2], tmp_path).splitlines())
    assert 0.5 < spread < 2
    assert error < 1e-12


def test_a_stage_edits_what_it_can_and_names_the_rest(tmp_path):
    out = run(EXAMPLES[3], tmp_path)
    assert out.startswith("[True, False] [None, ")
    assert "not a photo" in out


def test_names_come_when_they_are_asked_for_and_torch_with_them():
    code = (
        "import sys, doodl; assert 'torch' not in sys.modules; "
        "assert set(doodl.__all__) <= set(dir(doodl)); "
        "[getattr(doodl, name) for name in doodl.__all__]; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'edits'"):
        _ = doodl.edits


def test_a_photo_that_is_none_raises():
    with pytest.raises(UnreadablePhotoError):
        doodl.invert(b"no photo")


def test_guides_belong_to_an_editor_that_is_given():
    with pytest.raises(ValueError, match="load_editor"):
        doodl.edit(b"", guides=["symmetry=1"], editor=object())


@pytest.mark.slow
def test_types_are_seen_from_outside(tmp_path):
    (tmp_path / "user.py").write_text(
        "import doodl\n"
        "reveal_type(doodl.edit(b''))\n"
        "reveal_type(doodl.load_editor)\n"
        "reveal_type(doodl.Schedule.ddim)\n"
        "doodl.edit(3)\n"
    )
    told = subprocess.run(
        [sys.executable, "-m", "mypy", "user.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    ).stdout  # fmt: skip
    assert 'Revealed type is "doodl.editing.requests.EditResult"' in told
    assert "-> doodl.editing.editor.PhotoEditor" in told
    assert "-> doodl.schedule.Schedule" in told
    assert 'Argument 1 to "edit" has incompatible type "int"' in told
    assert "missing library stubs" not in told
    assert "py.typed" not in told
