"""Keys: what changes them, and what does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.identity import (
    canonical_json,
    digest_of,
    hash_bytes,
    hash_file,
    input_key,
    params_fingerprint,
    row_seed,
    work_key,
)

PARTS = st.lists(st.binary(max_size=12), max_size=5)
COLUMNS = st.fixed_dictionaries(
    {},
    optional={
        "prompt": st.none() | st.text(max_size=8),
        "direction": st.none() | st.sampled_from(["up", "down"]),
        "seed": st.none() | st.integers(0, 9),
        "strength": st.none() | st.floats(0, 1),
    },
)


@given(PARTS, PARTS)
def test_digest_tells_any_two_lists_of_parts_apart(a: list[bytes], b: list[bytes]) -> None:
    assert (digest_of(b"x", a) == digest_of(b"x", b)) == (a == b)


def test_digest_of_one_kind_is_not_that_of_another() -> None:
    assert digest_of(b"x", [b"1"]) != digest_of(b"y", [b"1"])


def test_fingerprint_does_not_depend_on_the_order_of_keys() -> None:
    assert params_fingerprint({"a": 1, "b": {"c": 2, "d": 3}}) == params_fingerprint(
        {"b": {"d": 3, "c": 2}, "a": 1}
    )


def test_fingerprint_stays_what_it_was() -> None:
    # Changing it would recompute every collection in the world.
    fingerprint = params_fingerprint({"task": "enhance", "steps": 50})
    assert fingerprint == "2043b44b61394fc906461c08d346d839"
    key = input_key("00ff", {"prompt": "a bird", "strength": 1, "seed": None}, ["aa"])
    assert key == "f4dd27221a281bd45e899f037a8f1baa"
    assert work_key(key, "f") == "abf20fbad782fe8ef7fff865c438ad22"
    assert row_seed(work_key(key, "f")) == 3486217112608461082


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1: 2}, object(), {"a": {2: 3}}])
def test_json_refuses_what_it_cannot_say(value: object) -> None:
    with pytest.raises(ValueError, match=r"must be|JSON|use text"):
        canonical_json({"value": value})


@given(COLUMNS, COLUMNS)
def test_input_key_changes_with_any_option_that_is_said(a: dict, b: dict) -> None:
    said_a = {k: v for k, v in a.items() if v is not None}
    said_b = {k: v for k, v in b.items() if v is not None}
    assert (input_key("h", a) == input_key("h", b)) == (said_a == said_b)


def test_input_key_changes_with_photo_and_subjects() -> None:
    keys = [
        input_key("h", {}),
        input_key("g", {}),
        input_key(None, {}),
        input_key("h", {}, ["s"]),
        input_key("h", {}, ["s", "t"]),
        input_key("h", {}, ["t", "s"]),
    ]
    assert len(set(keys)) == len(keys)


def test_whole_number_is_the_float_it_is_read_back_as() -> None:
    assert input_key("h", {"strength": 1}) == input_key("h", {"strength": 1.0})


def test_seed_is_the_rows_own_or_follows_its_work() -> None:
    assert row_seed("aa", 7) == 7
    assert row_seed("aa") == row_seed("aa") != row_seed("ab")
    assert all(0 <= row_seed(str(i)) < 2**63 for i in range(1000))


def test_file_hash_is_that_of_its_bytes(tmp_path) -> None:
    path = tmp_path / "photo"
    data = bytes(range(256)) * 10_000
    path.write_bytes(data)
    assert hash_file(path) == hash_bytes(data)
