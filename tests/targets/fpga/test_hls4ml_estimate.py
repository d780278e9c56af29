"""Estimates for hls4ml: sums by hand, what must hold of all networks, what is marked as extrapolated, and what is refused."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesdk_converters import integer_program as ip
from edgesdk_converters.cost import Layer, layers
from edgesdk_converters.errors import RecipeError, Unsupported
from edgesdk_converters.model import Model
from edgesdk_targets.figure import Figure
from edgesdk_targets.fpga.dense_spec import parse
from edgesdk_targets.fpga.hls4ml_constants import shipped
from edgesdk_targets.fpga.hls4ml_estimate import LEVEL, TARGETS, count, estimate, in_bram18, layers_from_cost, layers_of
from edgesdk_targets.fpga.hls4ml_fit import ANALYTIC
from edgesdk_targets.fpga.hls4ml_terms import FixedLayer

U250 = "xcu250-figd2104-2L-e"
TOTALS = (*TARGETS, "initiation_interval", "fmax_mhz")
INSIDE = "dense:48-72-16@8bit"
NETWORKS = st.builds(
    lambda sizes, bits: parse(f"dense:{'-'.join(map(str, sizes))}@{bits}bit"),
    st.lists(st.integers(1, 200), min_size=2, max_size=6), st.integers(1, 20),
)  # fmt: skip
SETTINGS = st.fixed_dictionaries(
    {
        "reuse_factor": st.integers(1, 9000), "strategy": st.sampled_from(["resource", "latency"]),
        "clock_ns": st.floats(1, 20), "io_type": st.sampled_from(["io_parallel", "io_stream"]),
        "part": st.sampled_from(["", "xc7z020clg400-1"]),
    }
)  # fmt: skip


def totals(layers: Any, **given: Any) -> dict[str, Figure]:
    return {figure.name: figure for figure in estimate(layers, **given) if figure.layer is None}


def values(layers: Any, **given: Any) -> dict[str, float]:
    return {name: float(figure.value or 0) for name, figure in totals(layers, **given).items()}


def test_one_layer_by_hand() -> None:
    """64 x 32 weights of 8 bits at reuse factor 2048: one multiplier, in a DSP; 224 LUTs would hold the weights' 7 bits."""
    known, found = shipped(), values(parse("dense:64-32@8bit"), reuse_factor=2048)
    lut, ff, share = known.lut, known.ff, known.placement["one_multiplier"].share
    by_hand = lut["layer"] + 64 * lut["input_word"] + 32 * lut["output_word"] + lut["multiplier"] + (1 - share) * 224 * lut["rom"]
    assert found["lut"] == round(by_hand)
    assert found["ff"] == round(ff["layer"] + 64 * ff["input_word"] + 32 * ff["output_word"])
    assert (found["dsp"], found["bram"], found["cycles"], found["initiation_interval"]) == (1, 0.5, 2050, 2051)
    assert found["fmax_mhz"] == round(1000 / (5 * known.clock["logic"]), 1)


def test_cycles_are_the_legal_reuse_factors_and_three_for_each_layer_but_one() -> None:
    """48 x 72 at 2000: 1728 is nearer than 3456; 72 x 16 has 1152 at most. Two cycles a layer, one for the ReLU between."""
    found = totals(parse(INSIDE), reuse_factor=2000)["cycles"]
    assert found.value == 1728 + 1152 + 3 * 2 - 1
    assert found.interval is not None and found.interval.low <= found.value - 2


@settings(deadline=None)
@given(NETWORKS, SETTINGS)
def test_parts_add_up_and_every_figure_is_an_honest_estimate(layers: Any, given_: dict[str, Any]) -> None:
    found = estimate(layers, **given_)
    assert [figure.name for figure in found[: len(TOTALS)]] == list(TOTALS) and all(figure.layer is None for figure in found[:7])
    names = {layer.name for layer in layers}
    for figure in found:
        assert figure.provenance == "estimated" and figure.interval is not None and figure.interval.level == LEVEL
        assert figure.value is not None and 0 <= figure.interval.low <= figure.value <= figure.interval.high
        assert figure.layer is None or figure.layer in names
    for total in found[:5]:
        assert total.value == sum(figure.value or 0 for figure in found[7:] if figure.name == total.name)


