"""No write path touches an input, whatever leads to it; other photos do not take a folder over."""

import os
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import exits
from jobs.manifest import build
from jobs.repairs import replay_rows
from jobs.report.build import build_report
from jobs.report.study import Wanted, build_pairwise
from manifests.commits import OutputFolder
from manifests.errors import JobConflictError, LinkedOutputError, OriginalError
from manifests.originals import input_folders, refuse_original, refuse_overlap
from manifests.scan import scan_photos
from manifests.storage import LocalStorage
from pipeline.evaluation import claim_evaluation
from pipeline.plan import RunChoice, preview_plan
from pipeline.restrength import restrength_edits
from pipeline.run import run_job
from pipeline.spec import make_spec
from tests.photos import collection, jpeg
from tests.pipeline.conftest import results, spec_of
from tests.pipeline.test_run import checksums


def refused(photos, out, error=OriginalError):
    """Run and plan a job that must be refused; return what the run said."""
    spec = spec_of(photos, out)
    before = checksums(photos)
    with pytest.raises(error):
        preview_plan(spec, RunChoice())
    with pytest.raises(error) as said:
        run_job(spec)
    assert exits.exit_code_of(said.value) == exits.USAGE
    assert checksums(photos) == before
    return str(said.value)


def test_photos_in_a_folder_named_edited_are_not_written_over(tmp_path):
    home = tmp_path / "h"
    photos = collection(home / "edited", 2)
    said = refused(photos, home)
    assert str(photos) in said
    assert not (home / "_job.json").exists()


def test_a_folder_named_edited_without_a_job_is_somebodys_own(tmp_path):
    mine = collection(tmp_path / "h" / "edited", 2)
    photos = collection(tmp_path / "photos", 2, first_seed=10)
    before = checksums(mine)
    assert "'edited'" in refused(photos, tmp_path / "h", JobConflictError)
    assert checksums(mine) == before


def test_photos_where_temporary_files_go_are_not_cleared_away(tmp_path):
    mine = collection(tmp_path / "out" / "_state" / "tmp", 2)
    before = checksums(mine)
    assert run_job(spec_of(collection(tmp_path / "photos", 2), tmp_path / "out")).exit_code == 0
    assert checksums(mine) == before


@pytest.mark.parametrize("name", ["Thumbs.db", ".DS_Store", "@eaDir/x", "lost+found/x"])
def test_what_file_systems_leave_anywhere_refuses_no_folder(tmp_path, name):
    stray = tmp_path / "out" / name
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"x")
    assert run_job(spec_of(collection(tmp_path / "photos", 2), tmp_path / "out")).exit_code == 0
    assert stray.read_bytes() == b"x"


def test_the_delivered_photos_are_no_input_of_their_own_folder(tmp_path):
    spec = spec_of(collection(tmp_path / "photos", 2))
    run_job(spec)
    refused(Path(spec.out) / "edited", spec.out)
    refused(Path(spec.out) / "edited" / "sub", spec.out)


def test_delivered_photos_may_go_on_into_another_folder(tmp_path):
    spec = spec_of(collection(tmp_path / "photos", 2))
    run_job(spec)
    assert run_job(spec_of(Path(spec.out) / "edited", tmp_path / "second")).exit_code == 0


@pytest.mark.parametrize("name", ["edited", "results", "images", "_state", "report", "latents"])
def test_a_linked_folder_of_the_output_is_refused(tmp_path, name):
    photos = collection(tmp_path / "photos", 2)
    out = tmp_path / "out"
    out.mkdir()
    (out / name).symlink_to(photos)
    said = refused(photos, out, LinkedOutputError)
    assert f"{out}/{name}" in said
    assert str(photos) in said


@pytest.mark.parametrize("name", ["staging", "tmp", "overwritten", "checkpoints"])
def test_a_linked_folder_of_the_state_is_refused(tmp_path, name):
    photos = collection(tmp_path / "photos", 2)
    state = tmp_path / "out" / "_state"
    state.mkdir(parents=True)
    (state / name).symlink_to(photos)
    refused(photos, tmp_path / "out", LinkedOutputError)


