"""`_state/submissions/`: which jobs of a cluster were given this output folder's work."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass
from typing import Any

from manifests.identity import digest_of
from manifests.storage import Storage, own_files

SUBMISSIONS = "_state/submissions"
KEPT = 50
_ID = re.compile(r"doodl-batch-[0-9a-f]{16}-([1-9][0-9]{0,8})")
_RECORD_NAME = re.compile(rf"{_ID.pattern}\.json")


@dataclass(frozen=True)
class Submission:
    """One job given to a cluster.

    Attributes:
        submission_id: `submission_name(…)`-attempt. address: the cluster's, as it was given.
        url: its job server's. session: Ray's name of that start of the cluster.
        arguments: of `doodl-batch run`, the spec's path first.
    """

    submission_id: str
    address: str
    url: str
    session: str
    submitted_at: str
    arguments: list[str]

    @property
    def attempt(self) -> int:
        return attempt_of(self.submission_id)


def submission_name(out: str, fingerprint: str) -> str:
    """Return what the ids of a job's attempts begin with: the same for the same OUT and options."""
    digest = digest_of(b"submission/1", (os.fsencode(out), fingerprint.encode()))
    return f"doodl-batch-{digest[:16]}"


def attempt_of(submission_id: str) -> int:
    """Return an id's attempt, 0 if it is none of ours."""
    match = _ID.fullmatch(submission_id)
    return 0 if match is None else int(match[1])


def spec_path(submission_id: str) -> str:
    """Return where the spec that a submission runs lies in its output folder."""
    return f"{SUBMISSIONS}/{submission_id}.spec.json"


def write_submission(storage: Storage, submission: Submission, spec_json: str) -> None:
    """Record a submission and the spec it runs; the oldest beyond KEPT go."""
    path = _record_path(submission.submission_id)
    storage.write(spec_path(submission.submission_id), spec_json.encode())
    storage.write(path, (json.dumps(asdict(submission), indent=1) + "\n").encode())
    for old in read_submissions(storage)[:-KEPT]:
        remove_submission(storage, old.submission_id)


def remove_submission(storage: Storage, submission_id: str) -> None:
    """Forget a submission that was never accepted, or is long past."""
    for path in (_record_path(submission_id), spec_path(submission_id)):
        storage.delete(path)


def read_submissions(storage: Storage) -> list[Submission]:
    """Return the recorded submissions, the newest last; damaged records are passed over."""
    found = []
    for entry in own_files(storage, SUBMISSIONS, _RECORD_NAME):
        record = _read(storage, entry.name)
        if record is not None:
            found.append(record)
    return sorted(found, key=lambda s: (s.submitted_at, s.attempt))


def _read(storage: Storage, name: str) -> Submission | None:
    try:
        record: Any = json.loads(storage.read(f"{SUBMISSIONS}/{name}"))
        submission = Submission(**record)
    except (FileNotFoundError, ValueError, TypeError):
        return None
    texts = (submission.submission_id, submission.address, submission.url, submission.submitted_at)
    # The id becomes part of a URL: only ours are taken.
    sound = all(isinstance(text, str) for text in texts) and submission.attempt > 0
    return submission if sound else None


def _record_path(submission_id: str) -> str:
    return f"{SUBMISSIONS}/{submission_id}.json"
