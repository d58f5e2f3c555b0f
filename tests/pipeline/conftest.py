"""What the tests of the driver share."""

import pandas as pd
import pytest

from pipeline.spec import make_spec
from tests.fakes import LOG


@pytest.fixture
def edits(tmp_path, monkeypatch):
    """Return a function that counts the edits made so far."""
    log = tmp_path / "edits.log"
    monkeypatch.setenv(LOG, str(log))
    return lambda: len(log.read_text().splitlines()) if log.exists() else 0


def spec_of(photos, out=None, **options):
    """A spec of the inline runner with the cheap edit."""
    return make_spec(photos, out, runner="inline", editor="tests.fakes:load_editor", **options)


def results(spec):
    """The results by row_id."""
    return pd.read_parquet(f"{spec.out}/results").set_index("row_id").sort_index()
