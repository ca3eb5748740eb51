"""Numbers -> charts as SVG text: small, sharp at any size, coloured by the style sheet of the page they stand in.

Lengths are in units of the viewBox, so a chart is as wide as its place. The classes `c0`, `c1`, ... colour series.
Names are foreign text, and escaped.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup, escape

_WIDTH, _HEIGHT = 440, 264
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 46, 38
_POINTS_SCATTERED = 2_000
_POINTS_SHOWN = 60  # of a segment; a longer one is a line alone


class Series(NamedTuple):
    """A line of one colour, `c0` and so on: segments of `(x, y)`, and the points marked as best."""

    name: str
    colour: str
    segments: Sequence[Sequence[tuple[float, float]]]
    best: Sequence[tuple[float, float]] = ()


class Axis(NamedTuple):
    """A linear or logarithmic map from `[low, high]` to `[start, end]`, with ticks at round numbers."""

    low: float
    high: float
    start: float
    end: float
    log: bool
    ticks: list[float]

    def __call__(self, value: float) -> float:
        """Where `value` lies."""
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def round_ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` multiples of 1, 2 or 5 times a power of ten, none of them outside `[low, high]`."""
    step = 10 ** math.floor(math.log10((high - low) / most))
    step *= next(m for m in (1, 2, 5, 10, 20) if math.floor(high / (m * step)) - math.ceil(low / (m * step)) < most)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten in `[low, high]`; where there are fewer than three, twice and five times these as well."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [10.0**d for d in decades if low <= 10.0**d * 1.000001 and 10.0**d <= high * 1.000001]
    return found if len(found) > 2 else [t for d in decades for m in (1, 2, 5) if low <= (t := m * 10.0**d) <= high]


def _axis(values: Iterable[float], start, end, log, most, whole=False) -> Axis:
    """Wide enough for `values`, which may be few or equal; ticks on whole numbers alone where these are `whole`."""
    found = [v for v in values if math.isfinite(v) and not (log and v <= 0)] or [1.0]
    low, high = min(found), max(found)
    if log:
        low, high = (low / 2, high * 2) if low == high else (low, high)
        return Axis(low, high, start, end, True, log_ticks(low, high))
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 0.5
    low, high = (low - margin if low - margin > 0 or low < 0 else 0.0, high + margin)
    ticks = round_ticks(low, high, most)
    return Axis(low, high, start, end, False, [t for t in ticks if not whole or t == round(t)])


def lines(
    title: str,
    series: Sequence[Series],
    x_label: str,
    *,
    log_x: bool = False,
    parts: Mapping[str, int] | None = None,
    legend: bool = True,
) -> Markup:
    """A line chart as an `<svg>` element.

    Args:
        title: what is on the y axis, above the chart.
        series: what is drawn; points whose y is NaN are left out.
        x_label: below the x axis.
        log_x: logarithmic x axis.
        parts: where x is counted from 1: after which count each named part begins, and is counted from 1 again.
        legend: name the series above the chart.
    """
    points = [point for s in series for segment in s.segments for point in segment]
    x = _axis((p[0] for p in points), _LEFT, _WIDTH - _RIGHT, log_x, 8, parts is not None)
    y = _axis((p[1] for p in points), _HEIGHT - _BOTTOM, _TOP, False, 5)
    parts = parts or {}
    drawn = [_grid(x, y, x_label, list(parts.values())), *(_part(x, begin, name) for name, begin in parts.items())]
    drawn += [_line(s, x, y) for s in series]
    drawn += [_best(s.colour, point, x, y) for s in series for point in s.best]
    drawn += [_legend(series)] if legend else []
    return _svg(title, f"{title} by {x_label}: {', '.join(s.name for s in series)}", drawn)


def scatter(title: str, points: np.ndarray, x_label: str) -> Markup:
    """Points `[N, 2]` on axes of one scale, with the diagonal on which the two are equal; of many some, evenly."""
    finite = points[np.isfinite(points)]
    values = [float(finite.min()), float(finite.max())] if len(finite) else []
    x = _axis(values, _LEFT, _WIDTH - _RIGHT, False, 8)
    y = _axis(values, _HEIGHT - _BOTTOM, _TOP, False, 5)
    drawn = [_grid(x, y, x_label), _rule("diagonal", x(x.low), y(x.low), x(x.high), y(x.high))]
    drawn += [
        _dot("dot", "c0", 2.5, x(a), y(b), f"{a:.4g}, {title.lower()} {b:.4g}")
        for a, b in points[:: len(points) // _POINTS_SCATTERED + 1].tolist()
    ]
    return _svg(title, f"{title} by {x_label}", drawn)


def _svg(title, about, drawn: Sequence[str]) -> Markup:
    head = f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(about)}">'
    name = f'<text class="title" x="0" y="14">{escape(title)}</text>'
    return Markup("\n".join([head, name, *drawn, "</svg>"]))


