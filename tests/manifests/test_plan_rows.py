"""The plan: which rows are done, copied, computed, left."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.identity import input_key, work_key
from manifests.keys import input_keys
from manifests.plan import COMPUTED, STATES, PlanOptions, plan_rows
from manifests.rows import manifest_rows
from manifests.schemas import INPUT_SCHEMA

DONE_SCHEMA = pa.schema(
    [
        (name, pa.string())
        for name in ("row_id", "input_key", "work_key", "status", "error_type", "edited_uri")
    ]
)


def inputs(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=INPUT_SCHEMA)


def photo(row_id: str, content: str | None = None, **columns: Any) -> dict[str, Any]:
    """Return a row whose photo holds `content` (by default its own name)."""
    return {"row_id": row_id, "image_hash": content or row_id, **columns}


def done(*rows: tuple[str, str, str] | tuple[str, str, str, str]) -> pa.Table:
    """Return done rows from (row_id, content, status[, error_type])."""
    return pa.Table.from_pylist(
        [
            {
                "row_id": row_id,
                "input_key": input_key(content, {}),
                "status": status,
                "error_type": error[0] if error else None,
            }
            for row_id, content, status, *error in rows
        ],
        schema=DONE_SCHEMA,
    )


def states(rows: list[dict[str, Any]], before: pa.Table, **options: Any) -> dict[str, str]:
    plan = plan_rows(inputs(rows), before, "p", PlanOptions(**options))
    table = plan.table.to_pydict()
    assert plan.counts == {s: table["state"].count(s) for s in STATES}
    return dict(zip(table["row_id"], table["state"], strict=True))


def test_rows_done_with_this_input_are_done() -> None:
    rows = [photo("a"), photo("b"), photo("c"), photo("d")]
    before = done(("a", "a", "ok"), ("b", "b", "rejected"), ("c", "c", "skipped"))
    assert states(rows, before) == {"a": "done", "b": "done", "c": "done", "d": "new"}


@pytest.mark.parametrize(
    "columns", [{"prompt": "x"}, {"seed": 1}, {"target": 5.0}, {"subject_hashes": ["s"]}]
)
def test_row_whose_option_changed_is_computed_and_no_other(columns: dict[str, Any]) -> None:
    rows = [photo("a", **columns), photo("b")]
    before = done(("a", "a", "ok"), ("b", "b", "ok"))
    assert states(rows, before) == {"a": "changed", "b": "done"}


def test_changed_photo_is_computed() -> None:
    assert states([photo("a", "other")], done(("a", "a", "ok"))) == {"a": "changed"}


def test_failed_rows_are_retried_as_asked() -> None:
    rows = [photo("a"), photo("b"), photo("new")]
    before = done(("a", "a", "failed", "OutOfMemory"), ("b", "b", "failed", "BadPhoto"))
    retryable = frozenset({"OutOfMemory"})
    assert states(rows, before, retryable=retryable) == {"a": "retry", "b": "failed", "new": "new"}
    assert states(rows, before, retry_failed="all")["b"] == "retry"
    assert states(rows, before, retry_failed="none", retryable=retryable)["a"] == "failed"
    only = states(rows, before, retry_failed="all", only_failed=True)
    assert only == {"a": "retry", "b": "retry", "new": "deferred"}


def test_force_computes_what_is_done() -> None:
    rows = [photo("a"), photo("b")]
    before = done(("a", "a", "ok"), ("b", "b", "failed", "BadPhoto"))
    assert states(rows, before, force=True) == {"a": "forced", "b": "retry"}


def test_limit_and_since_defer_the_rest() -> None:
    rows = [photo(name, mtime_ns=i * 10**9) for i, name in enumerate("abcd")]
    since = datetime.fromtimestamp(2, UTC)
    assert states(rows, done(), since=since) == {
        "a": "deferred",
        "b": "deferred",
        "c": "new",
        "d": "new",
    }
    assert list(states(rows, done(), limit=1).values()) == ["new"] + ["deferred"] * 3
    assert list(states(rows, done(), limit=0).values()) == ["deferred"] * 4


def test_known_work_under_another_name_is_copied() -> None:
    plan = plan_rows(
        inputs([photo("renamed", "a"), photo("b"), photo("b again", "b")]),
        done(("a", "a", "ok")),
        "p",
    )
    rows = {row["row_id"]: row for row in plan.table.to_pylist()}
    assert (rows["renamed"]["state"], rows["renamed"]["source_row_id"]) == ("copy", "a")
    assert rows["renamed"]["source_pending"] is False
    assert rows["b"]["state"] == "new"
    assert (rows["b again"]["state"], rows["b again"]["source_row_id"]) == ("copy", "b")
    assert rows["b again"]["source_pending"] is True
    assert rows["b again"]["work_key"] == rows["b"]["work_key"]
    assert plan.num_orphans == 1
    assert plan.copies_first()["row_id"].to_pylist() == ["renamed"]
    assert plan.copies_after()["row_id"].to_pylist() == ["b again"]
    assert plan.num_pending == 3


def test_failed_work_is_not_copied() -> None:
    assert states([photo("b", "a")], done(("a", "a", "failed"))) == {"b": "new"}


def test_copy_of_a_deferred_row_is_deferred() -> None:
    rows = [photo("a"), photo("b"), photo("b again", "b"), photo("a again", "a")]
    assert states(rows, done(), limit=1) == {
        "a": "new",
        "b": "deferred",
        "b again": "deferred",
        "a again": "copy",
    }


def test_two_photos_that_swapped_names_cost_one_computation() -> None:
    rows = [photo("a", "b"), photo("b", "a")]
    before = done(("a", "a", "ok"), ("b", "b", "ok"))
    assert sorted(states(rows, before).values()) == ["changed", "copy"]


def test_chain_of_renames_is_copied_from_its_end() -> None:
    # Numbered photos, one put in front: each takes the place of the next.
    rows = [photo("1", "zero"), photo("2", "1"), photo("3", "2"), photo("4", "3")]
    plan = plan_rows(inputs(rows), done(*((n, n, "ok") for n in "123")), "p")
    assert plan.copies_first()["row_id"].to_pylist() == ["4", "3", "2"]
    assert plan.to_compute()["row_id"].to_pylist() == ["1"]


def test_row_that_cannot_be_run_fails_once() -> None:
    row = photo("a", row_error="no such file", row_error_type="FileNotFoundError")
    plan = plan_rows(inputs([row]), done(), "p")
    assert plan.counts["invalid"] == 1
    (planned,) = plan.invalid().to_pylist()
    failed = {**planned, "status": "failed", "error_type": "FileNotFoundError"}
    before = pa.Table.from_pylist([failed], schema=DONE_SCHEMA)
    assert states([row], before, retryable=frozenset({"FileNotFoundError"})) == {"a": "failed"}
    assert states([row], before, retry_failed="all") == {"a": "failed"}
    assert states([{**row, "row_error": "permission denied"}], before) == {"a": "invalid"}
    assert states([photo("a")], before) == {"a": "changed"}


def test_planned_rows_read_back_as_manifest_rows() -> None:
    table = inputs([photo("a", prompt="x")]).append_column("rating", pa.array([5]))
    (row,) = manifest_rows(plan_rows(table, done(), "p").to_compute())
    assert (row.row_id, row.prompt, row.extra) == ("a", "x", {"rating": 5})


def test_empty_manifest_plans_nothing() -> None:
    plan = plan_rows(inputs([]), done(("a", "a", "ok")), "p")
    assert (plan.table.num_rows, plan.num_orphans, plan.num_pending) == (0, 1, 0)
    assert plan.copies_first().num_rows == 0


COLUMNS = st.fixed_dictionaries(
    {},
    optional={
        "image_hash": st.sampled_from(["x", "y"]),
        "prompt": st.sampled_from(["p", ""]),
        "seed": st.integers(0, 2),
        "strength": st.sampled_from([0.0, 1.0]),
        "subject_hashes": st.lists(st.sampled_from(["s", "t"]), max_size=2),
    },
)


@given(st.lists(COLUMNS, max_size=6))
def test_keys_of_a_table_are_those_of_its_rows(rows: list[dict[str, Any]]) -> None:
    table = inputs([{"row_id": str(i), **row} for i, row in enumerate(rows)])
    assert input_keys(table).to_pylist() == [
        input_key(
            row.get("image_hash"),
            {k: row.get(k) for k in ("prompt", "seed", "strength")},
            row.get("subject_hashes", ()),
        )
        for row in rows
    ]


NAMES = st.sampled_from("abcde")
STATUS = st.sampled_from(["ok", "rejected", "failed"])


@settings(max_examples=300)
@given(
    manifest=st.dictionaries(NAMES, NAMES),
    before=st.dictionaries(NAMES, st.tuples(NAMES, STATUS)),
    options=st.builds(
        PlanOptions,
        force=st.booleans(),
        retry_failed=st.sampled_from(["all", "none", "retryable"]),
        only_failed=st.booleans(),
        limit=st.none() | st.integers(0, 4),
    ),
)
def test_plan_is_sound(
    manifest: dict[str, str], before: dict[str, tuple[str, str]], options: PlanOptions
) -> None:
    plan = plan_rows(
        inputs([photo(name, content) for name, content in manifest.items()]),
        done(*((name, *row) for name, row in before.items())),
        "p",
        options,
    )
    rows = plan.table.to_pylist()
    assert [row["row_id"] for row in rows] == list(manifest)  # none vanishes
    computed = [row for row in rows if row["state"] in COMPUTED]
    keys = [row["input_key"] for row in computed]
    assert len(set(keys)) == len(keys)  # nothing computed twice
    assert options.limit is None or len(computed) <= options.limit
    for row in rows:
        content, status = before.get(row["row_id"], (None, None))
        same = content == manifest[row["row_id"]]
        if row["state"] == "done":
            assert same
            assert status != "failed"
        if row["state"] == "failed":
            assert same
            assert status == "failed"
        if same and status not in (None, "failed") and not options.force:
            assert row["state"] == "done"
        if row["state"] not in ("done", "failed"):
            assert row["work_key"] == work_key(row["input_key"], "p")
    # Made in their order, copies read what they are to read: run it on a model of the folder.
    folder = {name: content for name, (content, status) in before.items() if status != "failed"}
    for row in plan.copies_first().to_pylist():
        folder[row["row_id"]] = folder[row["source_row_id"]]
        assert folder[row["row_id"]] == manifest[row["row_id"]]
    for row in computed:
        folder[row["row_id"]] = manifest[row["row_id"]]
    for row in plan.copies_after().to_pylist():
        folder[row["row_id"]] = folder[row["source_row_id"]]
        assert folder[row["row_id"]] == manifest[row["row_id"]]
