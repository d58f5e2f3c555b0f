"""A run's figures, as a Prometheus that scrapes Ray would see them."""

import sys
import time
import urllib.request

import pytest

from pipeline.metrics import RunMetrics, WorkerMeter, device_memory_bytes
from pipeline.run import run_job
from pipeline.spec import make_spec
from tests.photos import collection

NAMES = {
    "ray_doodl_rows_done_total", "ray_doodl_rows_failed_total", "ray_doodl_batches_in_flight",
    "ray_doodl_iterations_per_second", "ray_doodl_device_memory_bytes",
}  # fmt: skip


def test_without_ray_meters_do_nothing_and_do_not_import_it():
    before = "ray" in sys.modules
    metrics, meter = RunMetrics("job"), WorkerMeter("job", "cpu")
    metrics.event("row", status="ok")
    metrics.load(3)
    meter.begin()
    meter.iteration()
    assert ("ray" in sys.modules) == before
    assert device_memory_bytes("cpu") > 10 * 2**20


class Scraper:
    """An observer that, once a few rows are done, reads the node's metrics until all are there."""

    def __init__(self, rows):
        self.left, self.found = rows, {}

    def message(self, text): ...

    def start(self, total): ...

    def row(self, row_id, status, detail):
        import ray

        self.left -= 1
        if self.left:
            return
        node = ray.nodes()[0]
        address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not set(self.found) >= NAMES:
            time.sleep(1)
            with urllib.request.urlopen(address, timeout=10) as answer:
                lines = answer.read().decode().splitlines()
            for line in lines:
                if line.startswith("ray_doodl_"):
                    name, _, rest = line.partition("{")
                    self.found.setdefault(name, []).append((rest, float(line.rsplit(" ", 1)[1])))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ray_shows_rows_iterations_and_memory(tmp_path, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    pytest.importorskip("ray.dashboard.modules.job", reason="needs ray[default], which exports")
    photos = collection(tmp_path / "photos", 6)
    (photos / "bad.jpg").write_bytes(b"x")
    spec = make_spec(
        photos, editor="tests.fakes:load_slow_editor", num_workers=1, checkpoint_every=0
    )
    scraper = Scraper(5)
    assert run_job(spec, observer=scraper).computed == 7
    found = {name: max(value for _, value in rows) for name, rows in scraper.found.items()}
    assert set(found) >= NAMES
    assert found["ray_doodl_rows_failed_total"] == 1
    assert 1 <= found["ray_doodl_rows_done_total"] <= 4
    assert found["ray_doodl_batches_in_flight"] == 1
    # 0.1 s an iteration, and what a loaded machine adds.
    assert 0.1 < found["ray_doodl_iterations_per_second"] <= 10
    assert found["ray_doodl_device_memory_bytes"] > 50 * 2**20