@pytest.mark.parametrize("whose", ["photos", "other"])
def test_a_linked_subfolder_of_edited_takes_nothing(tmp_path, whose):
    photos = collection(tmp_path / "photos", 4)
    other = collection(tmp_path / "other", 4, first_seed=20)
    (other / "sub" / "p001.jpg").write_bytes(jpeg(30))
    out = tmp_path / "out"
    (out / "edited").mkdir(parents=True)
    run_job(spec_of(photos, out), RunChoice(only_rows=("p000.jpg",)))
    (out / "edited" / "sub").symlink_to(tmp_path / whose / "sub")
    before = checksums(photos), checksums(other)
    summary = run_job(spec_of(photos, out))
    assert summary.exit_code == (exits.ENVIRONMENT if whose == "other" else exits.ROWS_FAILED)
    assert (checksums(photos), checksums(other)) == before


def test_photos_that_link_into_the_output_are_refused_by_their_folder(tmp_path):
    photos = collection(tmp_path / "photos", 2)
    spec = spec_of(photos)
    run_job(spec)
    (photos / "back").symlink_to(Path(spec.out) / "edited")
    with pytest.raises(OriginalError, match="back"):
        run_job(spec)


def test_a_manifest_that_names_photos_in_the_output_is_refused(tmp_path):
    out = tmp_path / "out"
    inside = collection(out / "mine", 1)
    (tmp_path / "m.csv").write_text(f"image_uri\n{inside / 'p000.jpg'}\n")
    with pytest.raises(OriginalError, match="mine"):
        run_job(spec_of(tmp_path / "m.csv", out))
    (tmp_path / "n.csv").write_text(f"image_uri\nfile://{inside}/p000.jpg\n")
    with pytest.raises(OriginalError, match="mine"):
        run_job(spec_of(tmp_path / "n.csv", out))


def test_the_recorded_manifest_is_no_input_of_its_own_folder(tmp_path):
    spec = spec_of(collection(tmp_path / "photos", 2))
    run_job(spec)
    recorded = Path(spec.out) / "_manifest.parquet"
    before = recorded.read_bytes()
    with pytest.raises(OriginalError):
        run_job(spec_of(recorded, spec.out))
    assert recorded.read_bytes() == before


def test_the_output_may_lie_among_the_photos(tmp_path):
    photos = collection(tmp_path / "photos", 2)
    before = checksums(photos)
    spec = spec_of(photos, photos / "out")
    assert run_job(spec).exit_code == 0
    assert run_job(spec).counts["ok"] == 2
    assert {k: v for k, v in checksums(photos).items() if not k.startswith("out/")} == before


def test_an_output_reached_by_a_link_is_the_same_output(tmp_path):
    spec = spec_of(collection(tmp_path / "photos", 2))
    run_job(spec)
    (tmp_path / "way").symlink_to(spec.out)
    assert run_job(spec_of(tmp_path / "photos", tmp_path / "way")).computed == 0
    refused(tmp_path / "way" / "edited", spec.out)
    refused(Path(spec.out) / "edited", tmp_path / "way")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="mounts need root")
