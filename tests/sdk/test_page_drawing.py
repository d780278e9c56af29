"""Numbers, axes, marks and labels of charts; and that no name of a stranger's file becomes markup."""

from __future__ import annotations

import math
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from edgesdk.page_drawing import SERIES, Axis, frame, mark, number, picture, plain, printable, short, spread_apart, thousands


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (0.122, "0.122"),
        (79.918, "79.9"),
        (1234.5, "1,234"),
        (999.6, "1,000"),
        (5.0, "5"),
        (50.0, "50"),
        (2.3e-5, "2.3e-05"),
    ],
)
def test_a_number_has_three_digits(value: float, shown: str) -> None:
    assert number(value) == shown


@pytest.mark.parametrize(("value", "shown"), [(438_991, "439k"), (3_485_747, "3.49M"), (999.9, "1k"), (45, "45"), (0.31, "0.31")])
def test_counts_are_told_in_thousands(value: float, shown: str) -> None:
    assert thousands(value) == shown


def test_text_cannot_become_markup_nor_turn_what_is_around_it() -> None:
    assert plain("<script>alert('x\"')</script>&") == "&lt;script&gt;alert(&#x27;x&quot;&#x27;)&lt;/script&gt;&amp;"
    assert printable("a\x1b[31m\x00\u202eb\ud800") == "a\ufffd[31m\ufffd\ufffdb\ufffd"
    ElementTree.fromstring(picture(10, "\x00<&\"'", [mark(0, 1, 1, filled=True, title="\x0b<g>")]))


def test_short_names_stay_and_long_ones_end_in_dots() -> None:
    assert short("conv", 5) == "conv" and short("convolution", 5) == "conv…" and len(short("convolution", 5)) == 5


@pytest.mark.parametrize("values", [[0.1, 800.0], [3.0, 8.0], [5.0], [1e-3, 1e9]])
def test_a_logarithmic_axis_holds_its_values_between_its_ends_and_has_round_ticks(values: list[float]) -> None:
    axis = Axis.around(values, 10, 110)
    assert all(10 < axis.at(value) < 110 for value in values)
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 7 and all(axis.low <= tick <= axis.high for tick in ticks)
    assert all(round(tick / 10 ** math.floor(math.log10(tick) + 1e-9), 6) in (1, 2, 3, 5) for tick in ticks)
    assert axis.at(axis.low / 9) == 10 and axis.at(axis.high * 9) == 110


@pytest.mark.parametrize("values", [[0.91, 0.93], [50.0], [0.0], [-3.0, 900.0]])
def test_a_linear_axis_does_the_same(values: list[float]) -> None:
    axis = Axis.around(values, 110, 10, logarithmic=False)
    assert all(10 < axis.at(value) < 110 for value in values) and 2 <= len(axis.ticks()) <= 7


def test_every_series_has_an_outline_of_its_own() -> None:
    shapes = {mark(index, 0, 0, filled=False).split('d="')[1] for index in range(SERIES)}
    assert len(shapes) == SERIES
    assert "hollow" in mark(0, 0, 0, filled=False) and "full" in mark(0, 0, 0, filled=True)


def test_labels_are_moved_apart_in_their_order_within_their_bounds() -> None:
    found = spread_apart([50, 51, 100, 49], 14, 0, 110)
    assert found[3] < found[0] < found[1] < found[2] <= 110
    ordered = sorted(found)
    assert all(after - before >= 14 for before, after in pairwise(ordered))


def test_a_frame_tells_both_axes() -> None:
    axis = Axis(1, 100, 50, 350)
    drawn = ElementTree.fromstring(picture(300, "x", frame(axis, Axis(1, 10, 250, 30), ("time", "size"), (number, number))))
    texts = [text.text for text in drawn.iter("text")]
    assert {"time", "size", "1", "10", "100"} <= set(texts)
