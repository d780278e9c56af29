"""Networks with random weights: what the quantiser would make of a trained one of these sizes."""

from __future__ import annotations

import numpy as np
import pytest

from edgesdk_converters.errors import RecipeError
from edgesdk_converters.integer_program import Conv, Dense, IntegerProgram
from edgesdk_targets.fpga.evidence import vectors
from edgesdk_targets.fpga.rtl_sketch import Sketch


def sketched(seed: int = 3, bits: int = 6) -> IntegerProgram:
    net = Sketch(seed, bits)
    last = net.round(net.relu(net.conv(net.input((3, 8, 8)), 5, (3, 3))), signed=False)
    last = net.round(net.mean(net.pool(last, (2, 2)), (4, 4)), signed=False)
    return net.program(net.round(net.dense(net.flatten(last), 4), signed=True))


def test_seed_decides_every_weight() -> None:
    one, same, other = (sketched(seed).operations[0] for seed in (3, 3, 4))
    assert isinstance(one, Conv) and isinstance(same, Conv) and isinstance(other, Conv)
    assert (one.weight == same.weight).all() and (one.bias == same.bias).all()
    assert (one.weight != other.weight).any()


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_weights_of_a_channel_are_numbers_of_the_asked_bits_times_a_power_of_two(bits: int) -> None:
    for operation in sketched(bits=bits).operations:
        if isinstance(operation, Conv | Dense):
            for channel, bias in zip(operation.weight, operation.bias, strict=True):
                common = int(np.bitwise_or.reduce(np.append(channel.reshape(-1), bias)))
                step = common & -common or 1
                assert np.abs(channel).max() // step <= max(1, 2 ** (bits - 1) - 1)


def test_sums_stay_inside_the_ranges_that_are_told_and_roundings_use_theirs() -> None:
    program = sketched()
    found = program.run(vectors(program, 300), keep=True)
    for name, codes in program.tensors.items():
        assert codes.low <= found[name].min() and found[name].max() <= codes.high
    rounded = next(one.result for one in program.operations if type(one).__name__ == "Round")
    assert program.tensors[rounded].bits == 6
    assert found[rounded].max() > program.tensors[rounded].high // 2  # no bit is wasted


def test_window_larger_than_its_image_is_refused() -> None:
    net = Sketch(0, 4)
    with pytest.raises(RecipeError, match="window is larger"):
        net.pool(net.input((2, 3, 3)), (4, 4))
