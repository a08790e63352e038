"""Charts, read back as XML: what is drawn is what was measured."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from astrolabe_ray.report.charts import Line, bar_chart, line_chart, timeline_chart
from astrolabe_ray.types import Span


def parse(html: str) -> ET.Element:
    """The chart and its legend as one XML element. Raises ParseError if it is not well formed."""
    return ET.fromstring(f"<div>{html}</div>")


def drawn(html: str, tag: str, style: str) -> list[ET.Element]:
    return [element for element in parse(html).iter(tag) if style in element.get("class", "").split()]


def points(element: ET.Element) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (p.split(",") for p in element.get("points", "").split())]


def test_places_are_linear_in_the_values() -> None:
    """A chart that bends, mirrors or cuts off its curve."""
    (curve,) = drawn(
        line_chart([Line("a", (0, 1, 4), (10, 30, 20))], x_label="x", y_label="y"), "polyline", "curve"
    )
    (x0, y0), (x1, y1), (x4, y2) = points(curve)
    assert (x1 - x0) / (x4 - x0) == pytest.approx(1 / 4, abs=0.001)
    assert (y0 - y2) / (y0 - y1) == pytest.approx(1 / 2, abs=0.001)
    assert y1 < y2 < y0, "larger values are higher up"
    assert all(0 <= x <= 480 for x in (x0, x4)) and all(0 <= y <= 250 for y in (y0, y1))


def test_ticks_stand_where_their_values_are() -> None:
    """A grid that belongs to another scale than the curve."""
    chart = line_chart([Line("a", (0, 10), (0.0, 1.0))], x_label="x", y_label="y")
    (curve,) = drawn(chart, "polyline", "curve")
    (x0, y0), (x10, y1) = points(curve)
    ticks = {t.text: (float(t.get("x", "")), float(t.get("y", ""))) for t in drawn(chart, "text", "tick")}
    assert set(ticks) >= {"0.2", "0.4", "0.6", "0.8", "2", "4", "6", "8", "10"}
    assert ticks["4"][0] == pytest.approx(x0 + 0.4 * (x10 - x0), abs=0.11)
    assert ticks["0.4"][1] - 4 == pytest.approx(y0 + 0.4 * (y1 - y0), abs=0.11)


def test_a_band_reaches_its_spread_above_and_below_the_line() -> None:
    """A band of twice or half the standard error claims another certainty."""
    line = Line("a", (0, 1, 2), (5, 6, 7), (1, 2, 1))
    chart = line_chart([line], x_label="x", y_label="y")
    (curve,), (band,) = drawn(chart, "polyline", "curve"), drawn(chart, "polygon", "band")
    middle, outline = points(curve), points(band)
    unit = middle[0][1] - middle[1][1]  # pixels of 1
    upper, lower = outline[:3], outline[:2:-1]
    assert [x for x, _ in upper] == [x for x, _ in lower] == [x for x, _ in middle]
    for (_, y), (_, top), (_, bottom), spread in zip(middle, upper, lower, line.spread, strict=True):
        assert y - top == pytest.approx(spread * unit, abs=0.2)
        assert bottom - y == pytest.approx(spread * unit, abs=0.2)
    assert min(y for _, y in outline) >= 0, "the whole band is inside the picture"


def test_a_single_point_is_seen_with_its_error() -> None:
    """The first evaluation of a run divides by a range of zero, or draws a line of no length."""
    chart = line_chart([Line("held-out", (0,), (0.7,), (0.1,))], x_label="x", y_label="y")
    (dot,), (whisker,) = drawn(chart, "circle", "point"), drawn(chart, "polygon", "whisker")
    assert 82 < float(dot.get("cx", "")) < 466
    (x, top), (_, bottom) = points(whisker)
    assert x == float(dot.get("cx", ""))
    assert top < float(dot.get("cy", "")) < bottom


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-9, 1e12])
def test_a_constant_curve_is_drawn(value: float) -> None:
    """A reward that never moves divides by zero."""
    chart = line_chart([Line("a", (1, 2), (value, value))], x_label="x", y_label="y")
    (curve,) = drawn(chart, "polyline", "curve")
    assert points(curve)[0][1] == points(curve)[1][1] == pytest.approx(109, abs=1), "in the middle"
    assert len({t.text for t in drawn(chart, "text", "tick")}) > 2


def test_small_values_keep_their_ticks_apart() -> None:
    """A KL of 1e-12 with ticks that all read 0."""
    chart = line_chart([Line("kl", (0, 1), (0.0, 4e-12))], x_label="x", y_label="y")
    assert {"1e-12", "2e-12", "3e-12"} <= {t.text for t in drawn(chart, "text", "tick")}


@pytest.mark.parametrize(
    "html",
    [
        line_chart([], x_label="x", y_label="y"),
        line_chart([Line("a", (), ())], x_label="x", y_label="y"),
        bar_chart([], x_label="x", y_label="y"),
        timeline_chart([]),
    ],
)
def test_charts_of_nothing_say_so(html: str) -> None:
    """A run that stopped before its first step has a page, too."""
    assert parse(html).findtext("p") == "No data."


def test_a_legend_names_the_curves_in_their_colours() -> None:
    """Empty curves that take a colour away from those that are drawn."""
    lines = [Line("none", (), ()), Line("training", (0, 1), (1, 2)), Line("held-out", (0, 1), (1, 2))]
    chart = line_chart(lines, x_label="x", y_label="y")
    assert [c.get("class") for c in drawn(chart, "polyline", "curve")] == ["series-0 curve", "series-1 curve"]
    keys = [(span[0].get("class"), "".join(span.itertext())) for span in parse(chart).iter("span")]
    assert keys == [("series-0", "training"), ("series-1", "held-out")]


def test_names_are_text_and_never_markup() -> None:
    """A reward that is called <script> runs in the reader's browser."""
    name = "<script>\"&'"
    charts = [
        line_chart([Line(name, (0, 1), (0, 1)), Line("b", (0,), (0,))], x_label=name, y_label=name),
        bar_chart([(name, 1)], x_label=name, y_label=name),
        timeline_chart([Span("score", name, 0, 1, {name: name})]),
    ]
    for chart in charts:
        assert not list(parse(chart).iter("script"))
        assert name in {element.text for element in parse(chart).iter("text")}


