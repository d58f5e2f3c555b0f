"""Each benchmark of the iteration runs, at a size that says nothing, and writes what it says."""

import importlib
import sys

import pyarrow.parquet as pq
import pytest
import torch

from tests.benchmarks.cases import BASELINES, Case
from tests.benchmarks.models import Workload, _of_latents, _unet


def tiny(*args):
    torch.manual_seed(0)
    unet = _unet((32, 32), 1, 8, heads=2).eval().requires_grad_(False)
    return Workload("tiny", unet, torch.randn(1, 4, 8), (4, 8, 8), _of_latents, torch.device("cpu"))


def two_cases(args, load):
    return [Case(BASELINES[0], "checkpoint", 4), Case("edict", "checkpoint", 4)]


@pytest.mark.parametrize(
    ("name", "options", "rows"),
    [
        ("iteration", [], 2),
        ("scaling", ["--steps", "4", "--batches", "2", "--sides", "16", "--workers", "2"], 8),
        ("limit", ["--quick"], 3),
        ("memory", ["--steps", "2"], 4),
        ("settings", ["--quick", "--batches", "1"], 8),
    ],
)
def test_a_benchmark_runs_and_writes_its_rows(name, options, rows, tmp_path, monkeypatch, capsys):
    module = importlib.import_module(f"tests.benchmarks.{name}")
    monkeypatch.setattr(module, "workload", tiny)
    if name == "iteration":
        pytest.importorskip("memcnn")
        monkeypatch.setattr(module, "cases", two_cases)
    if name == "scaling":
        monkeypatch.setattr(module, "Case", lambda method, memory, steps: Case(method, memory, 4))
    # Two threads of one core wait for each other: the setting is the benchmark's matter, not ours.
    torch.set_num_threads(1)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    out = tmp_path / "rows.parquet"
    monkeypatch.setattr(sys, "argv", [name, "--out", str(out), *options])
    module.main()
    table = pq.read_table(out).to_pylist()
    assert len(table) == rows
    assert {"machine", "command", "date"} <= set(table[0])
    printed = capsys.readouterr().out
    assert f"benchmark: {name}" in printed
    if name == "iteration":
        assert table[1]["gradient_error"] < 1e-5
        assert table[1]["forwards"] < table[0]["forwards"]
    if name == "memory":
        assert all(row["peak_mib"] > 0 for row in table)
