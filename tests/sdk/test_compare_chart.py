"""Charts of the comparison: each mark where its figures say, all panels on the same axes, nothing outside of its picture."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from edgesdk.compare_chart import best_cuts, cuts, layers, panels, shows_accuracy
from edgesdk.comparing import Comparison, compare
from edgesdk.page_drawing import number
from edgesdk_targets.figure import Figure

ROOT = Path(__file__).parents[2]
DEVICES = ["raspberry-pi-4", "raspberry-pi-5", "phone-snapdragon-835", "ecp5-85k", "ecp5-45k", "zcu102"]


@pytest.fixture(scope="module")
def found() -> Comparison:
    return compare([ROOT / "build" / "models" / f"{name}.onnx" for name in ("resnet8", "ds-cnn")], devices=DEVICES)


def marks(svg: str) -> list[tuple[str, str]]:
    """Title and outline of each mark."""
    paths = ElementTree.fromstring(svg).iter("path")
    return [(path.findtext("title") or "", str(path.get("d"))) for path in paths if "mark" in str(path.get("class"))]


def centres(svg: str) -> list[tuple[float, float]]:
    """The middle of each mark, from the extent of its outline: a circle's is half its width beside its first point."""
    found = []
    for _, outline in marks(svg):
        points = [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", outline)]
        radius = re.search(r"a([\d.]+) ", outline)
        across = [x for x, _ in points]
        down = [y for _, y in points]
        found.append((across[0] + float(radius[1]), down[0]) if radius else (sum(ends(across)) / 2, sum(ends(down)) / 2))
    return found


def ends(values: list[float]) -> tuple[float, float]:
    return min(values), max(values)


def test_a_panel_for_each_family_has_a_mark_for_each_latency_and_says_which(found: Comparison) -> None:
    drawn = panels(found.models)
    assert [panel.title for panel in drawn] == ["Raspberry Pi", "Phones", "FPGA"]
    known = sum(entry.latency.value is not None for one in found.models for entry in one.entries)
    titles = [title for panel in drawn for title, _ in marks(panel.svg)]
    assert len(titles) == known == 10
    pi = next(entry for entry in found.models[0].entries if entry.way.device == "raspberry-pi-4").latency
    assert pi.value is not None and pi.interval is not None
    ends = f"{number(pi.interval.low)} to {number(pi.interval.high)}"
    expected = f"resnet8 on raspberry-pi-4: {number(pi.value)} ms, estimated, {ends} (90%)"
    assert any(title.startswith(expected) for title in titles), titles
    assert "raspberry-pi-5" in drawn[0].legend and "ecp5-45k rtl" in drawn[2].legend


def test_panels_share_their_axes_and_keep_everything_inside(found: Comparison) -> None:
    ticks = set()
    for panel in panels(found.models):
        texts = [text.text for text in ElementTree.fromstring(panel.svg).iter("text") if text.get("text-anchor")]
        ticks.add(tuple(texts))
        for _, outline in marks(panel.svg):
            left, top = map(float, re.findall(r"M([\d.]+) ([\d.]+)", outline)[0])
            assert 40 < left < 290 and 24 < top < 300
    assert len(ticks) == 1


def test_a_faster_device_lies_to_the_left_and_an_interval_around_its_mark(found: Comparison) -> None:
    svg = panels(found.models)[0].svg
    bars = [path for path in ElementTree.fromstring(svg).iter("path") if str(path.get("class")).startswith("bar")]
    assert len(bars) == 4
    places = {title.split(":")[0]: float(re.findall(r"M([\d.]+)", outline)[0]) for title, outline in marks(svg)}
    assert places["resnet8 on raspberry-pi-5"] < places["resnet8 on raspberry-pi-4"]
    for bar, (at, own_line) in zip(bars, centres(svg), strict=True):
        begin, line, end = map(float, re.findall(r"[\d.]+", str(bar.get("d"))))
        assert begin < at < end and line == pytest.approx(own_line, abs=0.2) and 34 < line < 290
    assert len({line for _, line in centres(svg)}) == 4


def test_accuracy_is_drawn_only_where_every_model_has_one(found: Comparison) -> None:
    right = Figure("accuracy", 0.91, "measured", "this machine", "top-1", n=100)
    both = tuple(replace(one, accuracy=right) for one in found.models)
    assert not shows_accuracy(found.models) and not shows_accuracy((both[0], found.models[1])) and shows_accuracy(both)
    assert "accuracy here" in panels(both)[0].svg and "size" in panels(found.models)[0].svg


def test_without_any_latency_there_is_no_panel(found: Comparison) -> None:
    assert panels([replace(found.models[0], entries=())]) == []


def test_layers_are_listed_the_heaviest_first_with_their_share_of_all(found: Comparison) -> None:
    entry = next(entry for entry in found.models[0].entries if entry.way.device == "raspberry-pi-4")
    text = layers(entry, 3)
    names = re.findall(r'class="layer" title="([^"]+)"', text)
    assert names == [row.layer for row in entry.heaviest(3)] and len(names) == 3
    widths = [float(width) for width in re.findall(r'<rect class="fill s0" width="([\d.]+)"', text)]
    assert widths == sorted(widths, reverse=True) and widths[0] <= 100
    first = entry.heaviest(1)[0]
    assert f"{first.value / entry.latency.value:.0%}" in text  # type: ignore[operator]
    logic = next(entry for entry in found.models[0].entries if entry.way.device == "ecp5-85k")
    assert layers(logic, 3) == ""


def test_a_layer_says_where_its_time_is_from_and_is_a_share_only_of_a_whole_from_the_same(found: Comparison) -> None:
    entry = next(entry for entry in found.models[0].entries if entry.way.device == "raspberry-pi-4")
    tags = re.findall(r'<abbr class="tag (\w+)"', layers(entry, 3))
    assert tags == ["estimated"] * 3 and layers(entry, 3).count("%</") + layers(entry, 3).count("% <abbr") == 3
    measured = Figure("latency_ms", 5.0, "measured", "the board", "timed", n=20)
    text = layers(replace(entry, cells={**entry.cells, "latency_ms": measured}), 3)
    assert "%" not in text and text.count('<abbr class="tag estimated"') == 3


def test_every_cut_is_a_mark_and_those_that_no_other_beats_are_full(found: Comparison) -> None:
    survey = found.models[0].survey
    assert survey is not None and survey.cuts
    svg = cuts(survey)
    assert len(marks(svg)) == len(survey.cuts)
    full = [path for path in ElementTree.fromstring(svg).iter("path") if "mark full" in str(path.get("class"))]
    assert len(full) == len(survey.front) < len(survey.cuts)
    assert {"the input, 12.3 kB", "the output, 40 B"} <= {text.text for text in ElementTree.fromstring(svg).iter("text")}
    listed = list(best_cuts(survey, 2))
    assert 1 <= len(listed) <= 2 and listed[0][0] == " + ".join(survey.front[0].tensors)