def test_bars_are_as_high_as_their_counts() -> None:
    """A bar that does not start at zero."""
    chart = bar_chart([("0", 30), ("1", 10), ("2", 0)], x_label="age", y_label="rollouts")
    bars = drawn(chart, "rect", "fill")
    heights = [float(bar.get("height", "")) for bar in bars]
    assert heights[0] == pytest.approx(3 * heights[1], abs=0.2)
    assert heights[2] == 0
    feet = {round(float(bar.get("y", "")) + float(bar.get("height", "")), 0) for bar in bars}
    assert len(feet) == 1


def test_the_timeline_has_a_row_for_each_worker_and_a_colour_for_each_stage() -> None:
    """Work of two actors in one row looks as if they took turns."""
    spans = [
        Span("rollout", "rollout-0", 0, 10),
        Span("rollout", "rollout-1", 5, 10),
        Span("train", "learner", 10, 20),
        Span("publish", "learner", 20, 20),
    ]
    bars = drawn(timeline_chart(spans), "rect", "span")
    assert len({bars[i].get("y") for i in (0, 1, 2)}) == 3
    assert bars[2].get("y") == bars[3].get("y")
    assert [bar.get("class", "").split()[0] for bar in bars] == [
        "series-0",
        "series-0",
        "series-1",
        "series-2",
    ]
    starts, widths = ([float(bar.get(key, "")) for bar in bars] for key in ("x", "width"))
    assert starts[0] + widths[0] == pytest.approx(starts[2], abs=0.2)
    assert widths[0] == pytest.approx(2 * widths[1], abs=0.2) == pytest.approx(widths[2], abs=0.2)
    assert widths[3] == 1, "what took no time is seen, too"


def test_work_that_took_no_time_at_all_is_drawn() -> None:
    """A clock that has not moved yet divides by zero."""
    assert len(drawn(timeline_chart([Span("save", "learner", 0, 0)]), "rect", "span")) == 1