def test_a_mount_of_the_photos_in_the_output_is_seen_through(tmp_path):
    photos = collection(tmp_path / "photos", 2)
    edited = tmp_path / "out" / "edited"
    edited.mkdir(parents=True)
    mounted = subprocess.run(["mount", "--bind", photos, edited], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no bind mount here: {mounted.stderr!r}")
    try:
        with pytest.raises(OriginalError):
            refuse_overlap(tmp_path / "out", [str(photos / "sub")])
    finally:
        subprocess.run(["umount", edited], check=True)


def test_a_photo_that_links_into_the_output_is_refused_under_any_name(tmp_path):
    photos = collection(tmp_path / "photos", 2)
    spec = spec_of(photos)
    run_job(spec)
    edit = Path(spec.out) / "edited" / "p000.jpg"
    (photos / "best.jpg").symlink_to(edit)
    before = edit.read_bytes()
    refused(photos, spec.out)
    (tmp_path / "m.csv").write_text(f"row_id,image_uri\nq.jpg,{photos}/best.jpg\n")
    with pytest.raises(OriginalError, match="edited"):
        run_job(spec_of(tmp_path / "m.csv", spec.out), RunChoice(moved=True))
    assert edit.read_bytes() == before


def test_a_path_of_a_thousand_folders_fails_its_row_alone(tmp_path):
    photos = collection(tmp_path / "photos", 1)
    deep = "/" + "a/" * 1500 + "x.jpg"
    (tmp_path / "m.csv").write_text(f"row_id,image_uri\na.jpg,{photos}/p000.jpg\nb.jpg,{deep}\n")
    summary = run_job(spec_of(tmp_path / "m.csv", tmp_path / "out"))
    assert (summary.exit_code, summary.counts["ok"], summary.counts["failed"]) == (3, 1, 1)


@pytest.mark.parametrize(
    ("out", "place", "inside"),
    [
        ("s3://b/OUT", "s3://b/OUT/edited/a.jpg", True),
        ("s3://b/OUT", "s3://b//OUT/./edited/", True),
        ("s3://b/OUT", "s3a://b/OUT", True),
        ("s3://b/OUT", "s3://b/OUT?endpoint_override=x", True),
        ("gs://b/OUT", "gcs://key@b/OUT/edited", True),
        ("s3://b/OUT", "s3://b/OUT2/a.jpg", False),
        ("s3://b/OUT", "s3://c/OUT/a.jpg", False),
        ("s3://b/OUT", "/OUT/edited", False),
        ("s3://b/OUT", "https://b/OUT/a.jpg", False),
        ("/nowhere/OUT", "s3://nowhere/OUT/a.jpg", False),
    ],
)
def test_addresses_are_compared_by_what_they_name(out, place, inside):
    if inside:
        with pytest.raises(OriginalError):
            refuse_overlap(out, [place])
    else:
        refuse_overlap(out, [place])


def test_each_folder_of_a_table_is_asked_for_once():
    uris = ["/a/b/1.jpg", "/a/b/2.jpg", "s3://k/c/3.jpg", None, "/m/x.parquet#row=3"]
    subjects = [None, ["/s/4.jpg"], None, None, ["/a/b/5.jpg"]]
    unknown = pa.nulls(len(uris), pa.int64())
    table = pa.table({"image_uri": uris, "subject_uris": subjects, "size_bytes": unknown})
    assert input_folders(table) == ["/a/b/", "/m/", "/s/", "s3://k/c/"]


def test_an_edit_never_goes_beside_its_photo(tmp_path):
    photos = collection(tmp_path / "photos", 2)
    with pytest.raises(OriginalError):
        refuse_original(str(photos / "new.jpg"), str(photos / "p000.jpg"))
    os.link(photos / "p000.jpg", tmp_path / "hard.jpg")
    with pytest.raises(OriginalError):
        refuse_original(str(tmp_path / "hard.jpg"), f"file://{photos}/p000.jpg")
    refuse_original(str(tmp_path / "new.jpg"), str(photos / "p000.jpg"))
    (tmp_path / "edited").mkdir()
    with pytest.raises(OriginalError):
        OutputFolder(tmp_path).write_file("edited", "a.jpg", b"", str(tmp_path / "edited/a.jpg"))


@pytest.mark.parametrize("write", ["write", "delete", "move", "link", "clear"])
def test_nothing_is_written_moved_or_removed_through_a_link(tmp_path, write):
    (tmp_path / "mine").mkdir()
    for name in ("a", f"{0:032x}.tmp"):
        (tmp_path / "mine" / name).write_bytes(b"mine")
    root = tmp_path / "out"
    (root / "_state").mkdir(parents=True)
    (root / "b").write_bytes(b"ours")
    (root / "edited").symlink_to(tmp_path / "mine")
    (root / "_state" / "tmp").symlink_to(tmp_path / "mine")
    storage = LocalStorage(root)
    calls = {
        "write": lambda: storage.write("edited/a", b""),
        "delete": lambda: storage.delete("edited/a"),
        "move": lambda: storage.move("edited/a", "c"),
        "link": lambda: storage.link("b", "edited/new"),
        "clear": storage.clear_temporary,
    }
    with pytest.raises(LinkedOutputError):
        calls[write]()
    assert [p.read_bytes() for p in (tmp_path / "mine").iterdir()] == [b"mine", b"mine"]


@pytest.mark.parametrize("name", ["driver.lock", "driver.json.new", "logs/run=r.jsonl"])
def test_files_that_are_opened_in_place_are_no_links(tmp_path, name):
    mine = tmp_path / "mine.jpg"
    mine.write_bytes(b"mine")
    linked = tmp_path / "out" / "_state" / name
    linked.parent.mkdir(parents=True)
    linked.symlink_to(mine)
    with pytest.raises(LinkedOutputError):
        LocalStorage(tmp_path / "out").target(f"_state/{name}", in_place=True)
    with pytest.raises(LinkedOutputError), OutputFolder(tmp_path / "out").lock():
        raise LinkedOutputError("no lock") if name.startswith("logs") else AssertionError
    assert mine.read_bytes() == b"mine"


def test_a_replay_goes_to_a_folder_of_its_own(tmp_path):
    photos = collection(tmp_path / "photos", 2)
    spec = spec_of(photos)
    run_job(spec)
    before = checksums(photos), checksums(Path(spec.out))
    for to in (photos, Path(spec.out), Path(spec.out) / "edited", photos / "sub"):
        with pytest.raises((OriginalError, exits.UsageError), match="--to"):
            replay_rows(spec.out, ["p000.jpg"], to, "cpu", as_json=True)
    assert (checksums(photos), checksums(Path(spec.out))) == before


def test_a_replay_never_goes_where_the_photos_have_come_to_lie(tmp_path):
    first = spec_of(collection(tmp_path / "photos", 2), tmp_path / "out")
    run_job(first)
    best = tmp_path / "best"
    replay_rows(first.out, ["p000.jpg"], best, "cpu", as_json=True)
    second = spec_of(best, tmp_path / "out2")
    run_job(second)
    before = checksums(best)
    with pytest.raises(OriginalError, match="--to"):
        replay_rows(second.out, ["p000.jpg"], best, "cpu", as_json=True)
    with pytest.raises(OriginalError, match="--out"):
        list(restrength_edits(second.out, str(best), 0.5))
    assert checksums(best) == before


@pytest.mark.parametrize("where", ["edited/x", "mine", "results"])
def test_neither_a_replay_nor_a_manifest_goes_into_an_output_folder(tmp_path, where):
    photos = collection(tmp_path / "photos", 2)
    spec = spec_of(photos)
    run_job(spec)
    before = checksums(Path(spec.out))
    with pytest.raises(exits.UsageError, match="output folder"):
        replay_rows(spec.out, ["p000.jpg"], Path(spec.out) / where, "cpu", as_json=True)
    for name in ("part-000001.parquet", "new.parquet"):
        target = Path(spec.out) / "results" / name
        with pytest.raises(exits.UsageError, match="output folder"):
            build(photos, target, overwrite=True)
    assert checksums(Path(spec.out)) == before


@pytest.mark.parametrize("mark", ["_replay.json", "_restrength.json", "_evaluation.json"])
def test_what_a_command_has_filled_is_no_photo_of_the_next_night(tmp_path, mark):
    photos = collection(tmp_path / "photos", 2)
    made = collection(photos / "made", 2, first_seed=50)
    assert scan_photos(photos).num_rows == 4
    (made / mark).write_text("{}")
    assert scan_photos(photos).num_rows == 2
    assert scan_photos(made).num_rows == 2  # asked for by name


def test_a_restrength_finds_photos_that_have_moved(tmp_path):
    photos = collection(tmp_path / "first", 2)
    editor = "tests.pipeline.test_restrength:load_editor"
    run_job(make_spec(photos, tmp_path / "out", runner="inline", editor=editor))
    photos.rename(tmp_path / "second")
    spec = make_spec(tmp_path / "second", tmp_path / "out", runner="inline", editor=editor)
    run_job(spec, RunChoice(moved=True))
    done = list(restrength_edits(spec.out, str(tmp_path / "half"), 0.5))
    assert [photo.error for photo in done] == [None, None]


def test_other_commands_fill_folders_of_their_own(tmp_path):
    photos = collection(tmp_path / "photos", 2)
    spec = spec_of(photos)
    run_job(spec)
    before = checksums(photos)
    for fill in (
        lambda: build_pairwise(Wanted(spec.out), photos),
        lambda: claim_evaluation(photos),
        lambda: claim_evaluation(photos / "p000.jpg"),
    ):
        with pytest.raises(OriginalError):
            fill()
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / ".DS_Store").write_bytes(b"x")
    claim_evaluation(tmp_path / "new")
    claim_evaluation(tmp_path / "new")
    (tmp_path / "new" / "sheets").symlink_to(photos)
    with pytest.raises(LinkedOutputError):
        claim_evaluation(tmp_path / "new")
    assert checksums(photos) == before