def test_layers_with_reuse_factors_of_their_own_cost_what_each_costs_alone() -> None:
    layers = parse("dense:48-72-16@8bit")
    found = values(layers, reuse_factors={"dense_1": 1152}, reuse_factor=288)
    parts = [values(layers[:1], reuse_factor=1152), values(layers[2:], reuse_factor=288)]
    between = {"lut": found["lut"] - sum(part["lut"] for part in parts), "cycles": 1}
    assert found["dsp"] == 3456 / 1152 + 1152 / 288
    assert found["cycles"] == sum(part["cycles"] for part in parts) + between["cycles"] == 1152 + 2 + 1 + 288 + 2
    assert between["lut"] == next(
        row.value for row in estimate(layers, reuse_factor=288) if (row.name, row.layer) == ("lut", "relu_1")
    )
    assert found["initiation_interval"] == 1152 + 3


@pytest.mark.parametrize("wanted", [1, 100, 1024, 2000])
def test_reuse_factors_that_one_request_gives_are_estimated_as_that_request(wanted: int) -> None:
    layers = parse(INSIDE)
    whole = totals(layers, reuse_factor=wanted)
    own = totals(layers, reuse_factors={layer.name: wanted for layer in layers if layer.weighted})
    for name, figure in whole.items():
        assert (own[name].value, own[name].interval, own[name].extrapolated) == (
            figure.value, figure.interval, figure.extrapolated,
        )  # fmt: skip


def test_mixed_reuse_factors_are_extrapolated_and_less_certain() -> None:
    inside, mixed = (totals(parse(INSIDE), reuse_factors={"dense_1": 3456, "dense_2": own}) for own in (1152, 576))
    assert not inside["lut"].extrapolated and mixed["lut"].extrapolated
    assert "no single request gives" in mixed["lut"].method and ratio(mixed["lut"]) > ratio(inside["lut"])


def test_reuse_factors_of_no_layer_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"'fc1'.*dense_1, dense_2"):
        estimate(parse(INSIDE), reuse_factors={"fc1": 16})
    with pytest.raises(RecipeError, match="reuse factor 0 of dense_1"):
        estimate(parse(INSIDE), reuse_factors={"dense_1": 0})


@settings(deadline=None, max_examples=20)
@given(NETWORKS, SETTINGS)
def test_counts_give_the_totals_that_an_estimate_begins_with(layers: Any, given_: dict[str, Any]) -> None:
    assert count(layers, **given_).totals() == estimate(layers, **given_)[: len(TOTALS)]


@settings(deadline=None)
@given(NETWORKS, st.integers(1, 9000), st.integers(1, 9000))
def test_more_reuse_never_takes_more_multipliers_nor_fewer_cycles(layers: Any, one: int, other: int) -> None:
    less, more = (values(layers, reuse_factor=reuse) for reuse in sorted((one, other)))
    assert less["dsp"] >= more["dsp"] and less["cycles"] <= more["cycles"] and less["ff"] >= more["ff"]
    assert less["initiation_interval"] <= more["initiation_interval"]


@settings(deadline=None, max_examples=40)
@given(st.integers(8, 128), st.integers(8, 128), st.integers(8, 128), st.integers(1024, 4093))
def test_more_bits_are_never_cheaper(n_in: int, hidden: int, n_out: int, reuse: int) -> None:
    """But for LUTs where a DSP takes over, between 6 and 8 bits, or block RAM takes the weights."""
    found = [values(parse(f"dense:{n_in}-{hidden}-{n_out}@{bits}bit"), reuse_factor=reuse) for bits in (4, 6, 8, 16)]
    rising = [(made["dsp"], made["ff"], made["cycles"]) for made in found]
    assert rising == sorted(rising)
    assert found[0]["lut"] <= found[1]["lut"] and found[2]["lut"] <= found[3]["lut"]


