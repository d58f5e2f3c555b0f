"""Whatever is asked for, in whatever folder, the originals stay as they are."""

import pytest

from tests.faults.random_commands import run_random


def test_no_command_line_touches_an_original(tmp_path):
    ended = run_random(tmp_path, 60, seed=1)
    assert ended["enhance", 0] > 0, "nothing was ever done"
    assert ended["enhance", 2] > 0, "nothing was ever refused"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3, 4])
def test_hundreds_of_command_lines_touch_no_original(tmp_path, seed):
    assert sum(run_random(tmp_path, 500, seed).values()) == 500