@pytest.mark.parametrize("name", ["report", "report/thumbnails"])
def test_a_report_is_not_written_through_a_link(tmp_path, name):
    photos = collection(tmp_path / "photos", 2)
    spec = spec_of(photos)
    run_job(spec)
    link = Path(spec.out) / name
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(photos)
    before = checksums(photos)
    with pytest.raises(LinkedOutputError):
        build_report(spec.out)
    assert checksums(photos) == before


# Other photos under the same --out


def test_another_folder_does_not_take_over_the_results(tmp_path, edits):
    spec = spec_of(collection(tmp_path / "first", 2), tmp_path / "out")
    run_job(spec)
    before = checksums(tmp_path / "out" / "edited"), results(spec)
    other = collection(tmp_path / "second", 2, first_seed=10)
    (other / "p000.jpg").write_bytes(jpeg(99))
    said = refused(other, tmp_path / "out", JobConflictError)
    assert f"{tmp_path}/first" in said
    assert f"{tmp_path}/second" in said
    assert "--moved" in said
    with pytest.raises(JobConflictError, match="first"):
        run_job(spec_of(other, tmp_path / "out"), RunChoice(redo=True))
    assert checksums(tmp_path / "out" / "edited") == before[0]
    assert results(spec).equals(before[1])
    assert run_job(spec).computed == 0
    assert edits() == 2