@settings(deadline=None)
@given(NETWORKS, st.integers(1, 200), st.integers(1024, 4093))
def test_one_more_layer_adds_its_own_and_changes_no_other(layers: Any, size: int, reuse: int) -> None:
    bits, last = layers[0].weight_bits, layers[-1].n_out
    more = (*layers, FixedLayer("more", "dense", last, size, bits))
    before, after = values(layers, reuse_factor=reuse), values(more, reuse_factor=reuse)
    added = values((more[-1],), reuse_factor=reuse)
    for name in TARGETS:
        assert after[name] == pytest.approx(before[name] + added[name], abs=1e-9)


def test_inside_the_results_nothing_but_the_interval_of_starts_is_extrapolated() -> None:
    found = totals(parse(INSIDE), reuse_factor=2047, part="xcu250-figd2104-2L-e")
    assert {name for name, figure in found.items() if figure.extrapolated} == {"initiation_interval"}
    assert "194 results" in found["lut"].method


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"reuse_factor": 1023}, "reuse factor 1023 below 1024"),
        ({"reuse_factor": 4094}, "reuse factor 4094 above 4093"),
        ({"strategy": "latency"}, "strategy latency"),
        ({"io_type": "io_stream"}, "io_stream"),
        ({"clock_ns": 4.0}, "clock of 4 ns"),
        ({"part": "xc7z020clg400-1"}, "part xc7z020clg400-1"),
        ({"layers": "dense:48-129-16@8bit"}, "sizes outside 8 to 128"),
        ({"layers": "dense:48-72-16@17bit"}, "weights outside 2 to 16 bits"),
        ({"layers": "dense:48-72@8bit"}, "1 layers with weights"),
        ({"layers": "dense:48-72-16-16-16@8bit"}, "4 layers with weights"),
        ({"layers": tuple(replace(layer, activation_bits=8) for layer in parse(INSIDE))}, "values of 8 bits"),
        ({"layers": "dense:128-128-128-128@8bit"}, "more than 32,192 weights"),
        ({"layers": "dense:48-21-101@8bit", "reuse_factor": 1025}, "101 multipliers in a layer, more than 16"),
        ({"layers": (*parse(INSIDE), FixedLayer("t", "table", 16, 16))}, "layers of kind table"),
        ({"layers": tuple(replace(layer, positions=4) for layer in parse(INSIDE))}, "dense over pixels"),
    ],
)
def test_whatever_is_unlike_the_results_is_told_and_widens(changed: dict[str, Any], told: str) -> None:
    given_ = {"layers": INSIDE, "reuse_factor": 2047} | changed
    layers = given_.pop("layers")
    inside = totals(parse(INSIDE), reuse_factor=2047)["lut"]
    found = totals(parse(layers) if isinstance(layers, str) else layers, **given_)
    assert found["lut"].extrapolated and told in found["lut"].method
    assert all(figure.extrapolated for figure in found.values())
    assert ratio(found["lut"]) > 1.1 * ratio(inside)


def ratio(figure: Figure) -> float:
    assert figure.interval is not None
    return figure.interval.high / figure.interval.low


def test_parts_are_less_certain_than_their_total() -> None:
    total, *parts = [figure for figure in estimate(parse(INSIDE), reuse_factor=2047) if figure.name == "lut"]
    for part in parts:
        assert total.value and part.value
        assert ratio(part) == pytest.approx(ratio(total) ** math.sqrt(total.value / part.value), rel=0.01)


def test_cycles_widen_less_than_area_but_widen() -> None:
    inside, streamed = (totals(parse(INSIDE), reuse_factor=2047, io_type=io_type) for io_type in ("io_parallel", "io_stream"))
    assert ratio(inside["cycles"]) < 1.01
    assert ratio(streamed["cycles"]) == pytest.approx(1.3**2, rel=0.01)
    assert ratio(streamed["lut"]) == pytest.approx(ratio(inside["lut"]) * 1.5**2, rel=0.01)


def test_a_multiplier_between_known_widths_may_take_a_dsp_or_not() -> None:
    seven, eight = (totals(parse(f"dense:48-72-16@{bits}bit"), reuse_factor=2047)["dsp"] for bits in (7, 8))
    assert seven.interval is not None and seven.interval.low == 0 and seven.interval.high == seven.value == eight.value
    assert eight.interval is not None and eight.interval.low == eight.interval.high == eight.value


