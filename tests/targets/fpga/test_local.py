"""Local programs: what is computed on one beat, against the whole program at that pixel."""

from __future__ import annotations

import numpy as np
import pytest

from edgesdk_converters.errors import Unsupported
from edgesdk_converters.integer_program import Conv, IntegerProgram, Integers, windows
from edgesdk_targets.fpga.local import Local, at_once, on_pixels, on_windows, window_weights
from edgesdk_targets.fpga.stream import Stream, channels_first, channels_last

from .integer_nets import Net


def stream(program: IntegerProgram, name: str) -> Stream:
    codes = program.tensors[name]
    order = channels_first(codes.shape) if len(codes.shape) > 1 else channels_last((1, *codes.shape))
    return Stream(codes, order, order.shape[1])


def some(program: IntegerProgram, count: int = 20) -> dict[str, Integers]:
    rng = np.random.default_rng(0)
    tensors = [program.tensors[name] for name in program.inputs]
    return {one.name: rng.integers(one.low, one.high + 1, (count, *one.shape)) for one in tensors}


def pixel_by_pixel(found: Local, streams: list[Stream], codes: dict[str, Integers], result: Stream) -> Integers:
    """The whole result, each pixel by the local program."""
    beats = [one.with_lanes(one.channels).pack(codes[one.codes.name]) for one in streams]
    count, positions = beats[0].shape[:2]
    feed = {name: beat.reshape(-1, beat.shape[2]) for name, beat in zip(found.program.inputs, beats, strict=True)}
    given = found.program.run(feed)[found.program.outputs[0]]
    return result.unpack(given.reshape(count, positions, -1))


def check(program: IntegerProgram, *sources: str) -> Local:
    """What `on_pixels` makes of a whole program equals it."""
    streams = [stream(program, name) for name in sources]
    found = on_pixels(program.operations, streams, program)
    codes = some(program)
    result = Stream(program.tensors[program.outputs[0]], found.order, found.order.shape[1])
    np.testing.assert_array_equal(pixel_by_pixel(found, streams, codes, result), program.run(codes)[program.outputs[0]])
    return found


def test_operations_that_treat_channels_alike_can_be_computed_on_some_of_them() -> None:
    net = Net()
    program = net.program(net.round(net.leaky(net.clip(net.input((4, 3, 2)), -9, 20))))
    found = check(program, *program.inputs)
    assert found.uniform
    one = found.on(2).program
    assert one.tensors[one.outputs[0]].shape == (2,)
    codes = np.random.default_rng(1).integers(-32, 32, (50, 4))
    whole = found.program.run({one.inputs[0]: codes})[one.outputs[0]]
    np.testing.assert_array_equal(one.run({one.inputs[0]: codes[:, 2:]})[one.outputs[0]], whole[:, 2:])


def test_a_constant_for_each_channel_keeps_them_together() -> None:
    net = Net()
    source = net.input((4, 3, 2))
    program = net.program(net.scale(net.sum([source], [1], net.constants((4, 1, 1))), net.constants((4, 1, 1))))
    found = check(program, source)
    assert not found.uniform
    with pytest.raises(ValueError, match="not treated alike"):
        found.on(2)


def test_a_constant_that_differs_between_pixels_is_refused() -> None:
    net = Net()
    source = net.input((2, 3, 2))
    program = net.program(net.sum([source], [1], net.constants((2, 3, 2))))
    with pytest.raises(Unsupported, match="differs from pixel to pixel"):
        on_pixels(program.operations, [stream(program, source)], program)


def test_sums_products_and_concatenations_of_two_images() -> None:
    for combine in (lambda net, a, b: net.sum([a, b], [1, -3]), Net.product, lambda net, a, b: net.concat([b, a])):
        net = Net()
        one, two = net.input((2, 3, 2)), net.input((2, 3, 2), 4, -2)
        check(net.program(combine(net, one, two)), one, two)


def test_channels_picked_at_every_pixel_alike() -> None:
    net = Net()
    source = net.input((4, 3, 2))
    every = np.arange(24).reshape(4, 3, 2)
    check(net.program(net.move([source], every[[3, 1, 1]])), source)


@pytest.mark.parametrize("index", [np.arange(24).reshape(4, 3, 2)[:, 1:], np.full((2, 3, 2), -1)])
def test_pixels_cut_off_and_zeros_put_in_are_refused_pixel_by_pixel_and_done_at_once(index: Integers) -> None:
    net = Net()
    source = net.input((4, 3, 2))
    program = net.program(net.move([source], index))
    with pytest.raises(Unsupported, match=r"move_m1.*Move"):
        on_pixels(program.operations, [stream(program, source)], program)
    order = channels_first(index.shape)
    found = at_once(program.operations, [stream(program, source).as_vector()], program, order)
    codes = some(program)
    beats = stream(program, source).pack(codes[source]).reshape(20, -1)
    given = found.program.run({found.program.inputs[0]: beats})[found.program.outputs[0]]
    result = Stream(program.tensors[program.outputs[0]], order, order.shape[1])
    want = program.run(codes)[program.outputs[0]]
    np.testing.assert_array_equal(result.unpack(given.reshape(20, result.positions, -1)), want)


def test_a_dense_layer_on_tokens_and_the_greatest_along_them() -> None:
    net = Net()
    source = net.input((5, 6))
    program = net.program(net.dense(source, 3))
    tokens = Stream(program.tensors[source], channels_last((5, 6)), 6)
    found = on_pixels(program.operations, [tokens], program)
    codes = some(program)
    result = Stream(program.tensors[program.outputs[0]], found.order, 3)
    np.testing.assert_array_equal(pixel_by_pixel(found, [tokens], codes, result), program.run(codes)[program.outputs[0]])
    with pytest.raises(Unsupported, match="features of a token do not come together"):
        on_pixels(program.operations, [stream(program, source)], program)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_convolution_on_its_windows(groups: int) -> None:
    net = Net()
    source = net.input((4, 5, 4))
    program = net.program(net.round(net.conv(source, 8, (3, 2), (2, 1), (1, 0, 1, 1), groups)))
    conv = program.operations[0]
    assert isinstance(conv, Conv)
    found = on_windows(conv, program.operations[1:], stream(program, source), program)
    codes = some(program)
    view = windows(codes[source], (3, 2), (2, 1), (1, 0, 1, 1), 0)  # (n, channels, rows, cols, 3, 2)
    flat = view.transpose(0, 2, 3, 4, 5, 1).reshape(-1, 24)
    given = found.program.run({source: flat})[found.program.outputs[0]]
    result = Stream(program.tensors[program.outputs[0]], found.order, 8)
    np.testing.assert_array_equal(result.unpack(given.reshape(20, -1, 8)), program.run(codes)[program.outputs[0]])
    assert np.count_nonzero(window_weights(conv, 4)) == np.count_nonzero(conv.weight)
