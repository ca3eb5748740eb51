"""When a process is late, and which of several keeps the others from going on."""

import pytest

from tltrain.runtime import pace
from tltrain.runtime.pace import OTHER, OTHER_SECONDS, OUTSIDE, STEADY, WAITING
from tltrain.runtime.watch import Progress, behind

LONG = 2 * OTHER_SECONDS


def at(steps, kind, seconds, limit=20.0):
    limit = {OTHER: OTHER_SECONDS, OUTSIDE: float("inf")}.get(kind, limit)
    return Progress(steps, kind, seconds, limit, "loop.py:1")


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        pytest.param(at(7, STEADY, 1), at(7, STEADY, 1), [], id="both in a step"),
        pytest.param(at(8, STEADY, 21), at(7, STEADY, 25), [1], id="one waits for the other within a step"),
        pytest.param(at(7, STEADY, 25), at(7, STEADY, 1), [0], id="one does not finish a batch of an evaluation"),
        pytest.param(at(8, STEADY, 300), at(7, OTHER, 300), [], id="one compiles"),
        pytest.param(at(8, STEADY, LONG), at(7, OTHER, LONG), [1], id="one compiles for ever"),
        pytest.param(at(7, OTHER, 300), at(7, WAITING, 300), [], id="the first writes a checkpoint"),
        pytest.param(at(7, STEADY, 1), at(7, WAITING, LONG), [], id="the first evaluates the longer share"),
        pytest.param(at(7, STEADY, 200, 250), at(7, WAITING, 300), [], id="its batches are slow"),
        pytest.param(at(0, OTHER, LONG), at(0, OTHER, LONG), [], id="both list a large folder"),
        pytest.param(at(0, OTHER, LONG), at(0, WAITING, 60), [], id="one of them was quicker"),
        pytest.param(at(0, OTHER, LONG), at(0, WAITING, LONG), [0], id="one of them hangs there"),
        pytest.param(at(0, OUTSIDE, LONG), at(0, WAITING, LONG), [], id="another job computes the features"),
        pytest.param(at(8, STEADY, 25), at(7, WAITING, 25), [1], id="one hangs as its value comes"),
        pytest.param(at(8, STEADY, 25), at(7, WAITING, 5), [], id="its value may come yet"),
        pytest.param(at(7, STEADY, 25), at(7, STEADY, 25), [0, 1], id="the devices hang"),
    ],
)
def test_who_keeps_others_from_going_on_is_behind_and_nobody_else(first, second, expected):
    assert behind({0: first, 1: second}) == expected


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass as they are told to; nothing was learned before."""
    now = [0.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(pace, "_longest", {})
    monkeypatch.setattr(pace, "_works", [pace.Work(OTHER)])
    return now


def test_a_piece_is_late_by_those_before_it_without_what_is_done_within(clock):
    with pace.at(STEADY, "steps"):
        assert pace.now().limit == OTHER_SECONDS, "nothing is known of a first one"
        clock[0] += 8
        with pace.at(OTHER):
            clock[0] += 500
        assert pace.now().seconds == 0
        pace.get_on()
        assert pace.now().limit == OTHER_SECONDS, "nor of those that follow one"
        clock[0] += 7
        pace.get_on()
        assert pace.now().limit == 3 * 7
    with pace.at(STEADY, "steps"):
        assert pace.now().limit == 3 * 8
        for _ in range(3):
            pace.begin()
        assert pace.now().limit == 3 * 8 * 3, "devices do three at once"
    with pace.at(STEADY, "quick"):
        pace.get_on()
        pace.get_on()
        assert pace.now().limit == 20
    assert pace.now().kind == OTHER
