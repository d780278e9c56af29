"""The fit finds constants that made the data, and its intervals hold what they say."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from edgesdk_targets.fpga.rtl_counts import Terms, Way

from .rtl_fit import START, Result, fit, left_out, predicted, spread, spreads, with_spread

TRUE_LUT = {"carry_bits": 1.1, "carry_chains": 3.5, "limit_bits": 0.4, "modules": 8.0}
TRUE_FF = {"kernel_bits": 0.9, "beat_bits": 1.2}
TRUE_NS = {"clock": 2.5, "spread_out": 0.3, "sum": 1.5, "multiplier": 5.0}


def results(count: int = 90, noise: float = 0.0) -> list[Result]:
    rng = np.random.default_rng(5)
    made = []
    for number in range(count):
        lut = {name: float(rng.integers(20, 600)) for name in TRUE_LUT}
        ff = {name: float(rng.integers(20, 600)) for name in TRUE_FF}
        paths: list[Way] = [{"sum": float(rng.integers(1, 5))}, {"multiplier": float(rng.integers(0, 2))}]
        luts = sum(TRUE_LUT[name] * value for name, value in lut.items()) * math.exp(noise * rng.normal())
        ffs = sum(TRUE_FF[name] * value for name, value in ff.items()) * math.exp(noise * rng.normal())
        way = max(sum(TRUE_NS[name] * value for name, value in path.items()) for path in paths)
        period = TRUE_NS["clock"] + TRUE_NS["spread_out"] * math.log2(luts / 100) + way
        measured = {"lut": luts, "ff": ffs, "dsp": 3.0, "bram": 1.0, "fmax_mhz": 1e3 / period * math.exp(noise * rng.normal())}
        terms = Terms("", lut, ff, 3, 1, paths)
        made.append(Result(f"family {number // 3}", terms, 10, 5, 8, number % 2 == 0, frozenset(), measured))
    return made


def test_constants_that_made_the_data_are_found() -> None:
    known = fit(results())
    for name, value in {**TRUE_LUT, **TRUE_FF}.items():
        assert {**known.lut, **known.ff}[name] == pytest.approx(value, rel=0.05)
    for one in results():
        assert predicted(one, known)["fmax_mhz"] == pytest.approx(one.measured["fmax_mhz"], rel=0.04)


def test_constants_that_no_design_exercises_stay_where_they_start_and_none_is_negative() -> None:
    known = fit(results(noise=0.3))
    assert known.lut["rom_luts"] == pytest.approx(START.lut["rom_luts"])
    assert min(*known.lut.values(), *known.ff.values(), *known.delay_ns.values()) >= 0


def test_few_strange_designs_do_not_bend_the_others() -> None:
    made = results()
    for one in made[:4]:
        one.measured["lut"] *= 3  # type: ignore[index]
    known = fit(made)
    assert all(known.luts([one.terms]) == pytest.approx(one.measured["lut"], rel=0.06) for one in made[4:])


def test_intervals_hold_eight_of_ten_designs_of_other_families() -> None:
    made = results(240, noise=0.1)
    apart = left_out(made[:120])
    known = with_spread(fit(made[:120]), made[:120], apart)
    ratios = [math.log(one.measured["lut"] / predicted(one, known)["lut"]) for one in made[120:]]
    around = [known.around(one.folded)["lut"] for one in made[120:]]
    inside = [ends.low <= ratio <= ends.high for ends, ratio in zip(around, ratios, strict=True)]
    assert 0.7 <= np.mean(inside) <= 0.9


def test_fit_without_a_family_has_not_seen_it() -> None:
    made = results(30, noise=0.05)
    apart = left_out(made)
    assert apart[0].n == 27 and apart[0] is apart[1] and apart[0].lut != apart[29].lut
    assert spreads(made, apart, True)["dsp"].low == spreads(made, apart, True)["dsp"].high == 0.0


def test_quantiles_leave_a_tenth_on_either_side_counting_the_new_case() -> None:
    found = spread([value / 100 for value in range(-9, 10)])  # 19 of them: the second from either end
    assert (found.low, found.high) == (-0.08, 0.08)


def test_designs_without_folded_layers_have_a_spread_of_their_own() -> None:
    made = results(120, noise=0.02)
    for one in made:
        one.measured["ff"] *= 1.0 if one.folded else math.exp(0.1 * math.sin(one.measured["ff"]))  # type: ignore[index]
    known = with_spread(fit(made), made, left_out(made))
    assert known.spread_unrolled["ff"].high > 2 * known.spread["ff"].high
    assert known.spread_unrolled["ff"].low < 2 * known.spread["ff"].low


def test_region_tells_the_widest_design_with_an_operation_that_few_have() -> None:
    made = [
        replace(one, bits=4 + place, operations=frozenset(["Curve"] if place < 3 else [])) for place, one in enumerate(results(9))
    ]
    assert fit(made).region.operations == {"Curve": 6}


def test_region_is_the_most_of_each_count() -> None:
    region = fit(results()).region
    assert (region.dsp, region.bram, region.bits, region.latency_cycles) == (3, 1, 8, 0)  # none of these was simulated
    assert region.lut == max(round(one.measured["lut"]) for one in results())
