"""The computed schedule: queues that are just long enough, by hand, and latencies that a simulation shows to be right."""

from __future__ import annotations

import numpy as np

from edgesdk_converters.integer_program import Codes
from edgesdk_targets.fpga.schedule import Placed, depths, latency_cycles
from edgesdk_targets.fpga.stage import Counts, Stage, Timing
from edgesdk_targets.fpga.stream import Stream, channels_first
from edgesdk_targets.fpga.windows import Window

CODES = Codes("image", (1, 5, 6), 0, 0, 7)
IMAGE = Stream(CODES, channels_first(CODES.shape), 1)
EACH = np.arange(1, 31)


def stage(sources: int, needs: tuple[np.ndarray[tuple[int], np.dtype[np.int64]], ...], **timing: int) -> Stage:
    given = Timing(needs, timing.get("each", 1), timing.get("lead", 1), timing.get("delay", 0))
    return Stage("", "", "", "", (IMAGE,) * sources, IMAGE, 30, given, {}, frozenset(), Counts(), 0, 0)


def test_an_operand_waits_for_as_many_pixels_as_a_convolution_looks_ahead() -> None:
    window = Window(5, 6, 3, 3, top=1, left=1, bottom=1, right=1)
    placed = [Placed(stage(1, (window.last_pixels(),)), (0,)), Placed(stage(2, (EACH, EACH)), (0, 1))]
    # The first pixel of a padded 3 x 3 convolution needs a line and two pixels: 8 have come and none has been used.
    assert depths([IMAGE], placed) == {2: (8, 1)}


def test_two_convolutions_look_ahead_twice_as_far() -> None:
    window = Window(5, 6, 3, 3, top=1, left=1, bottom=1, right=1)
    conv = stage(1, (window.last_pixels(),))
    placed = [Placed(conv, (0,)), Placed(conv, (1,)), Placed(stage(2, (EACH, EACH)), (0, 2))]
    assert depths([IMAGE], placed) == {3: (15, 1)}


def test_inputs_of_their_own_do_not_wait_for_each_other() -> None:
    assert depths([IMAGE, IMAGE], [Placed(stage(2, (EACH, EACH)), (0, 1))]) == {2: (1, 1)}


def test_latency_adds_registers_and_what_a_slow_stage_takes() -> None:
    quick, slow = stage(1, (EACH,), delay=3), stage(1, (EACH,), each=4, lead=4, delay=5)
    assert latency_cycles([IMAGE], [Placed(quick, (0,))], [1]) == 30 + 3
    assert latency_cycles([IMAGE], [Placed(slow, (0,))], [1]) == 1 + 29 * 4 + 5
    assert latency_cycles([IMAGE], [Placed(slow, (0,)), Placed(quick, (1,))], [2]) == 1 + 29 * 4 + 5 + 3
