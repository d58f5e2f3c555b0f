"""What `retry`, `verify` and `replay` do, and what a person reads of it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jobs import console, exits
from jobs.enhance import build_choice, run_spec
from jobs.submit import Where, find_place
from manifests.claims import claim_folder
from manifests.commits import OutputFolder
from manifests.errors import ManifestError
from manifests.originals import output_around
from manifests.paths import edited_relpath
from manifests.storage import LocalStorage
from pipeline.repair import repair_output
from pipeline.replay import Replayed, Replayer
from pipeline.spec import JobSpec
from pipeline.stages import describe, writing_output
from pipeline.verify import KINDS, Verdict, verify_output

SPEC_FILE = "_state/spec.json"
REPLAY_FILE = "_replay.json"
_NAMED = 50


def retry_rows(
    out: Path | str,
    *,
    failed: bool,
    classes: Sequence[str],
    rows: Sequence[str],
    damaged: bool,
    runner: str,
    address: str | None,
    report: bool,
    as_json: bool,
) -> int:
    """Run the folder's last spec on the chosen rows and return the run's exit code."""
    if sum(map(bool, (failed, classes, rows, damaged))) != 1:
        raise exits.UsageError("give one of --failed, --class CLASS, --row ROW and --damaged.")
    options: dict[str, Any] = {"only_failed": True, "only_classes": tuple(classes)}
    if rows or damaged:
        names = rows or verify_output(str(out)).damaged_rows()
        _check_known(out, names)
        if not names:
            console.say("every delivered file is there and unchanged: nothing to do again")
            return exits.OK
        options = {"force": True, "only_rows": tuple(names)}
    spec = last_spec(out)
    where = Where(runner, address)
    place = find_place(where, spec_runner=spec.runner)
    spec = spec.with_runner("cluster" if place.runner == "submit" else place.runner)
    return run_spec(
        spec, build_choice(options), [place.why], place, where, report=report, as_json=as_json
    )


def last_spec(out: Path | str) -> JobSpec:
    """Return the spec of a folder's last run. Raises: ManifestError if it has none."""
    storage = OutputFolder(str(out)).storage
    try:
        text = storage.read(SPEC_FILE).decode()
        return JobSpec.from_json(text)
    except FileNotFoundError:
        raise ManifestError(
            f"{out} is not an output folder with a run behind it: no {SPEC_FILE}."
        ) from None
    except ValueError as error:
        raise ManifestError(
            f"{out}/{SPEC_FILE} is damaged ({error}); run the job's own command again instead."
        ) from error


def _check_known(out: Path | str, names: Sequence[str]) -> None:
    manifest = OutputFolder(str(out)).read_manifest()
    known = set() if manifest is None else set(manifest["row_id"].to_pylist())
    unknown = [name for name in names if name not in known]
    if unknown:
        raise exits.UsageError(f"no row {unknown[0]!r} in {out}; names are those of its results.")


def verify_folder(out: Path | str, *, repair: bool, as_json: bool) -> int:
    """Print what is wrong with a folder and return 0 if nothing is, 3 otherwise."""
    verdict = verify_output(str(out))
    repaired = None
    if repair and verdict.findings:
        repaired = repair_output(str(out), verdict)
        verdict = verify_output(str(out))
    if as_json:
        console.print_json({
            "out": str(out), **asdict(verdict), "counts": verdict.counts(),
            "repaired": None if repaired is None else asdict(repaired),
        })  # fmt: skip
    else:
        if repaired is not None:
            console.say(
                f"{len(repaired.restored):,} photo(s) put back from images/, "
                f"{len(repaired.set_aside):,} file(s) moved to _state/quarantine"
            )
        _print_verdict(out, verdict)
    harmless = {"set aside", "clock"}
    return exits.OK if not set(verdict.counts()) - harmless else exits.ROWS_FAILED


def _print_verdict(out: Path | str, verdict: Verdict) -> None:
    for kind, count in verdict.counts().items():
        console.result(f"{kind}: {count:,} ({KINDS[kind]})")
        named = [f for f in verdict.findings if f.kind == kind]
        for finding in named[:_NAMED]:
            console.result(f"  {finding.name}: {finding.detail}")
        if len(named) > _NAMED:
            console.result(f"  and {len(named) - _NAMED:,} more; --json names them all")
    unhashed = f", {verdict.unhashed:,} of them older than hashes" if verdict.unhashed else ""
    console.result(f"{verdict.rows:,} rows, {verdict.photos:,} delivered files read{unhashed}")
    for hint in _hints(str(out), set(verdict.counts())):
        console.say(f"hint: {hint}")


def _hints(out: str, kinds: set[str]) -> list[str]:
    quoted, hints = shlex.quote(out), []
    if kinds & {"damaged", "foreign", "missing", "changed"}:
        hints.append(f"doodl-batch verify {quoted} --repair puts right what it can")
    if kinds & {"missing", "changed"}:
        hints.append(f"doodl-batch retry {quoted} --damaged makes the photos again")
    if "orphaned" in kinds:
        hints.append("an orphaned file is no row's: delete it, or move it away")
    return hints


def replay_rows(
    out: Path | str, rows: Sequence[str], to: Path | None, device: str | None, *, as_json: bool
) -> int:
    """Make rows again, print how far they differ, and return 0 if no pixel does, 3 otherwise."""
    replayer = Replayer(str(out), device=device)
    if to is not None:
        places = OutputFolder(str(out)).input_places()
        if (around := output_around(to)) is not None:
            raise exits.UsageError(f"{to} lies in the output folder {around}; choose another --to.")
        with writing_output():
            claim_folder(to, REPLAY_FILE, {"from": str(out)}, "--to", inputs=places)
    told: list[dict[str, Any]] = []
    same = True
    for row_id in rows:
        try:
            done = replayer(row_id)
        except Exception as error:  # the row boundary
            if len(rows) == 1:
                raise
            same = False
            told.append({"row_id": row_id, "error": describe(error)[1]})
            console.error(f"{row_id}: {describe(error)[1]}")
            continue
        same &= done.identical
        facts = asdict(done)
        del facts["encoded"]
        told.append({**facts, "file": _kept(to, done)})
        if not as_json:
            _print_replayed(done)
    if as_json:
        console.print_json({"out": str(out), "identical": same, "rows": told})
    return exits.OK if same else exits.ROWS_FAILED


def _kept(to: Path | None, done: Replayed) -> str | None:
    if to is None or done.encoded is None:
        return None
    suffix = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg"}
    kind = next((s for magic, s in suffix.items() if done.encoded.startswith(magic)), None)
    relpath = edited_relpath(done.row_id, kind or Path(done.row_id).suffix or ".jpg")
    target = LocalStorage(to)
    with writing_output():
        target.write(relpath, done.encoded)
    return str(target.local(relpath))


def _print_replayed(done: Replayed) -> None:
    if done.identical:
        how = "every pixel the same" + (", every byte too" if done.same_file else "")
    elif done.psnr_db is None:
        how = "not comparable"
    else:
        how = (
            f"{100 * (done.changed_share or 0):.3g} % of the pixels differ, by at most "
            f"{done.max_difference} levels; PSNR {done.psnr_db:.1f} dB"
        )
    console.result(f"{done.row_id}: {how}")
    for name, (then, now) in done.scores.items():
        if then != now:
            console.result(f"  {name}: {then:.6g} then, {now:.6g} now")
    for note in done.notes:
        console.result(f"  {note}")
