"""Putting an output folder right again from what it holds twice; what it cannot, a retry does."""

from __future__ import annotations

from dataclasses import dataclass, field

from manifests.commits import EDITED, OutputFolder
from manifests.identity import hash_bytes
from manifests.parts import IMAGES, list_parts, part_path
from manifests.settling import set_aside
from pipeline.stages import writing_output
from pipeline.verify import Verdict, part_photos


@dataclass
class Repaired:
    """What was done: files moved to `_state/quarantine`, photos put back from `images/`."""

    set_aside: list[str] = field(default_factory=list)
    restored: list[str] = field(default_factory=list)


def repair_output(out: str, verdict: Verdict) -> Repaired:
    """Move damaged and foreign tables aside and put back photos that `images/` still has.

    Rows of a part moved aside are pending again: the next run does them. Nothing is deleted.
    Raises: OutputLockedError if a run is at work on the folder; PipelineError if OUT is not
        writable.
    """
    folder, done = OutputFolder(out), Repaired()
    storage = folder.storage
    with writing_output(), folder.lock():
        for finding in verdict.findings:
            if finding.kind in ("damaged", "foreign") and storage.exists(finding.name):
                set_aside(storage, finding.name)
                done.set_aside.append(finding.name)
        lost = {
            finding.row_id: finding.name
            for finding in verdict.findings
            if finding.kind in ("missing", "changed")
            and finding.row_id is not None
            and finding.name.startswith(f"{EDITED}/")
        }
        rows = folder.rows(lost) if lost else {}
        for number in list_parts(storage, IMAGES) if lost else ():
            for row_id, data in part_photos(storage, part_path(IMAGES, number)):
                want = rows[row_id].edited_hash if row_id in lost and row_id in rows else None
                if data is not None and want is not None and hash_bytes(data) == want:
                    storage.write(lost[row_id], data)
                    done.restored.append(lost[row_id])
    return done
