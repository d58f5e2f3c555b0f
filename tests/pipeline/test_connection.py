"""Starting a private Ray: what a busy machine costs, and what a broken one says."""

from pathlib import Path

import pytest
import ray

from pipeline.connection import PrivateRay
from pipeline.errors import UnusableEnvironmentError


def failing(monkeypatch, *errors):
    """Let ray.init raise these errors, one a call, and then do nothing; return the calls."""
    calls, left = [], list(errors)

    def init(**options):
        calls.append(options)
        if left:
            raise left.pop(0)

    monkeypatch.setattr(ray, "init", init)
    return calls


def test_a_node_that_starts_too_slowly_is_started_again(monkeypatch):
    slow = Exception("The current node timed out during startup.")
    calls = failing(monkeypatch, slow, slow)
    here = Path.cwd()
    PrivateRay(1).close()
    assert len(calls) == 3
    assert Path.cwd() == here


@pytest.mark.parametrize(
    ("errors", "tries"),
    [([Exception("timed out during startup")] * 3, 3), ([OSError("no shared memory")], 1)],
)
def test_a_ray_that_cannot_start_is_one_line_and_exit_6(monkeypatch, errors, tries):
    calls = failing(monkeypatch, *errors)
    here = Path.cwd()
    with pytest.raises(UnusableEnvironmentError, match="--runner inline") as caught:
        PrivateRay(1)
    assert caught.value.exit_code == 6
    assert len(calls) == tries
    assert Path.cwd() == here
