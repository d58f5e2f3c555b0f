"""The table of faults, printed when the tests are done."""

import pytest

from tests.fakes import LOG, SECONDS
from tests.faults.harness import ROOT, Table
from tests.faults.nodes import Nodes

_TABLE = Table()


@pytest.fixture
def faults():
    return _TABLE


@pytest.fixture
def nodes(tmp_path, monkeypatch):
    # What the fake edit is told reaches the workers by the nodes' own environment.
    monkeypatch.setenv(SECONDS, "0.2")
    monkeypatch.setenv(LOG, str(tmp_path / "edits.log"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    cluster = Nodes(tmp_path)
    cluster.environment["PYTHONPATH"] = str(ROOT)
    yield cluster
    cluster.stop()


def pytest_terminal_summary(terminalreporter):
    if _TABLE.rows:
        terminalreporter.section("faults")
        terminalreporter.write_line(_TABLE.markdown())
