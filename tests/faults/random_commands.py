"""Command lines drawn at random over folders that are linked, nested and shared.

`python -m tests.faults.random_commands 500` runs so many and prints what became of them; a seed
gives the same command lines again.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

from jobs.cli import main
from pipeline import spec
from tests.photos import collection

EDITOR = "tests.pipeline.test_restrength:load_editor"


def originals(root: Path) -> dict[str, str]:
    """Make the photos and the ways that lead to them; return {path: digest} of every original."""
    photos = collection(root / "photos", 3)
    other = collection(root / "other", 3, first_seed=10)
    # Names of the one in the other: what is written over tells.
    for name in ("p000.jpg", "sub/p001.jpg"):
        shutil.copyfile(other / "p010.jpg", other / name)
    collection(root / "h" / "edited", 2, first_seed=20)
    collection(root / "nested" / "photos", 2, first_seed=30)
    collection(root / "nested" / "results", 2, first_seed=32)
    collection(root / "nested" / "deep" / "_state" / "tmp", 2, first_seed=34)
    collection(root / "strength" / "strength-0.5", 2, first_seed=36)
    (root / "photos" / "alias.jpg").symlink_to(other / "p010.jpg")
    os.link(photos / "p000.jpg", photos / "sub" / "hard.jpg")
    (photos / "loop").symlink_to(root)
    (other / "way").symlink_to(photos / "sub")
    (root / "link").symlink_to(photos)
    for out, below, to in (
        ("out1", "edited", "photos"),
        ("out2", "_state/tmp", "photos"),
        ("out3", "results", "other"),
        ("out4", "report", "photos/sub"),
        ("out5", "edited/sub", "other/sub"),
        ("out6", "_state/overwritten", "photos"),
    ):
        (root / out / below).parent.mkdir(parents=True)
        (root / out / below).symlink_to(root / to)
    (root / "out7" / "_state").mkdir(parents=True)
    (root / "out7" / "_state" / "driver.lock").symlink_to(photos / "p000.jpg")
    for table, folder in (("a.csv", photos), ("b.csv", other)):
        lines = ["row_id,image_uri", f"x.jpg,{folder}/p000.jpg", f"y.jpg,{root}/link/sub/p001.jpg"]
        (root / table).write_text("\n".join(lines) + "\n")
    return digests(root)


def digests(root: Path) -> dict[str, str]:
    """Return {path: digest} of every file that is no link."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def commands(root: Path, draw: random.Random) -> Iterator[tuple[Path, list[str]]]:
    """Yield (current folder, command line) for ever."""
    fixed = [
        "photos", "photos/sub", "other", "other/way", "link", "h", "h/edited", "nested",
        "nested/photos", "nested/results", "nested/deep", "strength", "out1", "out2", "out3",
        "out4", "out5", "out6", "out7", "new", "new/below", "photos/inside", "link/inside",
        "photos-doodl", "other-doodl", "fresh", "new/edited", "photos-doodl/edited", "fresh/edited",
    ]  # fmt: skip
    rows = ["p000.jpg", "sub/p001.jpg", "x.jpg", "p010.jpg", "alias.jpg"]

    def place() -> str:
        path = draw.choice(fixed)
        spelt = draw.choice(["{}", "{}/", "./{}", "{}/../{name}", "{root}/{}", "file://{root}/{}"])
        return spelt.format(path, root=root, name=Path(path).name)

    def photos() -> str:
        return draw.choice([place(), place(), place(), "a.csv", "b.csv", "photos/p000.jpg"])

    def out() -> str:
        jobs = sorted(str(job.parent) for job in root.rglob("_job.json"))
        if jobs and draw.random() < 0.5:
            return draw.choice(jobs)
        return draw.choice([place(), place(), "fresh", "photos-doodl", "."])

    while True:
        edit = ["--runner", "inline", "--no-report"]
        edit += [
            flag for flag in ("--redo", "--moved", "--sidecar", "--force") if draw.random() < 0.2
        ]
        if draw.random() < 0.3:
            edit += ["--images", draw.choice(["files", "parquet"])]
        words = draw.choice(
            [
                ["enhance", photos(), *edit],
                ["enhance", photos(), "--out", out(), *edit],
                ["enhance", photos(), "--out", out(), *edit],
                ["enhance", photos(), "--out", out(), "--protect", place(), *edit],
                ["plan", photos(), "--out", out(), "--probe", "0"],
                ["run", f"{out()}/_state/spec.json", "--runner", "inline"],
                ["retry", out(), draw.choice(["--failed", "--damaged"]), "--runner", "inline"],
                ["verify", out(), "--repair"],
                ["replay", out(), draw.choice(rows), "--to", place()],
                ["restrength", out(), "--strength", "0.5"],
                ["restrength", out(), "--strength", "0.3", "--out", place()],
                ["report", out()],
                ["report", out(), "--compare", out()],
                ["study", "pairwise", out(), "--to", place()],
                ["manifest", "build", photos(), draw.choice(["m.parquet", f"{place()}/m.parquet"])],
                ["manifest", "build", photos(), draw.choice(rows), "--overwrite"],
                ["status", out()],
                ["history", out()],
                ["evaluate", "enhance", photos(), "--out", draw.choice(["photos", "link", "h"])],
            ]
        )
        here = draw.choice([root] * 6 + [root / "h", root / "nested", root / "photos"])
        yield here, words


@contextmanager
def cheap_edits() -> Iterator[None]:
    """Let `enhance` edit without a model."""
    loaders = spec._LOADERS
    kept = dict(loaders)
    loaders["enhance"] = EDITOR
    try:
        yield
    finally:
        loaders.update(kept)


def run_command(here: Path, words: list[str]) -> tuple[int, str]:
    """Run a command line in this process; return (exit code, what it said)."""
    said, kept, where = StringIO(), sys.argv, Path.cwd()
    os.chdir(here)
    sys.argv = ["doodl-batch", *words]
    try:
        with redirect_stdout(said), redirect_stderr(said):
            main()
        return 0, said.getvalue()
    except SystemExit as ended:
        return int(ended.code or 0), said.getvalue()
    finally:
        sys.argv = kept
        os.chdir(where)


def run_random(root: Path, number: int, seed: int) -> Counter[tuple[str, int]]:
    """Run so many command lines; return how often each command ended with each exit code.

    Raises: AssertionError that names the command line after which an original is not what it was.
    """
    before = originals(root)
    ended: Counter[tuple[str, int]] = Counter()
    drawn = commands(root, random.Random(seed))
    with cheap_edits():
        for index, (here, words) in zip(range(number), drawn, strict=False):
            code, said = run_command(here, words)
            ended[words[0], code] += 1
            told = f"command {index} of seed {seed}, in {here}: {' '.join(words)}\n{said}"
            after = digests(root)
            changed = [name for name, digest in before.items() if after.get(name) != digest]
            assert not changed, f"{changed} after {told}"
            assert code != 1, f"a fault of the software: {told}"
            assert "Traceback" not in said, told
    return ended


if __name__ == "__main__":
    number, seed = (int(word) for word in [*sys.argv[1:], "0"][:2])
    with tempfile.TemporaryDirectory() as folder:
        for (command, code), count in sorted(run_random(Path(folder), number, seed).items()):
            print(f"{command:12} exit {code}: {count}")
