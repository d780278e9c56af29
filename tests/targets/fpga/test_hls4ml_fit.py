"""Fitting: a made-up truth is found again from its results, few of them move constants little, and bad ones are refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgesdk_converters.errors import TargetError, Unsupported
from edgesdk_targets.figure import Figure
from edgesdk_targets.fpga.constants_file import text
from edgesdk_targets.fpga.dense_spec import parse
from edgesdk_targets.fpga.hls4ml_constants import Constants, Placement, read_constants, shipped
from edgesdk_targets.fpga.hls4ml_estimate import TARGETS, estimate
from edgesdk_targets.fpga.hls4ml_fit import ANALYTIC, FAMILIES, FEWEST, Record, constants, count, fit, record, residuals
from edgesdk_targets.fpga.hls4ml_terms import FixedLayer

U250 = "xcu250-figd2104-2L-e"
NETWORKS = ("16-64-32-5", "20-30-40", "48-72-16", "12-100-24", "64-64-64-10", "90-30-90", "24-24-24", "110-50-20")


def totals(layers: Sequence[FixedLayer], known: Constants, reuse: int, **given: Any) -> dict[str, Figure]:
    made = estimate(layers, reuse_factor=reuse, constants=known, **given)
    return {figure.name: figure for figure in made if figure.layer is None}


def results(
    known: Constants, networks: Sequence[str], reuse: int = 32, noise: float = 0.0, bits: int = 8, **given: Any
) -> list[Record]:
    """Results of networks under a truth, `noise` being the standard deviation of their logarithms."""
    rng, made = np.random.default_rng(5), []
    for name in networks:
        layers = parse(f"dense:{name}@{bits}bit")
        found = totals(layers, known, reuse, **given)
        measured = {target: float(found[target].value or 0) for target in TARGETS}
        measured |= {target: measured[target] * math.exp(rng.normal(0, noise)) for target in ("lut", "ff")}
        made.append(Record(layers, measured, reuse, **given))
    return made


def truth(lut: float = 1.0, ff: float = 1.0) -> Constants:
    known = shipped()
    return replace(
        known,
        lut={name: lut * value for name, value in known.lut.items()},
        ff={name: ff * value for name, value in known.ff.items()},
    )


def value(known: Constants, target: str, name: str = "40-80-12", reuse: int = 32) -> float:
    return float(totals(parse(f"dense:{name}@8bit"), known, reuse)[target].value or 0)


def test_three_results_as_estimated_change_nothing() -> None:
    found = fit(results(shipped(), NETWORKS[:3]))
    for target in TARGETS:
        assert value(found, target) == pytest.approx(value(shipped(), target), rel=0.01)


def test_three_results_of_another_cost_move_estimates_towards_them_and_not_beyond() -> None:
    found = fit(results(truth(lut=1.5), NETWORKS[:3]))
    assert 1.2 < value(found, "lut") / value(shipped(), "lut") < 1.501
    assert value(found, "ff") == pytest.approx(value(shipped(), "ff"), rel=0.01)


def test_a_constant_moves_as_far_as_results_tell_it_from_others() -> None:
    """Of one network three times nobody can say which constant is off: all move a little; several networks say it."""
    known = shipped()
    odd = replace(known, lut={**known.lut, "output_word": 2 * known.lut["output_word"]})
    one, several = fit(results(odd, NETWORKS[:1] * 3)), fit(results(odd, NETWORKS))
    shares = [found.lut["output_word"] / odd.lut["output_word"] for found in (one, several)]
    assert 0.5 < shares[0] < 0.95 < shares[1] < 1.05
    assert one.lut["input_word"] > 1.02 * known.lut["input_word"]
    assert value(one, "lut", NETWORKS[0]) == pytest.approx(value(odd, "lut", NETWORKS[0]), rel=0.03)


def test_one_wild_result_does_not_bend_the_others() -> None:
    made = results(shipped(), NETWORKS)
    made[0] = replace(made[0], measured=made[0].measured | {"lut": made[0].measured["lut"] * 20})
    assert value(fit(made), "lut") == pytest.approx(value(shipped(), "lut"), rel=0.05)


def test_counted_figures_are_scaled_by_the_median_shrunk() -> None:
    made = [
        replace(one, measured=one.measured | {"cycles": 2 * one.measured["cycles"]}) for one in results(shipped(), NETWORKS[:3])
    ]
    assert value(fit(made), "cycles") == pytest.approx(math.sqrt(2) * value(shipped(), "cycles"), rel=0.05)


def test_own_results_make_their_settings_known_and_intervals_narrow() -> None:
    mine = results(truth(lut=1.2), NETWORKS, part="xc7z020clg400-1", clock_ns=8.0, noise=0.05)
    found = fit(mine)
    layers = parse("dense:40-80-12@8bit")
    given = {"part": "xc7z020clg400-1", "clock_ns": 8.0}
    before, after = (totals(layers, known, 32, **given)["lut"] for known in (shipped(), found))
    assert before.extrapolated and not after.extrapolated
    assert before.interval is not None and after.interval is not None
    assert after.interval.high / after.interval.low < before.interval.high / before.interval.low
    assert totals(parse("dense:48-72-16@8bit"), found, 2047, part=U250)["lut"].extrapolated  # constants moved, by other results
    assert totals(layers, found, 16, **given)["lut"].extrapolated


def test_scattered_results_make_intervals_wide() -> None:
    calm, wild = (fit(results(shipped(), NETWORKS, noise=noise)).spread["lut"] for noise in (0.02, 0.6))
    assert wild.high - wild.low > calm.high - calm.low


def many(noise: float) -> list[Record]:
    rng = np.random.default_rng(1)
    names = ["-".join(str(8 * rng.integers(2, 16)) for _ in range(3)) for _ in range(3 * FAMILIES)]
    return results(truth(lut=1.3), names, reuse=1500, noise=noise)


def test_many_results_settle_the_constants_and_the_interval_holds_eight_of_ten() -> None:
    made = many(0.1)
    found = fit(made, ANALYTIC, "made up", "2030-01-01")
    assert (found.source, found.date, found.n) == ("made up", "2030-01-01", 3 * FAMILIES)
    assert found.families == len({one.family for one in made}) > FAMILIES
    assert value(found, "lut", "64-96-40", 1500) == pytest.approx(value(truth(lut=1.3), "lut", "64-96-40", 1500), rel=0.1)
    fresh = results(
        truth(lut=1.3), [f"{8 * a}-{8 * b}-72" for a in (3, 5, 7, 9, 11) for b in (4, 6, 10, 14)], reuse=1500, noise=0.1
    )
    inside = 0
    for one in fresh:
        interval = totals(one.layers, found, 1500)["lut"].interval
        assert interval is not None
        inside += interval.low <= one.measured["lut"] <= interval.high
    assert 12 <= inside <= 20
    assert -0.2 < found.spread["lut"].low < -0.06 and 0.06 < found.spread["lut"].high < 0.2


def test_intervals_are_of_networks_that_the_fit_had_not_seen() -> None:
    made = many(0.2)[:FAMILIES]
    found = fit(made, ANALYTIC)
    seen = np.quantile(residuals(count(made), found, "lut"), (0.1, 0.9))
    assert found.spread["lut"].high - found.spread["lut"].low > 1.05 * (seen[1] - seen[0])


def test_the_start_of_the_shipped_fit_does_not_matter() -> None:
    made = count(many(0.02))
    twice = replace(ANALYTIC, lut={name: 2 * value_ for name, value_ in ANALYTIC.lut.items()})
    one, other = (constants(made, start) for start in (ANALYTIC, twice))
    for name in ("input_word", "output_word"):
        assert one.lut[name] == pytest.approx(other.lut[name], rel=0.15)
    assert one.lut["constant_bits"] == ANALYTIC.lut["constant_bits"]  # no result counts it


def test_where_weights_went_is_read_from_the_tiles() -> None:
    """16 x 120 at one multiplier: index table half a tile, weights of 8 bits half a tile; five results of each."""
    layers, start = parse("dense:16-120@8bit"), replace(ANALYTIC, placement={**ANALYTIC.placement})
    for tiles_, share in ((1.0, 1.0), (0.5, 0.0)):
        made = [Record(layers, {"bram": tiles_}, 1920) for _ in range(5)]
        found = constants(count(made), start).placement["one_multiplier_many_outputs"]
        assert found == Placement(5 * share, 5)
    strange = [Record(layers, {"bram": 7.0}, 1920) for _ in range(5)]
    assert constants(count(strange), start).placement == ANALYTIC.placement


def test_results_move_the_shares_of_a_placement_that_ships() -> None:
    layers = parse("dense:16-120@8bit")
    before = shipped().placement["one_multiplier_many_outputs"].share
    found = fit([Record(layers, {"bram": 0.5}, 1920) for _ in range(15)]).placement["one_multiplier_many_outputs"].share
    assert found < 0.5 < before


def test_residuals_are_of_what_was_measured() -> None:
    made = results(truth(lut=1.5), NETWORKS[:4])
    made[0] = replace(made[0], measured={"ff": 1.0, "clock_est_ns": 4.0})
    found = count(made)
    assert residuals(found, shipped(), "lut") == pytest.approx([math.log(1.5)] * 3, abs=0.01)
    assert residuals(found, shipped(), "clock") == pytest.approx(
        [math.log(4.0 / 5.0 / shipped().clock[shipped().longest_path(found[0].costs)])]
    )


def test_a_fit_survives_its_file(tmp_path: Path) -> None:
    found = fit(results(truth(lut=1.5), NETWORKS[:3]), source="my board", date="2030-01-01")
    (tmp_path / "mine.toml").write_text(text(found), encoding="utf-8")
    again = read_constants(tmp_path / "mine.toml")
    assert again.source.startswith("my board; before them: fitted on") and len(again.regions) == 2
    assert value(again, "lut") == pytest.approx(value(found, "lut"), rel=1e-3)


def test_a_fit_can_go_on_from_a_fit() -> None:
    once = fit(results(truth(lut=1.5), NETWORKS[:3]))
    twice = fit(results(truth(lut=1.5), NETWORKS[3:6]), once)
    assert value(twice, "lut") == pytest.approx(1.5 * value(shipped(), "lut"), rel=0.01)
    assert twice.n == once.n + 3 and len(twice.regions) == 3


@pytest.mark.parametrize(
    "other", [{"clock_ns": 10.0}, {"strategy": "latency"}, {"io_type": "io_stream"}, {"part": "xc7z020clg400-1"}]
)
def test_what_results_of_other_settings_have_moved_is_no_longer_inside_for_the_old_ones(other: dict[str, Any]) -> None:
    found, layers = fit(results(truth(lut=1.5), NETWORKS[:3], 2048, **other)), parse("dense:20-30-40@8bit")
    assert not totals(layers, shipped(), 2048)["lut"].extrapolated
    assert totals(layers, found, 2048, part=U250)["lut"].extrapolated
    assert not totals(layers, found, 2048, **other)["lut"].extrapolated


def test_too_few_results_are_refused() -> None:
    with pytest.raises(TargetError, match=f"2 results are too few.*|give at least {FEWEST}"):
        fit(results(shipped(), NETWORKS[:2]))


def test_layers_without_a_formula_are_refused() -> None:
    made = results(shipped(), NETWORKS[:3])
    with pytest.raises(Unsupported):
        fit([*made, replace(made[0], layers=(FixedLayer("s", "gru", 4, 4),))])


def test_records_come_from_plain_data() -> None:
    data = {
        "layers": [{"name": "a", "kind": "dense", "n_in": 4, "n_out": 3, "weight_bits": 8}],
        "measured": {"lut": 100, "bram": 0.5},
        "reuse_factor": 4,
        "part": "xc7z020clg400-1",
    }
    found = record(data)
    assert found.layers == (FixedLayer("a", "dense", 4, 3, 8),) and found.measured == {"lut": 100.0, "bram": 0.5}
    assert found.family == (("dense", 4, 3),)


def test_a_result_of_synthesis_can_be_too_large_for_its_part() -> None:
    layers = [{"name": "a", "kind": "dense", "n_in": 4, "n_out": 3, "weight_bits": 8}]
    found = record({"layers": layers, "measured": {"lut": 83_424, "bram": 1_400}, "part": "xc7z020clg400-1"})
    assert found.measured == {"lut": 83_424.0, "bram": 1_400.0}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"measured": {"luts": 3}}, "'luts' is none of lut"),
        ({"measured": {"lut": -1}}, "lut = -1"),
        ({"measured": {"lut": math.inf}}, "lut = inf"),
        ({"measured": {"lut": 1e12}}, "report 3: lut = 1e\\+12, more than 10 times what any part has"),
        ({"measured": {"bram": 1401}, "part": "xc7z020clg400-1"}, "bram = 1401, more than 10 times what xc7z020clg400-1 has"),
        ({"measured": {"dsp": 2201}, "part": "xc7z020clg400-1"}, "dsp = 2201, more than 10 times"),
        ({"strategy": "unrolled"}, "resource, latency"),
        ({"layers": []}, "needs layers"),
        ({"reuse_factor": 0}, "a reuse factor of 0"),
        ({"clock_ns": 0.0}, "a clock of 0 ns"),
        ({"clock_ns": math.nan}, "a clock of nan ns"),
        ({"io_type": "serial"}, "io_type 'serial' is none of io_parallel, io_stream"),
        ({"board": "x"}, "unknown name 'board'"),
    ],
)
def test_data_that_is_no_record_is_refused(changed: dict[str, Any], told: str) -> None:
    data = {"layers": [{"name": "a", "kind": "dense", "n_in": 4, "n_out": 3, "weight_bits": 8}], "measured": {"lut": 1}} | changed
    with pytest.raises(TargetError, match=told):
        record(data, "report 3")
