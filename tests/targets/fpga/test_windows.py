"""Windows: how much of an image each of them needs, against a search by hand, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesdk_converters.errors import Unsupported
from edgesdk_targets.fpga import windows
from edgesdk_targets.fpga.stream import Stream, channels_first, channels_last
from edgesdk_targets.fpga.windows import Window

from .integer_nets import Net

SIDES = st.integers(0, 2)


@st.composite
def a_window(draw: st.DrawFn) -> Window:
    rows, cols = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    pads = [min(draw(SIDES), size - 1) for size in (rows, cols, rows, cols)]
    height, width = draw(st.integers(rows, 7)), draw(st.integers(cols, 7))
    return Window(height, width, rows, cols, draw(st.integers(1, 3)), draw(st.integers(1, 3)), *pads)


def taps_inside(window: Window, y: int, x: int) -> list[int]:
    """Pixels of the image, by number, under one window."""
    found = []
    for row in range(y * window.down - window.top, y * window.down - window.top + window.rows):
        for col in range(x * window.rightward - window.left, x * window.rightward - window.left + window.cols):
            if 0 <= row < window.height and 0 <= col < window.width:
                found.append(row * window.width + col)
    return found


@given(a_window())
def test_a_window_needs_the_image_up_to_its_last_pixel(window: Window) -> None:
    last = window.last_pixels()
    assert len(last) == window.outputs
    for place, needed in enumerate(last.tolist()):
        inside = taps_inside(window, *divmod(place, window.out_cols))
        assert needed >= max(inside, default=-1) + 1
        earlier = [max(taps_inside(window, *divmod(one, window.out_cols)), default=-1) + 1 for one in range(place + 1)]
        assert needed == max(earlier)


@given(a_window())
def test_a_scan_passes_each_pixel_once_and_ends_windows_where_they_end(window: Window) -> None:
    pixels, ends = window.scanned()
    assert len(set(pixels.tolist())) == window.height * window.width and pixels.max() < window.scan
    assert (np.diff(ends) > 0).all() and ends.max() < window.scan
    needed = window.last_pixels()
    inside = needed > 0
    assert (pixels[np.maximum(needed - 1, 0)] <= ends)[inside].all()


def test_an_image_of_one_column_is_a_line() -> None:
    assert Window.over((9, 1), (3, 1), (2, 1), (1, 0, 0, 0)) == Window(1, 9, 1, 3, 1, 2, 0, 1, 0, 0)


def test_tokens_have_no_windows() -> None:
    net = Net()
    source = net.input((4, 6))
    result = net.conv(source, 3, (3,))
    program = net.program(result)
    wrong = Stream(program.tensors[source], channels_last((4, 6)), 6)
    with pytest.raises(Unsupported, match="does not come pixel by pixel"):
        windows.of(program.operations[0], wrong, program)  # type: ignore[arg-type]
    right = Stream(program.tensors[source], channels_first((4, 6)), 4)
    assert windows.of(program.operations[0], right, program) == Window(1, 6, 1, 3)  # type: ignore[arg-type]