@pytest.mark.parametrize(("part", "fastest"), [("xc7z020clg400-1", 464), ("xcu250-figd2104-2L-e", 775)])
def test_no_clock_is_faster_than_the_parts_clock_tree(part: str, fastest: float) -> None:
    found = totals(parse(INSIDE), reuse_factor=2000, clock_ns=0.5, part=part)["fmax_mhz"]
    assert found.value == fastest and found.interval is not None and found.interval.high == fastest
    assert f"no faster than the {fastest} MHz of the part's clock tree" in found.method
    assert found.interval.low < 264 < fastest  # what the results reach


@pytest.mark.parametrize("clock_ns", [0.5, 1.0, 2.5, 10.0, 20.0, 100.0, 1000.0])
def test_far_from_the_clock_of_the_results_an_interval_reaches_back_to_it(clock_ns: float) -> None:
    """A design that is fast at 5 ns is no slower where a slower clock is asked for, nor one that is slow faster."""
    known, found = (totals(parse(INSIDE), reuse_factor=2000, clock_ns=clock, part=U250) for clock in (5.0, clock_ns))
    interval = found["fmax_mhz"].interval
    assert interval is not None and interval.low <= (known["fmax_mhz"].value or 0) <= interval.high
    assert found["fmax_mhz"].extrapolated
    around = (interval.high if clock_ns < 5 else interval.low) / (found["fmax_mhz"].value or 0)
    assert 0.4 < around < 2  # not the other way


def test_the_farther_the_clock_the_wider_every_interval() -> None:
    for clocks in ((4.0, 2.5, 1.0, 0.5), (6.0, 10.0, 50.0, 1000.0)):
        made = [totals(parse(INSIDE), reuse_factor=2000, clock_ns=clock) for clock in clocks]
        for name in ("lut", "ff", "cycles"):
            ratios = [ratio(found[name]) for found in made]
            assert ratios == sorted(ratios) and ratios[-1] > 1.5 * ratios[0]
    slow = [ratio(totals(parse(INSIDE), reuse_factor=2000, clock_ns=clock)["fmax_mhz"]) for clock in (6.0, 10.0, 50.0)]
    assert slow == sorted(slow)


def test_the_clock_is_set_by_the_longest_path() -> None:
    """A choice among 100 outputs, weights in block RAM (two bits), or neither."""
    shares = shipped().clock
    for text, reuse, path in (
        ("dense:12-100@8bit", 1200, "many_outputs"),
        ("dense:64-64@2bit", 1024, "block_ram"),
        (INSIDE, 2047, "logic"),
    ):
        assert totals(parse(text), reuse_factor=reuse)["fmax_mhz"].value == round(200 / shares[path], 1)
    assert shares["logic"] < shares["block_ram"]


def test_small_reuse_factors_take_a_multiplier_for_every_few_weights() -> None:
    layers = parse("dense:16-64-32-5@8bit")
    weights = 16 * 64 + 64 * 32 + 32 * 5
    found = values(layers, reuse_factor=1)
    assert found["dsp"] == weights and found["bram"] == 0
    assert found["cycles"] == 3 * 3 + 2
    assert values(layers, reuse_factor=4)["dsp"] == weights / 4
    assert values(layers, reuse_factor=8)["initiation_interval"] == 8 + 3


def test_unrolled_networks_leave_zero_weights_out() -> None:
    dense = parse("dense:16-64-32-5@16bit")
    half = tuple(replace(layer, nonzero=0.5) for layer in dense)
    full, thin = (values(layers, strategy="latency") for layers in (dense, half))
    assert thin["dsp"] == full["dsp"] / 2 and thin["lut"] < full["lut"] and full["initiation_interval"] == 1