def test_a_collection_that_has_moved_goes_on_when_told_so(tmp_path, edits):
    photos = collection(tmp_path / "first", 3)
    run_job(spec_of(photos, tmp_path / "out"))
    photos.rename(tmp_path / "second")
    moved = spec_of(tmp_path / "second", tmp_path / "out")
    with pytest.raises(JobConflictError, match="first"):
        run_job(moved)
    assert run_job(moved, RunChoice(moved=True)).counts["ok"] == 3
    assert run_job(moved).computed == 0
    assert edits() == 3


def test_the_same_folder_by_another_way_is_the_same_collection(tmp_path, edits):
    photos = collection(tmp_path / "first", 2)
    run_job(spec_of(photos, tmp_path / "out"))
    (tmp_path / "way").symlink_to(photos)
    assert run_job(spec_of(tmp_path / "way", tmp_path / "out")).computed == 0
    assert run_job(spec_of(f"file://{photos}", tmp_path / "out")).computed == 0
    assert edits() == 2


def manifest(path, **photos):
    rows = {"row_id": list(photos), "image_uri": [str(p) for p in photos.values()]}
    pq.write_table(pa.table(rows), path)
    return path


def test_manifests_may_take_turns_over_the_same_photos(tmp_path, edits):
    photos = collection(tmp_path / "photos", 4)
    monday = manifest(tmp_path / "monday.parquet", a=photos / "p000.jpg", b=photos / "p002.jpg")
    tuesday = manifest(
        tmp_path / "tuesday.parquet", b=photos / "p002.jpg", c=photos / "sub/p001.jpg"
    )
    run_job(spec_of(monday, tmp_path / "out"))
    assert run_job(spec_of(tuesday, tmp_path / "out")).computed == 1
    assert edits() == 3


