"""Counts of a layer, by hand from hls4ml's loops and the block RAM's shapes; and what must hold of all of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesdk_targets.fpga.hls4ml_terms import (
    MANY,
    STREAM_OVERHEAD,
    Cost,
    FixedLayer,
    cost,
    dsps_each,
    placement,
    tiles,
)

SMALL = FixedLayer("d", "dense", 64, 32, 8)
SIZES, BITS, REUSE = st.integers(1, 160), st.integers(1, 32), st.integers(1, 5000)


def folded(layer: FixedLayer, reuse: int) -> Cost:
    return cost(layer, reuse, "resource", 5.0)


def test_one_multiplier_by_hand() -> None:
    """64 x 32 weights at reuse factor 2048: one multiplier, 32 outputs of it, weights of 7 bits (0.25 x 128 = 32)."""
    found = folded(SMALL, 2048)
    assert (found.reuse, found.multipliers, found.dsp) == (2048, 1, 1)
    assert (found.best_cycles, found.worst_cycles, found.interval) == (2049, 2050, 2051)
    assert SMALL.stored_bits == 7
    assert (found.memory.always, found.memory.weights, found.memory.rom_luts) == (0.5, 0.5, 7 * 2048 / 64)
    assert found.memory.placement == "one_multiplier"
    assert dict(found.lut) == {
        "layer": 1.0, "input_word": 64.0, "output_word": 32.0, "multiplier": 1.0, "adder_bits": 0, "product_bits": 0,
    }  # fmt: skip


def test_copies_of_the_weights_for_every_two_multipliers() -> None:
    """96 x 48 at 480 asked: 96 x 4 or 96 x 6 are legal, 480 lies between, the smaller is taken: 12 multipliers, 6 copies."""
    layer = FixedLayer("d", "dense", 96, 48, 6, used_weight_bits=6)
    found = folded(layer, 480)
    assert (found.reuse, found.multipliers, found.dsp) == (384, 12, 0)
    assert found.memory.weights == 6 * tiles(96 * 48, 6) == 6 * 1.5
    assert found.memory.always == tiles(384, 2) == 0.5
    assert found.memory.placement == "few_outputs"


def test_the_reuse_factor_is_made_legal_for_each_layer() -> None:
    assert folded(SMALL, 10**9).reuse == 2048
    assert folded(SMALL, 1).reuse == 1
    assert folded(SMALL, 100).reuse == 128  # 64 and 128 are its neighbours


@pytest.mark.parametrize(
    ("depth", "width", "expected"),
    [
        (512, 36, 0.5),
        (512, 37, 1.0),
        (512, 73, 1.5),
        (1024, 18, 0.5),
        (1024, 36, 1.0),
        (1024, 40, 1.5),
        (2048, 9, 0.5),
        (4096, 4, 0.5),
        (4097, 4, 1.0),
        (4097, 2, 0.5),
        (8192, 10, 2.5),
        (16384, 1, 0.5),
        (16384, 10, 5.0),
        (32768, 3, 3.0),
        (40000, 3, 6.0),
    ],
)
def test_block_ram_in_columns_of_the_narrowest_shape_that_is_deep_enough(depth: int, width: int, expected: float) -> None:
    assert tiles(depth, width) == expected


@given(st.integers(1, 70_000), st.integers(1, 70_000), st.integers(1, 64), st.integers(1, 64))
def test_deeper_or_wider_never_takes_less_block_ram(depth: int, more: int, width: int, wider: int) -> None:
    assert tiles(depth, width) <= tiles(max(depth, more), max(width, wider))
    assert tiles(depth, width) * 36_864 >= depth * width


@pytest.mark.parametrize(
    ("weight", "activation", "expected"),
    [(6, 16, 0), (8, 16, 1), (16, 16, 1), (18, 27, 1), (19, 27, 2), (19, 28, 4), (9, 9, 0), (10, 10, 1), (2, 64, 0)],
)
def test_dsps_of_a_multiplier_by_its_operands(weight: int, activation: int, expected: int) -> None:
    assert dsps_each(FixedLayer("d", "dense", 8, 8, weight, activation)) == expected
    assert dsps_each(FixedLayer("d", "dense", 8, 8, activation, weight)) == expected


@given(SIZES, SIZES, BITS, REUSE, REUSE)
def test_more_reuse_is_fewer_multipliers_and_more_cycles(n_in: int, n_out: int, bits: int, one: int, other: int) -> None:
    layer = FixedLayer("d", "dense", n_in, n_out, bits)
    less, more = (folded(layer, reuse) for reuse in sorted((one, other)))
    assert less.multipliers >= more.multipliers and less.dsp >= more.dsp
    assert less.worst_cycles <= more.worst_cycles and less.interval <= more.interval
    assert less.multipliers * less.reuse == n_in * n_out


@given(SIZES, SIZES, BITS, BITS, REUSE)
def test_more_bits_are_never_cheaper(n_in: int, n_out: int, one: int, other: int, reuse: int) -> None:
    few, many = (folded(FixedLayer("d", "dense", n_in, n_out, bits), reuse) for bits in sorted((one, other)))
    assert few.dsp <= many.dsp and few.worst_cycles == many.worst_cycles
    assert few.memory.weights <= many.memory.weights and few.memory.rom_luts <= many.memory.rom_luts
    assert few.layer.stored_bits <= many.layer.stored_bits
    assert all(few.ff[name] <= many.ff[name] for name in few.ff)


@given(SIZES, SIZES, st.integers(1, 16), st.floats(0, 1), st.floats(0, 1))
def test_unrolled_layers_cost_what_is_not_zero(n_in: int, n_out: int, bits: int, one: float, other: float) -> None:
    layer = FixedLayer("d", "dense", n_in, n_out, bits)
    few, many = (cost(replace(layer, nonzero=share), 1, "latency", 5.0) for share in sorted((one, other)))
    assert few.multipliers <= many.multipliers <= n_in * n_out
    assert few.worst_cycles <= many.worst_cycles and few.interval == 1
    assert few.lut["adder_bits"] <= many.lut["adder_bits"]


def test_an_unrolled_layer_by_hand() -> None:
    """8 inputs: products in a cycle, then 4 levels for 9 terms, 1.2 ns each of 3.65 ns: 2 cycles; constants have b / 3 digits."""
    found = cost(FixedLayer("d", "dense", 8, 4, 6, nonzero=0.5), 1, "latency", 5.0)
    assert found.multipliers == 16 and found.dsp == 0
    assert found.lut["constant_bits"] == 16 * (6 / 3 - 1) * (16 + 6)
    full = cost(FixedLayer("d", "dense", 8, 4, 6), 1, "latency", 5.0)
    assert full.worst_cycles == 1 + 2
    assert cost(FixedLayer("d", "dense", 8, 4, 16), 1, "latency", 5.0).worst_cycles == 3 + 2
    assert cost(FixedLayer("d", "dense", 8, 4, 6), 1, "latency", 2.0).worst_cycles > full.worst_cycles


def test_an_unrolled_layer_shares_multipliers_among_the_cycles_between_its_inputs() -> None:
    """hls4ml's nnet_dense_latency.h: PIPELINE II=reuse_factor, and so many fewer multipliers; conv2d alike."""
    layer = FixedLayer("d", "dense", 8, 4, 16)
    one, four = (cost(layer, reuse, "latency", 5.0) for reuse in (1, 4))
    assert (four.reuse, four.multipliers, four.dsp, four.interval) == (4, 8, 8, 4)
    assert four.worst_cycles == one.worst_cycles + 4 - 1
    many = cost(layer, 1000, "latency", 5.0)
    assert (many.multipliers, many.interval, many.worst_cycles) == (1, 1000, one.worst_cycles + 32 - 1)
    pixels = replace(layer, kind="conv2d", positions=100)
    streamed, shared = (cost(pixels, reuse, "latency", 5.0) for reuse in (1, 4))
    assert (shared.interval, shared.worst_cycles) == (400, streamed.worst_cycles + 300)