def test_streaming_layers_work_at_once() -> None:
    convolution = FixedLayer("c", "conv2d", 9 * 4, 8, 8, positions=100, kernel=9)
    layers = [convolution, FixedLayer("p", "pool", 8, 8, positions=25, kernel=4), FixedLayer("d", "dense", 200, 10, 8)]
    streamed, parallel = (estimate(layers, reuse_factor=36, io_type=io_type) for io_type in ("io_stream", "io_parallel"))
    cycles = {figure.layer: figure.value or 0 for figure in streamed if figure.name == "cycles"}
    assert cycles["c"] == 100 * (36 + 7) and cycles.get("p", 0) == 0 and cycles[None] == cycles["c"] + cycles["d"]
    assert next(figure.value for figure in parallel if figure.name == "cycles") == cycles[None] + 25 * 4


def test_block_ram_in_blocks_of_18_kbit() -> None:
    found = totals(parse(INSIDE), reuse_factor=1024)["bram"]
    twice = in_bram18(found)
    assert twice.value == 2 * (found.value or 0) and twice.unit == "BRAM18" and found.unit == "36-kbit block RAMs"
    assert twice.interval is not None and found.interval is not None and twice.interval.high == 2 * found.interval.high


def test_where_weights_are_not_certain_the_interval_has_both() -> None:
    """One multiplier for 120 outputs: some results have its weights in block RAM, some in LUTs."""
    found = totals(parse("dense:16-120-16@8bit"), reuse_factor=1920)["bram"]
    assert found.interval is not None and found.interval.high - found.interval.low >= 0.5


@pytest.mark.parametrize("kind", ["gru", "argmax", "grouped convolution", "product", "lstm", ""])
def test_operations_without_a_formula_are_refused(kind: str) -> None:
    with pytest.raises(Unsupported, match="no formula") as caught:
        estimate([*parse(INSIDE), FixedLayer("odd", kind, 16, 16)], reuse_factor=1024)
    assert caught.value.node == "odd" and caught.value.operator == kind


@pytest.mark.parametrize(
    "changed",
    [
        {"weight_bits": 0}, {"weight_bits": 65}, {"activation_bits": 0}, {"accumulator_bits": 0}, {"n_in": 0}, {"n_out": -1},
        {"positions": 0}, {"kernel": 0}, {"nonzero": 1.5}, {"nonzero": math.nan},
    ],
)  # fmt: skip
def test_impossible_layers_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(Unsupported):
        estimate([replace(FixedLayer("d", "dense", 8, 8, 8), **changed)], reuse_factor=8)


def test_constants_of_no_results_extrapolate_everything() -> None:
    found = totals(parse(INSIDE), reuse_factor=2047, constants=ANALYTIC)
    assert all(figure.extrapolated for figure in found.values()) and "no result to compare with" in found["lut"].method


def test_a_network_without_weights_is_refused() -> None:
    for empty in ([], [FixedLayer("r", "activation", 8, 8)]):
        with pytest.raises(Unsupported, match="no layer with weights"):
            estimate(empty)


