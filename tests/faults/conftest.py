"""The table of faults, printed when the tests are done."""

import pytest

from tests.faults.harness import Table

_TABLE = Table()


@pytest.fixture
def faults():
    return _TABLE


def pytest_terminal_summary(terminalreporter):
    if _TABLE.rows:
        terminalreporter.section("faults")
        terminalreporter.write_line(_TABLE.markdown())