def test_multipliers_beyond_those_of_the_results_only_add_and_multiply() -> None:
    wide = folded(FixedLayer("d", "dense", 64, 32, 4), 64)
    assert wide.multipliers == 32 and wide.lut["multiplier"] == MANY
    assert wide.lut["adder_bits"] == (32 - MANY) * 16 and wide.lut["product_bits"] == (32 - MANY) * 16 * 4
    assert folded(FixedLayer("d", "dense", 64, 32, 8), 64).lut["product_bits"] == 0  # a DSP multiplies


def test_nothing_is_stored_where_nothing_is_reused() -> None:
    found = folded(SMALL, 1)
    assert found.memory.rom_luts == found.memory.weights == found.memory.always == 0 and found.memory.placement == ""


def test_a_short_memory_still_takes_a_lut_for_each_bit() -> None:
    found = folded(SMALL, 16)
    assert found.multipliers == 128 and found.memory.rom_luts == 128 * 7
    assert folded(SMALL, 128).memory.rom_luts == 16 * 7 * 2


def test_short_index_tables_stay_in_luts() -> None:
    assert folded(FixedLayer("d", "dense", 24, 8, 8), 192).memory.always == 0
    assert folded(FixedLayer("d", "dense", 40, 8, 8), 320).memory.always == 0.5