def test_a_manifest_whose_names_mean_other_photos_is_refused(tmp_path):
    photos = collection(tmp_path / "photos", 4)
    monday = manifest(tmp_path / "monday.parquet", a=photos / "p000.jpg")
    tuesday = manifest(tmp_path / "tuesday.parquet", a=photos / "p002.jpg")
    run_job(spec_of(monday, tmp_path / "out"))
    for call in (lambda s: preview_plan(s, RunChoice()), run_job):
        with pytest.raises(JobConflictError, match=r"p000\.jpg as 'a'.*p002\.jpg"):
            call(spec_of(tuesday, tmp_path / "out"))
    # The same manifest, edited in place, is what its owner means.
    manifest(tmp_path / "monday.parquet", a=photos / "p002.jpg")
    assert run_job(spec_of(monday, tmp_path / "out")).computed == 1


def test_a_manifest_is_held_to_the_results_of_all_earlier_ones(tmp_path):
    photos = collection(tmp_path / "photos", 4)
    for day, rows in (
        ("monday", {"x": photos / "p000.jpg"}),
        ("tuesday", {"y": photos / "sub/p001.jpg"}),
    ):
        run_job(spec_of(manifest(tmp_path / f"{day}.parquet", **rows), tmp_path / "out"))
    wednesday = manifest(tmp_path / "wednesday.parquet", x=photos / "p002.jpg")
    with pytest.raises(JobConflictError, match=r"p000\.jpg as 'x'"):
        run_job(spec_of(wednesday, tmp_path / "out"))


def test_a_link_that_leads_to_another_collection_now_is_refused(tmp_path, edits):
    first = collection(tmp_path / "first", 3)
    second = collection(tmp_path / "second", 3, first_seed=40)
    for path in sorted(first.rglob("*.jpg")):
        (second / path.relative_to(first)).write_bytes(jpeg(60 + len(path.name)))
    way = tmp_path / "way"
    way.symlink_to(first)
    run_job(spec_of(way, tmp_path / "out"))
    way.unlink()
    way.symlink_to(second)
    for call in (lambda s: preview_plan(s, RunChoice()), run_job):
        with pytest.raises(JobConflictError, match=r"first.*second"):
            call(spec_of(way, tmp_path / "out"))
    assert edits() == 3


def test_the_same_photos_by_another_mount_go_on(tmp_path, edits):
    first = collection(tmp_path / "first", 3)
    way = tmp_path / "way"
    way.symlink_to(first)
    run_job(spec_of(way, tmp_path / "out"))
    way.unlink()
    first.rename(tmp_path / "elsewhere")
    way.symlink_to(tmp_path / "elsewhere")
    (way / "p000.jpg").write_bytes(jpeg(70))
    assert run_job(spec_of(way, tmp_path / "out")).computed == 1
    assert edits() == 4


def test_a_folder_and_its_manifest_are_not_taken_for_each_other(tmp_path):
    photos = collection(tmp_path / "photos", 2)
    run_job(spec_of(photos, tmp_path / "out"))
    table = manifest(tmp_path / "m.parquet", **{"p000.jpg": photos / "p000.jpg"})
    with pytest.raises(JobConflictError, match=r"m\.parquet"):
        run_job(spec_of(table, tmp_path / "out"))
    assert run_job(spec_of(table, tmp_path / "out"), RunChoice(moved=True)).computed == 0
