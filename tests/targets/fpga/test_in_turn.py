"""Long vectors and images that are scaled element by element: to the bit what the integers are, a few elements at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgesdk_converters.errors import Unsupported
from edgesdk_converters.integer_program import IntegerProgram, Scale, Shape
from edgesdk_targets.fpga.design import design

from .integer_nets import Net
from .test_design import WAIVED, check, run, written


def scaled(shape: Shape, outs: int = 4, activation: bool = True) -> IntegerProgram:
    """Each element of an input scaled and shifted by numbers of its own, rounded, and a dense layer behind."""
    net = Net(7)
    source = net.input(shape, 8)
    last = net.sum([net.scale(source, net.constants(shape))], [1], net.constants(shape, 12))
    last = net.round(net.relu(last) if activation else last, signed=not activation)
    last = net.flatten(last) if len(shape) > 1 else last
    return net.program(net.round(net.dense(last, outs), signed=True))


@pytest.mark.parametrize(
    ("shape", "multipliers", "activation", "lanes"),
    [((150,), 24, True, 6), ((7, 4, 10), 14, False, 7), ((2, 9, 10), 4, False, 1), ((149,), 8, True, 1)],
)
def test_every_output_is_the_integer_program_s(
    shape: Shape, multipliers: int, activation: bool, lanes: int, tmp_path: Path
) -> None:
    program = scaled(shape, activation=activation)
    made = design(program, "folded", multipliers=multipliers)
    assert [layer.form for layer in made.layers] == ["in turn", "folded"]
    assert made.layers[0].cycles == -(-program.tensors[program.inputs[0]].size // lanes)
    check(made, program, tmp_path, "core", stalls=False)
    check(made, program, tmp_path, "core", stalls=True)
    check(made, program, tmp_path, "serial", stalls=True, count=3)


def test_a_vector_that_is_wanted_in_every_cycle_is_taken_at_once() -> None:
    made = design(scaled((150,)), "unrolled")
    assert [layer.form for layer in made.layers] == ["unrolled"] and made.interval_cycles == 1


def test_lanes_keep_the_pace_and_the_input_comes_on_them() -> None:
    program = scaled((160,), 8)
    for target, lanes in ((160, 1), (80, 2), (40, 4)):
        made = design(program, "folded", target_cycles=target)
        assert made.layers[0].cycles == 160 // lanes and made.inputs[0].lanes == lanes
        assert made.layers[0].counts.multipliers == lanes


def test_what_cannot_be_taken_in_parts_is_refused_with_what_helps() -> None:
    net = Net()
    one, two = net.input((1400,)), net.input((1400,))
    with pytest.raises(Unsupported, match="16,800 bits at once; allowed: 8,192") as refused:
        design(net.program(net.round(net.sum([one, two], [1, 1]), signed=True)))
    assert "no form takes it in parts" in refused.value.hint
    wide = scaled((1400,))
    with pytest.raises(Unsupported, match="11,200 bits at once") as refused:
        design(wide, "unrolled")
    assert refused.value.hint == "give --set form=folded"
    assert design(wide, "folded").layers[0].form == "in turn"


def test_verilator_has_no_other_warnings(tmp_path: Path) -> None:
    made = design(scaled((150,)), "folded", multipliers=24)
    waivers = [f"-Wno-{one}" for one in WAIVED]
    run(["verilator", "--lint-only", "-Wall", *waivers, "--top-module", made.serial, *made.sources], written(made, tmp_path))


def test_tables_hold_what_each_beat_needs() -> None:
    """Another constant at the end of the last beat is another design."""
    program = scaled((150,))
    scale = program.operations[0]
    before = dict(design(program, "folded").files)
    assert isinstance(scale, Scale)
    scale.constant[-1] += 1
    assert dict(design(program, "folded").files) != before
