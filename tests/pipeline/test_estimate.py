"""How long and how dear: figures from the ledger, from a probe, or none."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.plan import duration, show_plan
from manifests.commits import OutputFolder
from manifests.ledger import Ledger
from pipeline.estimate import Calibration, estimate, from_ledger, probe, workers_of
from pipeline.hardware import device_name
from pipeline.plan import RunChoice, preview_plan
from pipeline.run import run_job
from tests.photos import collection
from tests.pipeline.conftest import spec_of


@pytest.fixture
def photos(tmp_path):
    return collection(tmp_path / "photos", 5)


def ledger(spec, seconds, **facts):
    """Add a run to the ledger of the spec's folder, with these worker seconds."""
    facts = {
        "device": device_name("cpu"), "state": "ok", "model": "pocket",
        "fingerprint": None, "run_id": "20260101", **facts,
    }  # fmt: skip
    from manifests.identity import params_fingerprint

    fingerprint = facts["fingerprint"] or params_fingerprint(spec.params())
    storage = OutputFolder(spec.out).storage
    with Ledger(
        storage, facts["run_id"], model=facts["model"], params_fingerprint=fingerprint
    ) as book:
        for i, value in enumerate(seconds):
            book.append(
                row_id=str(i), work_key=str(i), attempt=1, state=facts["state"],
                device=facts["device"], worker_seconds=value,
            )  # fmt: skip


def test_a_total_goes_with_the_mean_and_the_clock_with_whole_photos():
    calibration = Calibration((10.0, 10.0, 10.0, 50.0), "measured", load_seconds=5.0)
    found = estimate(9, calibration, workers=2, price_per_hour=3.6)
    assert (found.median_seconds, found.mean_seconds) == (10.0, 20.0)
    assert found.worker_hours == pytest.approx(9 * 20 / 3600)
    assert found.cost == pytest.approx(3.6 * 9 * 20 / 3600)
    assert found.eta_seconds == pytest.approx(5 * 20 + 5)  # five rounds of two, and the loading
    assert estimate(1, calibration, workers=8).workers == 1


def test_nothing_to_do_costs_nothing_and_nothing_known_is_said():
    assert estimate(0, None, workers=2, price_per_hour=5.0).cost == 0.0
    unknown = estimate(3, None, workers=2, price_per_hour=5.0, why_unknown="unknown: try x")
    assert (unknown.worker_hours, unknown.cost, unknown.basis) == (None, None, "unknown: try x")


def test_earlier_runs_of_the_same_model_and_device_tell(photos):
    spec = spec_of(photos)
    assert from_ledger(spec, [OutputFolder(spec.out)]) is None
    ledger(spec, [100.0], device="cuda: NVIDIA H200")
    ledger(spec, [200.0], model="/models/sd15")
    ledger(spec, [300.0], state="failed")
    ledger(spec, [400.0, None], state="worker_died")
    assert from_ledger(spec, [OutputFolder(spec.out)]) is None
    ledger(spec, [7.0, 8.0], fingerprint="of another recipe")
    other = from_ledger(spec, [OutputFolder(spec.out)])
    assert other is not None
    assert other.seconds == (7.0, 8.0)
    assert "with other options" in other.basis
    ledger(spec, [2.0, 3.0, 4.0])
    own = from_ledger(spec, [OutputFolder(spec.out)])
    assert own is not None
    assert own.seconds == (2.0, 3.0, 4.0)
    assert "3 photos of earlier runs with these options" in own.basis


def test_the_newest_runs_count_and_another_folder_may_tell(photos, tmp_path):
    spec = spec_of(photos)
    ledger(spec, [9.0] * 600, run_id="20250101")
    ledger(spec, [2.0] * 600, run_id="20260101")
    found = from_ledger(spec, [OutputFolder(spec.out)])
    assert found is not None
    assert set(found.seconds) == {2.0}
    fresh = spec_of(photos, tmp_path / "elsewhere")
    assert from_ledger(fresh, [OutputFolder(fresh.out)]) is None
    assert from_ledger(fresh, [OutputFolder(fresh.out), OutputFolder(spec.out)]) is not None