def _text(x, y, anchor, text) -> str:
    return f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _rule(kind, x1, y1, x2, y2) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def number(value: float, ticks: Sequence[float]) -> str:
    """`value` as the label of one of `ticks`: all with the same decimals."""
    step = min((b - a for a, b in itertools.pairwise(ticks)), default=abs(value) or 1.0)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:.{decimals}f}" if decimals < 5 and abs(value) < 1e6 else f"{value:.0e}"


def _grid(x: Axis, y: Axis, x_label, begins: Sequence[int] = ()) -> str:
    bottom, left, right = _HEIGHT - _BOTTOM, _LEFT, _WIDTH - _RIGHT
    drawn = [_rule("grid", left, y(t), right, y(t)) for t in y.ticks]
    drawn += [_text(left - 6, y(t) + 4, "end", number(t, y.ticks)) for t in y.ticks]
    for t in x.ticks:
        since = max((begin for begin in begins if begin < t), default=0)
        drawn.append(_text(x(t), bottom + 16, "middle", f"{t:g}" if x.log else number(t - since, x.ticks)))
    drawn.append(_rule("axis", left, bottom, right, bottom))
    return "".join([*drawn, _text((left + right) / 2, _HEIGHT - 4, "middle", x_label)])


def _part(x: Axis, begin, name) -> str:
    at = max(x(begin + 0.5), _LEFT)
    rule = _rule("part", at, _TOP - 10, at, _HEIGHT - _BOTTOM) if begin else ""
    return rule + _text(at + 4, _TOP - 2, "start", name)


def _line(series: Series, x: Axis, y: Axis) -> str:
    drawn = []
    for whole in series.segments:
        points = [(a, b) for a, b in whole if math.isfinite(b)]
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)
        drawn.append(f'<polyline class="line {series.colour}" points="{path}"/>')
        if len(points) <= _POINTS_SHOWN:
            drawn += [_dot("dot", series.colour, 2.5, x(a), y(b), f"{series.name} {b:.4g}") for a, b in points]
    return "".join(drawn)


def _dot(kind, colour, radius, x, y, about) -> str:
    place = f'cx="{x:.1f}" cy="{y:.1f}" r="{radius}"'
    return f'<circle class="{kind} {colour}" {place}><title>{escape(about)}</title></circle>'


def _best(colour, point, x: Axis, y: Axis) -> str:
    return _dot("best", colour, 6, x(point[0]), y(point[1]), f"best: {point[1]:.4g}")


def _legend(series: Sequence[Series]) -> str:
    """From the right end of the title's line; a character is about six units wide."""
    drawn, right = [], _WIDTH - _RIGHT
    for s in reversed(series):
        left = right - 6 * len(s.name) - 26
        drawn += [_rule(f"line {s.colour}", left, 10, left + 20, 10), _text(left + 25, 14, "start", s.name)]
        right = left - 12
    return "".join(drawn)


def reliability(title: str, bins: Sequence[tuple[float, float, int, float, float]]) -> Markup:
    """Accuracy against confidence, a bar a bin, the diagonal of perfect calibration, and the share of examples below.

    Args:
        title: above the chart.
        bins: `(low, high, size, mean confidence, accuracy)` of each, all shares from 0 to 1; the means NaN where the
            size is 0.
    """
    bottom, foot = 178, _HEIGHT - _BOTTOM
    x = Axis(0, 1, _LEFT, _WIDTH - _RIGHT, False, [i / 5 for i in range(6)])
    y = Axis(0, 1, bottom, _TOP - 14, False, [0, 0.5, 1])
    total = sum(size for _, _, size, _, _ in bins)
    largest = max(size for _, _, size, _, _ in bins) / total
    share = Axis(0, largest, foot, bottom + 14, False, [0, largest])
    drawn, marks = [_grid(x, y, "confidence")], []
    for low, high, size, confidence, accuracy in bins:
        if size:
            about = f"{low:.2f} to {high:.2f}: {size} of them, accuracy {accuracy:.3f}, confidence {confidence:.3f}"
            left, right = x(low) + 0.75, x(high) - 0.75
            drawn.append(_bar("accuracy", left, right, y(accuracy), bottom, about))
            drawn.append(_bar("count", left, right, share(size / total), foot, about))
            marks.append(_rule("confidence", left, y(confidence), right, y(confidence)))
    drawn += [_rule("diagonal", x(0), y(0), x(1), y(1)), *marks, _rule("axis", x(0), bottom, x(1), bottom)]
    drawn += [_text(_LEFT - 6, share(v) + 4, "end", f"{100 * v:.0f} %") for v in share.ticks]
    return _svg(title, f"{title}: accuracy by confidence in {len(bins)} bins", drawn)


def _bar(kind, left, right, top, bottom, about) -> str:
    size = f'width="{right - left:.1f}" height="{bottom - top:.1f}"'
    return f'<rect class="{kind}" x="{left:.1f}" y="{top:.1f}" {size}><title>{about}</title></rect>'
