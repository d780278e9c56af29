"""The estimator's calibration as a picture and as a table: what is drawn are the points, and the scores are theirs."""

from __future__ import annotations

import math
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from edgesdk.calibration_chart import HEADS, KINDS, legend, scores, svg, told
from edgesdk.page_drawing import Axis
from edgesdk_targets.calibration_points import Point, read


def point(measured: float, predicted: float, backend: str = "cpu", precision: str = "fp32", device: str = "A") -> Point:
    return Point(device, "net", "ncnn", backend, precision, measured, predicted, predicted * 0.8, predicted * 1.25)


def test_scores_are_those_of_the_points() -> None:
    points = (point(10, 11), point(10, 20, device="B"), point(10, 10, "gpu-vulkan", device="B"), point(10, 8.4, precision="int8"))
    found = scores(replace(read(), points=points))
    assert found[0] == ("all", "4", "32%", "13%", "75%", "75%") and len(HEADS) == len(found[0])
    assert [row[0] for row in found] == ["all", *(name for name, _ in KINDS), "A", "B"]
    assert found[3] == ("GPU", "1", "0%", "0%", "100%", "100%")


def test_every_point_is_drawn_once_and_belongs_to_one_kind() -> None:
    known = read()
    assert all(sum(belongs(one) for _, belongs in KINDS) == 1 for one in known.points)
    drawn = ElementTree.fromstring(svg(known))
    marks = [path for path in drawn.iter("path") if "mark" in str(path.get("class"))]
    assert len(marks) == len(known.points) > 1000


def test_a_right_prediction_lies_on_the_line() -> None:
    drawn = svg(replace(read(), points=(point(1, 1), point(100, 100))))
    paths = [(str(path.get("class")), str(path.get("d"))) for path in ElementTree.fromstring(drawn).iter("path")]
    line = next(outline for kind, outline in paths if kind == "axis" and "L" in outline)
    begin, end = (tuple(map(float, pair.split())) for pair in line[1:].split("L"))
    slope = (end[1] - begin[1]) / (end[0] - begin[0])
    for outline in (outline for kind, outline in paths if "mark" in kind):
        left, up = map(float, outline[1:].split("a")[0].split())
        assert abs(up - (begin[1] + slope * (left + 1.7 - begin[0]))) < 0.5


def test_the_band_is_a_fifth_to_either_side_of_the_line() -> None:
    paths = [(str(path.get("class")), str(path.get("d"))) for path in ElementTree.fromstring(svg(read())).iter("path")]
    band = next(outline for kind, outline in paths if kind == "band")
    corners = [tuple(map(float, pair.split())) for pair in band[1:-1].split("L")]
    line = next(outline for kind, outline in paths if kind == "axis" and "L" in outline)
    (left, bottom), (right, top) = (tuple(map(float, pair.split())) for pair in line[1:].split("L"))
    per_log = (right - left) / math.log(_span())
    assert corners[0] == (left, bottom) and corners[3] == (right, top)
    assert bottom - corners[1][1] == pytest.approx(per_log * math.log(1.2) * (bottom - top) / (right - left), abs=0.3)
    assert corners[5][0] - left == pytest.approx(per_log * math.log(1 / 0.8), abs=0.3)


def _span() -> float:
    """High over low of the picture's axes."""
    both = [end for point in read().points for end in (point.measured_ms, point.predicted_ms)]
    axis = Axis.around(both, 0, 1)
    return axis.high / axis.low


def test_it_says_what_it_is_where_it_is_from_and_what_made_it() -> None:
    text = told(read())
    assert "family" in text and "left out" in text and "90%" in text and read().date in text and read().command in text
    assert all(name in legend() for name, _ in KINDS)
