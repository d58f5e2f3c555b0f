"""The fingerprint of a model's files, and what may be remembered of it."""

import hashlib
import os
import subprocess
import sys

import pytest

from doodl.errors import ModelError
from doodl.models import revisions
from doodl.models.revisions import folder_revision


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder that counts as large, its files a day old, with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(revisions, "_REMEMBERED_FROM_BYTES", 10)
    path = tmp_path / "model"
    (path / "unet").mkdir(parents=True)
    (path / "model_index.json").write_text("{}")
    (path / "unet" / "weights.safetensors").write_bytes(b"0123456789")
    age(path)
    return path


def age(path, seconds=86400):
    for file in path.rglob("*"):
        stat = file.stat()
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns - int(seconds * 1e9)))


@pytest.fixture
def reads(monkeypatch):
    counted = []
    real = revisions._hash
    monkeypatch.setattr(
        revisions, "_hash", lambda files, folder: counted.append(folder) or real(files, folder)
    )
    return counted


def test_revision_is_of_names_sizes_and_bytes(folder):
    digest = hashlib.blake2b(digest_size=8)
    for name in ("model_index.json", "unet/weights.safetensors"):
        data = (folder / name).read_bytes()
        digest.update(len(name).to_bytes(8, "big") + name.encode())
        digest.update(len(data).to_bytes(8, "big") + data)
    assert folder_revision(folder) == f"blake2b:{digest.hexdigest()}"


def test_large_folder_is_read_once(folder, reads):
    assert folder_revision(folder) == folder_revision(folder)
    assert len(reads) == 1


def test_small_folder_is_read_every_time(folder, reads, monkeypatch):
    monkeypatch.setattr(revisions, "_REMEMBERED_FROM_BYTES", 10**9)
    folder_revision(folder)
    folder_revision(folder)
    assert len(reads) == 2


@pytest.mark.parametrize("change", ["bytes", "touch", "added", "removed", "renamed"])
def test_any_change_of_a_file_is_read(folder, reads, change):
    before = folder_revision(folder)
    weights = folder / "unet" / "weights.safetensors"
    if change == "bytes":
        weights.write_bytes(b"9876543210")  # the same size
    elif change == "touch":
        os.utime(weights)
    elif change == "added":
        (folder / "vae").write_bytes(b"")
    elif change == "removed":
        (folder / "model_index.json").unlink()
    else:
        weights.rename(folder / "unet" / "others.safetensors")
    assert (folder_revision(folder) == before) == (change == "touch")
    assert len(reads) == 2


def test_file_written_just_now_is_not_remembered(folder, reads):
    (folder / "unet" / "weights.safetensors").write_bytes(b"9876543210")
    folder_revision(folder)
    folder_revision(folder)
    assert len(reads) == 2


@pytest.mark.parametrize("note", ["", "[]", "{}", '{"files": [], "revision": 3}', "\x00", "{{"])
def test_damaged_note_is_not_believed(folder, reads, note):
    revision = folder_revision(folder)
    (written,) = (folder.parent / "cache").rglob("*.json")
    written.write_text(note)
    assert folder_revision(folder) == revision
    assert len(reads) == 2


def test_cache_that_cannot_be_written_is_done_without(folder, reads, monkeypatch):
    blocked = folder.parent / "a file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert folder_revision(folder) == folder_revision(folder)
    assert len(reads) == 2


def test_hidden_files_are_no_part_of_a_model(folder):
    before = folder_revision(folder)
    (folder / ".cache").mkdir()
    (folder / ".cache" / "downloaded-at").write_text("now")
    assert folder_revision(folder) == before


def test_single_file_has_a_revision_of_its_own(folder):
    weights = folder / "unet" / "weights.safetensors"
    assert folder_revision(weights).startswith("blake2b:")
    assert folder_revision(weights) != folder_revision(folder)


def test_nothing_there_is_a_model_error(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ModelError, match="holds no model files"):
            folder_revision(path)


def test_revisions_import_no_torch():
    code = "import sys, doodl.models.revisions, doodl.models.hub; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