def test_pixels_multiply_cycles_and_not_multipliers() -> None:
    layer = FixedLayer("c", "conv2d", 9 * 8, 16, 8, positions=100, kernel=9)
    found, vector = folded(layer, 72), folded(replace(layer, positions=1, kernel=1, kind="dense"), 72)
    assert found.worst_cycles == 100 * (72 + STREAM_OVERHEAD) and found.multipliers == vector.multipliers == 16
    assert found.lut["shift_register_bits"] == 2 * 10 * 8 * 16  # two rows of ten pixels of eight channels


def test_known_weights_are_stored_as_narrow_as_they_are() -> None:
    layer = FixedLayer("d", "dense", 64, 64, 12)
    assert layer.stored_bits == 10  # Glorot's limit is 0.22, of 2048 steps 443
    assert replace(layer, used_weight_bits=5).stored_bits == 5
    assert replace(layer, used_weight_bits=40).stored_bits == 12


def test_circumstances_of_placement() -> None:
    two = FixedLayer("d", "dense", 64, 32, 2)
    assert placement(two, 1024) == "two_bits"
    assert placement(replace(two, weight_bits=6), 512) == "few_outputs"
    assert placement(replace(two, weight_bits=16), 512) == "few_outputs_wide"
    assert placement(replace(two, weight_bits=6), 1024) == "many_outputs"
    assert placement(FixedLayer("d", "dense", 16, 120, 8), 1920) == "one_multiplier_many_outputs"
    assert placement(FixedLayer("d", "dense", 32, 64, 8), 1024) == "eight_bits"
    assert placement(two, 32) == "unseen"


def test_layers_without_weights() -> None:
    pool = cost(FixedLayer("p", "pool", 8, 8, positions=25, kernel=4), 1, "resource", 5.0)
    assert pool.worst_cycles == 100 and pool.lut["adder_bits"] == 8 * 3 * 16 and pool.dsp == 0
    table = cost(FixedLayer("t", "table", 10, 10), 1, "resource", 5.0)
    assert table.memory.always == 5 * 0.5
    softmax = cost(FixedLayer("s", "softmax", 7, 7), 1, "resource", 5.0)
    assert (softmax.memory.always, softmax.dsp, softmax.worst_cycles) == ((4 + 1) * 0.5, 7, 1 + 3 + 4)
    add = cost(FixedLayer("a", "add", 10, 10), 1, "resource", 5.0)
    assert add.lut["adder_bits"] == 160 and add.worst_cycles == 1
    assert cost(FixedLayer("r", "activation", 10, 10), 1, "resource", 5.0).ff == {"activation_word": 10.0}
