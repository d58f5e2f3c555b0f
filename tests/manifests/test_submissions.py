"""The records of what a cluster was given: found again, bounded, and never taken on trust."""

import json

import pytest

from manifests.storage import open_storage
from manifests.submissions import (
    KEPT,
    SUBMISSIONS,
    Submission,
    attempt_of,
    read_submissions,
    remove_submission,
    spec_path,
    submission_name,
    write_submission,
)

NAME = submission_name("/data/out", "f" * 32)


def submission(attempt, at="2026-11-01T00:00:00"):
    return Submission(f"{NAME}-{attempt}", "auto", "http://h:8265", "session_1", at, ["spec"])


def test_the_name_is_that_of_the_folder_and_the_options():
    assert submission_name("/data/out", "f" * 32) == NAME
    assert submission_name("/data/out2", "f" * 32) != NAME
    assert submission_name("/data/out", "e" * 32) != NAME
    assert submission_name("/data/\udcff", "e" * 32)  # a name that is not UTF-8
    assert attempt_of(f"{NAME}-12") == 12


def test_submissions_come_back_the_newest_last(tmp_path):
    storage = open_storage(tmp_path)
    assert read_submissions(storage) == []
    for attempt in (2, 10, 1):
        write_submission(storage, submission(attempt, f"2026-11-{attempt:02}"), "{}")
    assert [s.attempt for s in read_submissions(storage)] == [1, 2, 10]
    assert read_submissions(storage)[-1] == submission(10, "2026-11-10")
    assert storage.read(spec_path(f"{NAME}-10")) == b"{}"
    remove_submission(storage, f"{NAME}-10")
    assert [s.attempt for s in read_submissions(storage)] == [1, 2]
    assert not storage.exists(spec_path(f"{NAME}-10"))


def test_only_the_newest_are_kept(tmp_path):
    storage = open_storage(tmp_path)
    for attempt in range(1, KEPT + 4):
        write_submission(storage, submission(attempt), "{}")
    assert [s.attempt for s in read_submissions(storage)] == list(range(4, KEPT + 4))
    assert len(storage.files(SUBMISSIONS)) == 2 * KEPT


@pytest.mark.parametrize(
    "change",
    [{"submission_id": "../../api"}, {"submission_id": f"{NAME}-0"}, {"submission_id": 3},
     {"url": None}, {"address": ["auto"]}, {"more": 1}],
)  # fmt: skip
def test_records_that_are_not_ours_are_passed_over(tmp_path, change):
    storage = open_storage(tmp_path)
    write_submission(storage, submission(1), "{}")
    path = f"{SUBMISSIONS}/{NAME}-1.json"
    storage.write(path, json.dumps({**json.loads(storage.read(path)), **change}).encode())
    storage.write(f"{SUBMISSIONS}/{NAME}-2.json", b"{ damaged")
    assert read_submissions(storage) == []