def test_a_runs_own_ledger_is_what_the_next_plan_goes_by(photos, monkeypatch):
    monkeypatch.setenv("DOODL_TEST_SECONDS", "0.05")
    spec = spec_of(photos)
    run_job(spec, RunChoice(limit=3))
    found = from_ledger(spec, [OutputFolder(spec.out)])
    assert found is not None
    assert len(found.seconds) == 3
    assert all(0.05 <= seconds < 30 for seconds in found.seconds)


def test_a_probe_edits_so_many_photos_and_keeps_nothing(photos, tmp_path, edits):
    (photos / "bad.jpg").write_bytes(b"x")
    spec = spec_of(photos)
    before = sorted(p for p in tmp_path.rglob("*") if p.name != "edits.log")
    found = probe(spec, preview_plan(spec, RunChoice()), 2)
    assert found is not None
    assert (len(found.seconds), edits()) == (2, 2)
    assert found.load_seconds is not None
    assert sorted(p for p in tmp_path.rglob("*") if p.name != "edits.log") == before
    hopeless = collection(tmp_path / "hopeless", 0)
    (hopeless / "bad.jpg").write_bytes(b"x")
    bad = spec_of(hopeless)
    assert probe(bad, preview_plan(bad, RunChoice()), 3) is None


def plan_json(capsys, photos, *, model="pocket", price=None, **options):
    options = {"probe_rows": None, "calibrate_from": None, "price_per_hour": price, **options}
    code = show_plan(
        Path(photos), None, {"model": model, "device": "cpu", "num_workers": 2}, {},
        as_json=True, **options,
    )  # fmt: skip
    assert code == 0
    return json.loads(capsys.readouterr().out)["estimate"]


def test_plan_reckons_from_the_ledger_with_a_price(photos, capsys):
    from pipeline.spec import make_spec

    spec = make_spec(photos, device="cpu")
    ledger(spec, [30.0, 60.0])
    found = plan_json(capsys, photos, price=4.0)
    assert found["worker_hours"] == pytest.approx(5 * 45 / 3600)
    assert found["cost"] == pytest.approx(4 * 5 * 45 / 3600)
    assert found["workers"] == 2
    assert "2 photos of earlier runs" in found["basis"]


def test_plan_says_unknown_rather_than_guess(photos, capsys, monkeypatch):
    monkeypatch.setattr("jobs.plan.probe", lambda *_: pytest.fail("nobody asked for a probe"))
    found = plan_json(capsys, photos, probe_rows=0)
    assert found["worker_hours"] is None
    assert "--probe" in found["basis"]


def test_plan_probes_one_photo_by_itself_with_the_shipped_model_only(photos, capsys, monkeypatch):
    asked = []

    def measured(spec, plan, count):
        asked.append(count)
        return Calibration((2.0,), "1 photo measured just now")

    monkeypatch.setattr("jobs.plan.probe", measured)
    assert plan_json(capsys, photos)["mean_seconds"] == 2.0
    assert plan_json(capsys, photos, probe_rows=3)["mean_seconds"] == 2.0
    assert asked == [1, 3]
    monkeypatch.setattr("jobs.plan.SHIPPED_MODEL", "another")
    assert plan_json(capsys, photos)["worker_hours"] is None
    assert asked == [1, 3]


def test_workers_are_one_inline_and_as_asked_else(photos):
    spec = spec_of(photos)
    assert workers_of(spec) == 1
    assert workers_of(replace(spec, runner="local", num_workers=3)) == 3
    assert workers_of(replace(spec, runner="local")) >= 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89, "89 s"), (600, "10 min"), (7300, "2 h 2 min"), (200_000, "2 d 7 h")],
)
def test_durations_are_a_persons(seconds, text):
    assert duration(seconds) == text
