"""Raspberry Pi: threads, memory and arena follow the board that was named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from edgesdk_converters.cost import Layer
from edgesdk_converters.errors import TargetError
from edgesdk_converters.model import Model, Step
from edgesdk_targets.device import profile
from edgesdk_targets.raspberry_pi import RaspberryPi, memory_bytes
from edgesdk_targets.target import Segment

BOARDS = [d.name for d in RaspberryPi.devices()]


def target(board: str = "raspberry-pi-4", **options: Any) -> RaspberryPi:
    return RaspberryPi(profile(board), **options)


@pytest.mark.parametrize("board", BOARDS)
def test_the_bundle_uses_every_core_of_the_board_and_no_gpu(board: str, small_convnet: Callable[..., Model]) -> None:
    runtime = target(board).compile(Segment(small_convnet())).runtime
    assert runtime.threads == profile(board).need("cores", int)
    assert [provider.name for provider in runtime.providers] == ["CPUExecutionProvider"]


def test_a_small_board_does_without_the_arena_and_spinning(small_convnet: Callable[..., Model]) -> None:
    small = target("raspberry-pi-zero-2-w").compile(Segment(small_convnet())).runtime
    large = target("raspberry-pi-5").compile(Segment(small_convnet())).runtime
    assert (small.arena, small.config) == (False, {"session.intra_op.allow_spinning": "0"})
    assert (large.arena, large.config) == (True, {"session.intra_op.allow_spinning": "1"})


@pytest.mark.parametrize("threads", [-1, 5, 64])
def test_more_threads_than_cores_are_refused(threads: int, small_convnet: Callable[..., Model]) -> None:
    with pytest.raises(TargetError, match=rf"threads is {threads}; raspberry-pi-4 has 4 cores"):
        target(threads=threads).check(Segment(small_convnet()))
    for good in (0, 1, 4):
        target(threads=good).check(Segment(small_convnet()))
    assert target(threads=2).compile(Segment(small_convnet())).runtime.threads == 2


def test_memory_is_the_smallest_sold_or_the_variant_named(small_convnet: Callable[..., Model]) -> None:
    board = profile("raspberry-pi-4")
    assert memory_bytes(board, 0) == 2**30
    assert memory_bytes(board, 8) == 2**33
    for good in (0, 1, 2, 4, 8):
        target(memory_gb=good).check(Segment(small_convnet()))
    for bad in (-1, 3, 64, 0.1):
        with pytest.raises(TargetError, match=rf"memory_gb is {bad:g}; raspberry-pi-4 is sold with 1, 2, 4, 8"):
            target(memory_gb=bad).check(Segment(small_convnet()))


def test_fp16_on_cores_without_fp16_arithmetic_is_noted(
    small_convnet: Callable[..., Model], model_of: Callable[..., Model]
) -> None:
    plain = small_convnet()
    half = Model(plain.name, plain.proto, plain.signature, (Step("half"),))
    assert target("raspberry-pi-4").compile(Segment(plain)).notes == ()
    (note,) = target("raspberry-pi-4").compile(Segment(half)).notes
    assert "runs slower than fp32" in note
    assert target("raspberry-pi-5").compile(Segment(half)).notes == ()


def test_estimates_scale_with_threads_up_to_the_cores() -> None:
    heavy = [Layer("a", "Conv", "conv", macs=10**10, in_bytes=1000, out_bytes=1000)]
    one, two, four, nine = (target(threads=n).estimate(heavy, "fp32")[0].value for n in (1, 2, 4, 9))
    assert one is not None
    assert two is not None and four is not None
    assert one / 2 < two < one
    assert one / 4 < four < two
    assert nine == four


def test_integers_are_checked_here_with_the_sums_of_an_arm_core(small_convnet: Callable[..., Model]) -> None:
    from edgesdk_converters.calibration import synthetic
    from edgesdk_converters.passes import Given
    from edgesdk_converters.quantize import Quantize

    source = small_convnet()
    made = Quantize()(source, Given(source, replace(synthetic(source, 4), synthetic=False)))
    config = target("raspberry-pi-5").compile(Segment(made)).runtime.config
    assert config["session.x64quantprecision"] == "1"
    assert "session.x64quantprecision" not in target("raspberry-pi-5").compile(Segment(source)).runtime.config
