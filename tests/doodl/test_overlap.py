"""Work beside the caller's: its order, its errors, its bounds, and that it never hangs."""

import threading
import time
from contextlib import suppress

import pytest

from doodl.engine.overlap import Behind, read_ahead


def threads():
    return [t.name for t in threading.enumerate() if t.name.startswith("doodl-")]


def square(number):
    if number == 3:
        raise ValueError("three")
    return number**2


@pytest.mark.parametrize("ahead", [0, 1, 3, 20])
def test_what_is_read_ahead_comes_in_order_with_its_own_error(ahead):
    got = {}
    for number, get in read_ahead(square, range(6), ahead=ahead):
        try:
            got[number] = get()
        except ValueError as error:
            got[number] = str(error)
    assert got == {0: 0, 1: 1, 2: 4, 3: "three", 4: 16, 5: 25}
    assert list(got) == sorted(got)
    assert not threads()


def test_the_next_is_read_while_this_one_is_at_work_and_no_more():
    began = [threading.Event() for _ in range(4)]

    def read(number):
        began[number].set()
        return threading.current_thread() is threading.main_thread()

    reading = read_ahead(read, range(4))
    number, get = next(reading)
    assert number == 0
    assert not get()  # not in the caller's thread
    assert began[1].wait(10)
    time.sleep(0.05)
    assert not began[2].is_set()
    reading.close()
    assert not began[2].is_set()
    assert not threads()


def test_without_reading_ahead_there_is_no_thread():
    assert all(get() for _, get in read_ahead(lambda _: not threads(), range(3), ahead=0))


@pytest.mark.parametrize("thread", [True, False])
def test_what_goes_on_behind_ends_in_order_with_its_own_error(thread):
    with Behind(thread=thread) as behind:
        for number in range(6):
            behind.begin(number, square, number)
        ended = list(behind.ended(left=0))
    assert [key for key, _ in ended] == list(range(6))
    assert isinstance(ended[3][1].exception(), ValueError)
    assert [f.result() for key, f in ended if key != 3] == [0, 1, 4, 16, 25]
    assert not threads()


def test_no_more_than_so_many_are_left():
    release = threading.Event()
    with Behind() as behind:
        behind.begin(0, release.wait)
        behind.begin(1, int)
        assert list(behind.ended()) == []
        assert list(behind.ended(left=2)) == []
        release.set()
        assert [key for key, _ in behind.ended(left=0)] == [0, 1]


def test_leaving_drops_what_has_not_begun_and_waits_for_what_has():
    begun, release, ran = threading.Event(), threading.Event(), []

    def slow():
        begun.set()
        release.wait(10)
        ran.append("slow")

    with suppress(KeyError), Behind() as behind:
        behind.begin(0, slow)
        behind.begin(1, ran.append, "dropped")
        assert begun.wait(10)
        threading.Timer(0.05, release.set).start()
        raise KeyError
    assert ran == ["slow"]
    assert not threads()
