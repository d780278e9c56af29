"""The estimate of the flow rtl: what figures say of themselves, and how near they come to routed designs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests import sweep_rtl
from tests.bench_hls4ml_estimate import r2, smape
from tests.bench_rtl_estimate import ends, nested, result
from tests.rtl_fit import Result, fit, left_out, predicted, spreads
from tests.sweep_rtl_designs import Wanted

from edgesdk_converters.cost import Layer
from edgesdk_targets.device import profile
from edgesdk_targets.figure import Figure
from edgesdk_targets.fpga import dense_spec
from edgesdk_targets.fpga.constants_file import Spread
from edgesdk_targets.fpga.design import Design, design
from edgesdk_targets.fpga.rtl_constants import RARE, Constants, Family, shipped
from edgesdk_targets.fpga.rtl_estimate import AREA, NAMES, PORTS, estimate, of_sketch
from edgesdk_targets.fpga.rtl_from_layers import of_fixed, of_layers
from edgesdk_targets.fpga.target import Fpga

from .integer_nets import Net, conv_net

ECP5 = profile("ecp5-85k")


def made(text: str = "dense:16-12-5@6bit", form: str = "unrolled") -> Design:
    return design(of_fixed(dense_spec.parse(text)), form)  # type: ignore[arg-type]


def totals(rows: tuple[Figure, ...]) -> dict[str, Figure]:
    return {row.name: row for row in rows if row.layer is None}


def width(row: Figure) -> float:
    assert row.interval is not None
    return row.interval.high / max(1.0, row.interval.low)


def test_totals_come_first_and_layers_add_up_to_them() -> None:
    found = design(conv_net(), "auto", max_weights_unrolled=100)
    rows = estimate(found, ECP5)
    assert tuple(row.name for row in rows[: len(NAMES)]) == NAMES
    assert all(row.layer is None for row in rows[: len(NAMES)])
    nodes = {layer.node for layer in found.layers} | {PORTS}
    for name in AREA:
        parts = [row for row in rows if row.name == name and row.layer is not None]
        assert sum(row.value or 0 for row in parts) == totals(rows)[name].value
        assert {row.layer for row in parts} <= nodes


def test_every_estimate_has_an_interval_of_eight_tenths_around_its_value() -> None:
    for row in estimate(made(), ECP5):
        assert row.provenance == "estimated" and row.interval is not None and row.interval.level == 0.8
        assert row.value is not None and row.interval.low <= row.value <= row.interval.high


def test_small_design_is_inside_the_results_and_a_large_one_is_not() -> None:
    inside, outside = totals(estimate(made(), ECP5)), totals(estimate(made("dense:64-64-64@8bit"), ECP5))
    assert not any(row.extrapolated for row in inside.values())
    assert outside["lut"].extrapolated and "larger than any" in outside["lut"].method
    assert width(outside["lut"]) > width(inside["lut"])


def test_weights_that_are_not_known_widen_intervals() -> None:
    known, unknown = (totals(estimate(made(), ECP5, weights_known=know)) for know in (True, False))
    assert known["lut"].value == unknown["lut"].value
    assert width(unknown["lut"]) > width(known["lut"])
    assert "random weights" in unknown["lut"].method and "random weights" not in known["lut"].method


def test_initiation_interval_is_that_of_the_design_and_latency_follows_cycles_and_clock() -> None:
    found = made("dense:32-16-4@5bit", "folded")
    rows = totals(estimate(found, ECP5))
    assert rows["initiation_interval"].value == found.interval_cycles
    assert rows["cycles"].value == found.latency_cycles
    assert rows["cycles"].value is not None and rows["fmax_mhz"].value is not None
    assert rows["latency_ms"].value == pytest.approx(rows["cycles"].value / rows["fmax_mhz"].value / 1e3)


def test_multipliers_and_memories_are_counted_by_rule() -> None:
    found = made("dense:64-32-8@8bit", "folded")
    rows = totals(estimate(found, ECP5))
    assert rows["dsp"].value == found.counts.multipliers > 0
    assert rows["dsp"].interval is not None
    assert (rows["dsp"].interval.low, rows["dsp"].interval.high) == (rows["dsp"].value,) * 2


def test_part_that_is_too_small_is_told() -> None:
    rows = totals(estimate(made("dense:16-64-32-32-5@6bit"), profile("ecp5-25k")))
    assert "does not fit" in rows["lut"].method and "24,288" in rows["lut"].method.replace("24288", "24,288")


def test_another_clock_or_family_is_extrapolated() -> None:
    slow = totals(estimate(made(), ECP5, 50.0))
    assert slow["fmax_mhz"].extrapolated and "50 MHz asked for" in slow["fmax_mhz"].method
    other = totals(estimate(made(), profile("pynq-z2")))
    assert other["lut"].extrapolated and other["lut"].unit == "LUT6"
    for name in ("fmax_mhz", "latency_ms"):
        assert other[name].provenance == "unavailable" and "place and route" in other[name].method


def test_ratio_of_another_family_multiplies_counts_and_its_spread_widens_them() -> None:
    around = {name: Spread(-0.3, 0.3) for name in AREA}
    known = replace(shipped(), families_apart={"xc7": Family(40, 0.5, 0.9, 1.0, 1.0, around)})
    here, there = totals(estimate(made(), ECP5, constants=known)), totals(estimate(made(), profile("pynq-z2"), constants=known))
    assert here["lut"].value is not None and there["lut"].value is not None
    assert there["lut"].value == pytest.approx(here["lut"].value / 2, abs=3)
    assert width(there["lut"]) > width(here["lut"]) and "40 designs" in there["lut"].method


def test_network_without_a_layout_is_unavailable_with_its_reason() -> None:
    layers = [Layer("g", "GRU", "rnn", ("x",), ("y",), ((1, 5, 8),), ((1, 5, 8),))]
    rows = of_sketch(lambda: design(of_layers(layers, 8)), ECP5, 100.0)
    assert tuple(row.name for row in rows) == NAMES
    assert all(row.provenance == "unavailable" and "GRU" in row.method for row in rows)


def acted(op: str, bits: int, known: Constants | None = None) -> dict[str, Figure]:
    """Of a small layer and an operation behind it."""
    layers = [Layer("o", "Gemm", "fc", ("x",), ("o",), ((1, 6),), ((1, 4),)),
              Layer("n", op, "act", ("o",), ("n",), ((1, 4),), ((1, 4),))]  # fmt: skip
    return totals(estimate(design(of_layers(layers, bits)), ECP5, constants=known))


RARE_ONES = [("LayerNormalization", 6, "LayerNorm"), ("Softmax", 6, "Softmax"), ("Gelu", 13, "Curve"), ("Gelu", 6, "Table")]


@pytest.mark.parametrize(("op", "bits", "told"), RARE_ONES)
def test_operations_that_the_results_have_are_inside_and_others_are_extrapolated(op: str, bits: int, told: str) -> None:
    known = shipped()
    operations = {name: most for name, most in known.region.operations.items() if name != told}
    without = acted(op, bits, replace(known, region=replace(known.region, operations=operations)))
    for name, row in acted(op, bits).items():
        assert not row.extrapolated, name
        assert without[name].extrapolated == (name in (*AREA, "fmax_mhz", "latency_ms")), name
    assert f"{told} in none of the results" in without["lut"].method
    assert width(without["lut"]) > width(acted(op, bits)["lut"])
    assert without["lut"].value == acted(op, bits)["lut"].value


def test_operation_in_a_wider_design_than_any_with_it_is_extrapolated() -> None:
    inside, beyond = (acted("LayerNormalization", bits)["lut"] for bits in (8, 13))
    assert not inside.extrapolated and beyond.extrapolated
    assert f"bits, in the results with LayerNorm up to {shipped().region.operations['LayerNorm']}" in beyond.method


@pytest.mark.parametrize("told", ["Product", "Scale"])
def test_products_and_scales_that_no_result_has_are_extrapolated(told: str) -> None:
    assert told in RARE
    net = Net(1, 6)
    first = net.round(net.dense(net.input((4,)), 4), 6, signed=True)
    made_of = net.product(first, net.input((4,))) if told == "Product" else net.scale(first, np.array([3, 5, 7, 2]))
    program = net.program(net.round(net.dense(net.round(made_of, 6, signed=True), 3), 6, signed=True))
    for row in totals(estimate(design(program, "unrolled"), ECP5)).values():
        assert row.extrapolated == (row.name in (*AREA, "fmax_mhz", "latency_ms")), row.name
        assert row.name not in AREA or f"{told} in none of the results" in row.method


def test_target_estimates_by_line_and_by_layers_with_its_own_options() -> None:
    text = "dense:16-12-5@6bit"
    folded, unrolled = (
        totals(Fpga(ECP5, form="folded").estimate_text(text)),
        totals(Fpga(ECP5, form="unrolled").estimate_text(text)),
    )
    assert folded["dsp"].value and not unrolled["dsp"].value
    layers = [Layer("o", "Gemm", "fc", ("x",), ("o",), ((1, 16),), ((1, 10),))]
    few, many = (totals(Fpga(ECP5, bits=bits).estimate(layers, "fixed")) for bits in (3, 9))
    assert few["lut"].value and many["lut"].value and few["lut"].value < many["lut"].value


@pytest.fixture(scope="module")
def routed() -> tuple[list[Result], list[Constants]]:
    """The table, and for each design the constants fitted without its family."""
    results = [result(row) for row in sweep_rtl.read() if row["status"] == "done"]
    return results, left_out(results)


def test_routed_designs_of_unseen_families_are_met_within_the_stated_errors(
    routed: tuple[list[Result], list[Constants]],
) -> None:
    results, apart = routed
    assert len(results) >= 190
    around = nested(results, apart)
    for name, most in (("lut", 9.0), ("ff", 8.0), ("fmax_mhz", 12.0)):
        measured = np.array([one.measured[name] for one in results])
        guess = np.array([predicted(one, known)[name] for one, known in zip(results, apart, strict=True)])
        assert smape(measured, guess) <= most
        intervals = [ends(name, value, inside[name]) for value, inside in zip(guess, around, strict=True)]
        held = np.array([low <= one <= high for one, (low, high) in zip(measured, intervals, strict=True)])
        folded = np.array([one.folded for one in results])
        for those in (folded | True, folded, ~folded):
            assert 0.75 <= held[those].mean() <= 0.88, name
        assert name == "fmax_mhz" or r2(measured, guess) > 0.95


def test_shipped_constants_are_the_fit_of_the_table(routed: tuple[list[Result], list[Constants]]) -> None:
    results, apart = routed
    again, known = fit(results), shipped()
    assert (known.n, known.region) == (again.n, again.region)
    for name in ("lut", "ff", "delay_ns"):
        assert getattr(known, name) == pytest.approx(getattr(again, name), rel=1e-3, abs=1e-6)
    for folded in (False, True):
        around, stated = spreads(results, apart, folded), known.around(folded)
        assert set(stated) == set(around)
        for name, one in around.items():
            assert (stated[name].low, stated[name].high) == pytest.approx((one.low, one.high), rel=1e-3, abs=1e-6), name


def test_row_of_the_table_holds_all_that_an_estimate_is_made_of() -> None:
    one = Wanted("4x8x8-c4k3s1-m2-d24h-n-d5", 6, "folded", 12)
    found = one.design()
    row = {"name": one.name, "family": one.network, "simulated_cycles": "", **dict.fromkeys((*AREA, "fmax_mhz"), "")}
    row |= {"latency_cycles": str(found.latency_cycles), "interval_cycles": str(found.interval_cycles), "layers": "folded"}
    kept = predicted(result(row | sweep_rtl.counted(found.files)), shipped())
    for name, row_of in totals(estimate(found, ECP5)).items():
        if name != "latency_ms":
            assert kept[name] == pytest.approx(row_of.value, rel=0.002, abs=len(found.layers))


def test_more_unrolled_weights_than_can_be_searched_at_once_are_refused_by_name() -> None:
    fits, beyond = "dense:100-90@4bit", "dense:100-110-10@4bit"
    most = Fpga(ECP5, form="unrolled")
    assert totals(most.estimate_text(fits))["lut"].value
    for name, row in totals(most.estimate_text(beyond)).items():
        assert row.value is None, name
        assert "12,100 weights to be unrolled, 11,000 of them here; an estimate does 10,000" in row.method
    assert totals(Fpga(ECP5).estimate_text(beyond))["lut"].value
    many = Fpga(ECP5, max_weights_unrolled=40_000)
    assert totals(many.estimate_text(beyond))["lut"].value is None
