"""Charts show what they are given, where it belongs, with ticks at round numbers."""

import math
from xml.etree import ElementTree

import pytest

from tltrain.pages import charts

SVG = {
    "circle": lambda node: (float(node.get("cx")), float(node.get("cy"))),
    "text": lambda node: "".join(node.itertext()),
}


def drawn(chart, tag):
    return [SVG[tag](node) for node in ElementTree.fromstring(str(chart)).iter(tag)]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.912, 1.003, [0.92, 0.94, 0.96, 0.98, 1]),
        (-3, 4, [-2, 0, 2, 4]),
        (0.0011, 0.0012, [0.0011, 0.00112, 0.00114, 0.00116, 0.00118, 0.0012]),
        (1, 61, [10, 20, 30, 40, 50, 60]),
    ],
)
def test_ticks_are_round_numbers_inside_the_range(low, high, ticks):
    assert charts.round_ticks(low, high, 6) == pytest.approx(ticks)


def test_ticks_of_a_logarithmic_axis_are_powers_of_ten_or_round_parts_of_few():
    assert charts.log_ticks(1e-5, 1e-1) == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2, 1e-1])
    assert charts.log_ticks(3e-4, 6e-3) == pytest.approx([5e-4, 1e-3, 2e-3, 5e-3])


def test_equal_ratios_are_equal_distances_on_a_logarithmic_axis():
    points = [(1e-4, 3.0), (1e-3, 2.0), (1e-2, 1.0)]
    chart = charts.lines("loss", [charts.Series("loss", "c0", [points])], "learning rate", log_x=True)
    (x0, y0), (x1, y1), (x2, y2) = drawn(chart, "circle")
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and x1 > x0
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.2) and y1 > y0, "a lower loss lies lower"
    assert "0.001" in drawn(chart, "text")


def test_epochs_are_counted_within_their_phase():
    series = [charts.Series("val", "c0", [[(1, 0.5), (2, 0.6), (3, 0.7)], [(4, 0.8), (5, 0.9)]], [(5, 0.9)])]
    texts = drawn(charts.lines("accuracy", series, "epoch", parts={"probe": 0, "finetune": 3}), "text")
    assert [t for t in texts if t.isdigit()] == ["1", "2", "3", "1", "2"]
    assert {"probe", "finetune", "val", "accuracy", "epoch"} <= set(texts)


def test_what_is_not_finite_is_left_out_and_a_single_point_has_room():
    nan = charts.Series("loss", "c0", [[(1, math.nan), (2, 0.5)]])
    assert len(drawn(charts.lines("loss", [nan], "epoch", parts={}), "circle")) == 1
    ((x, y),) = drawn(charts.lines("loss", [charts.Series("loss", "c0", [[(1, 0.5)]])], "epoch", parts={}), "circle")
    assert 44 < x < 430 and 46 < y < 226
    assert not drawn(charts.lines("loss", [charts.Series("loss", "c0", [[]])], "epoch"), "circle")


def test_names_are_escaped():
    name = '<b>&"x'
    chart = charts.lines(name, [charts.Series(name, "c0", [[(1, 1.0)]])], name)
    assert drawn(chart, "text").count(name) == 3 and "<b>" not in chart