@pytest.mark.parametrize(
    ("given_", "told"),
    [
        ({"strategy": "unrolled"}, "resource, latency"),
        ({"reuse_factor": 0}, "reuse_factor 0"),
        ({"io_type": "axi"}, "io_parallel"),
        ({"clock_ns": 0.0}, "clock_ns 0"),
        ({"clock_ns": math.nan}, "clock_ns nan"),
    ],
)
def test_settings_that_hls4ml_does_not_have_are_refused(given_: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        estimate(parse(INSIDE), **given_)


def test_an_estimate_needs_neither_numpy_nor_any_tool() -> None:
    code = (
        "import sys; from edgesdk_targets.fpga import dense_spec, hls4ml_estimate as e; "
        "e.estimate(dense_spec.parse('dense:16-8@8bit'), reuse_factor=16); "
        "print([name for name in ('numpy', 'onnx', 'torch', 'hls4ml') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_layers_of_a_program() -> None:
    x, h = ip.Codes("x", (6,), -4, -128, 127), ip.Codes("h", (4,), -8, -40_000, 40_000)
    r, c = ip.Codes("r", (4,), -8, 0, 40_000), ip.Codes("c", (4,), -4, 0, 255)
    weight = np.array([[0, 3, -4, 0, 1, 2]] * 4)
    program = ip.IntegerProgram(
        "p", ("x",), ("c",), {codes.name: codes for codes in (x, h, r, c)},
        (
            ip.Dense("fc", "x", "h", weight, np.zeros(4, np.int64)), ip.Clip("relu", "h", "r", 0, None),
            ip.Round("round", "r", "c", "half_up"),
        ),
        {"x": "half_even"}, {},
    )  # fmt: skip
    dense, relu = layers_of(program)
    assert dense == FixedLayer("fc", "dense", 6, 4, 3, 8, 17, 1, 1, 4 / 6, 3)
    assert (relu.kind, relu.n_out, relu.positions) == ("activation", 4, 1)
    assert totals((dense, relu), reuse_factor=6)["dsp"].value == 0


def test_layers_of_a_convolution_and_what_has_no_formula() -> None:
    x, y = ip.Codes("x", (3, 10, 8), 0, 0, 15), ip.Codes("y", (5, 8, 6), 0, -900, 900)
    p, d = ip.Codes("p", (5, 4, 3), 0, -900, 900), ip.Codes("d", (3, 10, 8), 0, -900, 900)
    ones = np.ones((5, 3, 3, 3), np.int64)
    program = ip.IntegerProgram(
        "p", ("x",), ("p", "d"), {codes.name: codes for codes in (x, y, p, d)},
        (
            ip.Conv("conv", "x", "y", ones, np.zeros(5, np.int64), (1, 1), (0, 0, 0, 0)),
            ip.Pool("pool", "y", "p", "max", (2, 2), (2, 2), (0, 0, 0, 0)),
            ip.Conv("dw", "x", "d", ones[:3, :1], np.zeros(3, np.int64), (1, 1), (1, 1, 1, 1), groups=3),
        ),
        {"x": "half_even"}, {},
    )  # fmt: skip
    conv, pool, depthwise = layers_of(program)
    assert (conv.kind, conv.n_in, conv.n_out, conv.positions, conv.kernel) == ("conv2d", 27, 5, 48, 9)
    assert (conv.weight_bits, conv.activation_bits, conv.accumulator_bits, conv.nonzero) == (2, 4, 11, 1.0)
    assert (pool.kind, pool.n_in, pool.positions, pool.kernel) == ("pool", 5, 12, 4)
    with pytest.raises(Unsupported, match="grouped convolution"):
        estimate((conv, pool, depthwise))
    assert values((conv, pool), reuse_factor=27, io_type="io_stream")["cycles"] == 48 * (27 + 7)


def test_layers_of_a_float_network() -> None:
    model = Model.load(Path(__file__).parents[3] / "examples" / "fashion" / "fashion_cnn.onnx")
    records = layers(model)
    found = layers_from_cost(records, 6)
    weighted = [layer for layer in found if layer.weighted]
    assert sum(layer.weights * layer.positions for layer in weighted) == sum(record.macs for record in records)
    assert {layer.kind for layer in found} <= {"conv2d", "dense", "activation", "pool"}
    assert weighted[0].kernel == 9 and weighted[-1].kind == "dense" and weighted[-1].n_out == 10
    for layer in weighted:
        assert (layer.weight_bits, layer.activation_bits) == (6, 6)
        assert layer.accumulator_bits == 12 + math.ceil(math.log2(layer.n_in))
    assert totals(found, reuse_factor=64, io_type="io_stream")["lut"].extrapolated


def test_float_layers_have_the_widths_that_are_asked_for() -> None:
    records = (cost_of("Gemm", "fc", (1, 32), macs=64 * 32), cost_of("Relu", "act", (1, 32)))
    dense, relu = layers_from_cost(records, 6, 16, 20)
    assert (dense.weight_bits, dense.activation_bits, dense.accumulator_bits) == (6, 16, 20)
    assert (relu.activation_bits, relu.accumulator_bits) == (16, 16)
    assert layers_from_cost(records, 6, 9)[0].accumulator_bits == 6 + 9 + 6


def test_float_layers_with_the_widths_of_a_line_are_those_of_the_line() -> None:
    def shaped(n_in: int, n_out: int) -> dict[str, Any]:
        return {"in_shapes": ((1, n_in),), "out_shapes": ((1, n_out),)}

    records = []
    for index, (n_in, n_out) in enumerate(((48, 72), (72, 16)), start=1):
        names = (f"x{index}",), (f"p{index}",)
        records.append(Layer(f"dense_{index}", "MatMul", "gemm", *names, macs=n_in * n_out, **shaped(n_in, n_out)))
        bias = (f"p{index}",), (f"q{index}",)
        records.append(Layer(f"bias_{index}", "Add", "eltwise", *bias, params=n_out, **shaped(n_out, n_out)))
        if index == 1:
            records.append(Layer("relu_1", "Relu", "act", ("q1",), ("x2",), **shaped(n_out, n_out)))
    assert layers_from_cost(records, 8, 16, 16) == parse(INSIDE)


@pytest.mark.parametrize(
    "layer",
    [FixedLayer("n", "conv2d", 36, 8, 8, positions=16, kernel=9), FixedLayer("n", "dense", 36, 8, 8, positions=16)],
)
def test_in_parallel_a_window_is_folded_within_itself_as_in_the_export(layer: FixedLayer) -> None:
    """36 x 8 weights: legal above the window are 72, 144 and 288, of which hls4ml's parallel convolution does none."""
    assert count([layer], reuse_factor=288).found[0].reuse == 36
    assert count([layer], reuse_factors={"n": 288}).found[0].reuse == 36
    assert count([layer], reuse_factor=288, io_type="io_stream").found[0].reuse == 288
    assert count([replace(layer, kind="dense", positions=1, kernel=1)], reuse_factor=288).found[0].reuse == 288
    assert count([layer], reuse_factor=288, strategy="latency").found[0].reuse == 288


def cost_of(op: str, kind: str, out: tuple[int, ...], **more: Any) -> Layer:
    return Layer("n", op, kind, in_shapes=((1, 4, 6, 6),), out_shapes=(out,), **more)


def test_float_layers_by_operator() -> None:
    made = layers_from_cost(
        (
            cost_of("Conv", "conv", (1, 8, 4, 4), kernel=(3, 3), macs=8 * 16 * 36),
            cost_of("BatchNormalization", "norm", (1, 8, 4, 4)),
            cost_of("Relu", "act", (1, 8, 4, 4)),
            cost_of("GlobalAveragePool", "pool", (1, 8, 1, 1)),
            cost_of("Flatten", "reshape", (1, 8)),
            cost_of("Gemm", "fc", (1, 5), macs=40),
            cost_of("Softmax", "softmax", (1, 5)),
            cost_of("Tanh", "act", (1, 5)),
        ),
        8,
    )
    assert [(layer.kind, layer.n_in, layer.n_out, layer.positions, layer.kernel) for layer in made] == [
        ("conv2d", 36, 8, 16, 9),
        ("activation", 8, 8, 16, 1),
        ("pool", 8, 8, 1, 36),
        ("dense", 8, 5, 1, 1),
        ("softmax", 5, 5, 1, 1),
        ("table", 5, 5, 1, 1),
    ]


@pytest.mark.parametrize(
    "layer",
    [
        cost_of("Conv", "conv", (1, 8, 2, 2), kernel=(3, 3), dilation=(2, 2), macs=8 * 4 * 36),
        cost_of("Conv", "dwconv", (1, 4, 4, 4), kernel=(3, 3), groups=4, macs=4 * 16 * 9), cost_of("PRelu", "act", (1, 4, 6, 6)),
        cost_of("Mul", "eltwise", (1, 4, 6, 6)), cost_of("LayerNormalization", "norm", (1, 4, 6, 6)),
        Layer("n", "MatMul", "matmul", in_shapes=((1, 4, 4), (1, 4, 4)), out_shapes=((1, 4, 4),), macs=64),
    ],
)  # fmt: skip
def test_float_layers_without_a_formula_are_refused(layer: Layer) -> None:
    with pytest.raises(Unsupported, match="no formula"):
        estimate((*parse(INSIDE), *layers_from_cost([layer], 8)))
