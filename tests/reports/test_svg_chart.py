"""SVG charts: positions match the values, and text is escaped."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from headstart.reports.svg_chart import MAX_POINTS, Interval, Series, interval_chart, line_chart, svg_file

SVG = "{http://www.w3.org/2000/svg}"


def chart_of(*series: Series, **options: object) -> ElementTree.Element:
    return ElementTree.fromstring(line_chart(series, x_label="x", y_label="y", description="A chart", **options))


def texts(chart: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in chart.iter(f"{SVG}text")]


def points(chart: ElementTree.Element) -> list[list[tuple[float, float]]]:
    lines = [line.get("points", "").split() for line in chart.iter(f"{SVG}polyline")]
    return [[(float(p.split(",")[0]), float(p.split(",")[1])) for p in line] for line in lines]


def test_a_line_goes_through_its_points_between_round_ticks() -> None:
    ((first, middle, last),) = points(chart := chart_of(Series("a", [(0, 10), (5, 15), (10, 20)], "#000000")))
    assert first[0] < middle[0] < last[0]
    assert first[1] > middle[1] > last[1]  # the y axis of SVG points down
    assert middle == pytest.approx(((first[0] + last[0]) / 2, (first[1] + last[1]) / 2), abs=0.1)
    assert {"0", "10", "12", "20", "a", "x", "y"} <= set(texts(chart))


@pytest.mark.parametrize("values", [[3.0], [0.0, 0.0], [1e-6, 2e-6], [-5.0, 5e6]])
def test_any_range_of_values_has_a_few_ticks(values: list[float]) -> None:
    chart = chart_of(Series("a", list(enumerate(values)), "#000000"))
    assert 4 <= len(texts(chart)) <= 24
    for place in (place for line in points(chart) for place in line):
        assert 0 <= place[0] <= 460
        assert 0 <= place[1] <= 350


def test_whole_numbers_have_whole_ticks() -> None:
    chart = chart_of(Series("a", [(1, 0.0), (2, 1.0)], "#000000"), whole_x=True)
    assert "1.5" not in texts(chart)


def test_a_long_line_is_thinned_to_its_ends() -> None:
    many = [(float(i), float(i)) for i in range(5 * MAX_POINTS)]
    (line,) = points(chart_of(Series("a", many, "#000000")))
    (short,) = points(chart_of(Series("a", [many[0], many[-1]], "#000000")))
    assert len(line) == MAX_POINTS
    assert [line[0], line[-1]] == short


def test_names_are_escaped() -> None:
    chart = chart_of(Series("<script>&", [(0, 0), (1, 1)], "#000000"), sections=[(0.5, '"<b>')])
    assert {"<script>&", '"<b>'} <= set(texts(chart))
    rows = [Interval("<i>", 50, 40, 60, 3.2, "#000000")]
    assert "<i>" in texts(ElementTree.fromstring(interval_chart(rows, x_label="x", bar_label="s", description="<")))


def test_an_svg_file_contains_charts_side_by_side() -> None:
    one = line_chart([Series("a", [(0, 0), (1, 1)], "#000000")], x_label="x", y_label="y", description="A chart")
    both = ElementTree.fromstring(svg_file([one, one], title="Two <charts>"))
    assert int(both.get("width", "")) == 920
    assert [inner.get("x") for inner in both.iter(f"{SVG}svg")][1:] == ["0", "460"]
    assert "Two <charts>" in texts(both)
