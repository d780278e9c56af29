"""Fitting: known effects are found again, families and chips count once, own reports move a prediction, files are checked."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from edgesdk_converters.errors import DeviceError
from edgesdk_targets import latency_fit
from edgesdk_targets.figure import Figure, Interval
from edgesdk_targets.latency_fit import (
    FAMILY,
    Record,
    Row,
    apply,
    few_networks,
    fit,
    fitted_from_json,
    fitted_to_json,
    network,
    prior,
    record,
    refit,
    residuals,
    rows,
    spread,
    stage,
    to_json,
)
from edgesdk_targets.latency_model import (
    CONSTANTS,
    Constants,
    Setting,
    constants,
    predict,
    published_facts,
    read_constants,
)
from edgesdk_targets.report import Report

NETWORKS = ("squeezenet", "mobilenet", "mobilenet_v2", "vgg16", "resnet50", "shufflenet_v2", "yolov4-tiny", "alexnet")
MIXED = ("blazeface", "FastestDet", "yolo-fastest-1.1", "shufflenet_v2", "mobilenet_v3", "mobilenet", "resnet50", "vgg16")
PI = published_facts("Raspberry Pi 4B")


def synthetic(effects: dict[str, float], noise: float = 0.0) -> list[Row]:
    """Rows of three devices whose times obey the effects exactly, or nearly."""
    random = np.random.default_rng(3)
    sample = [
        Row(published_facts(device), Setting(threads=threads), name, 1.0)
        for device in ("Raspberry Pi 4B", "Raspberry Pi 5", "Jetson Nano")
        for threads in (1, 4)
        for name in NETWORKS
    ]
    times = apply(effects, sample) * np.exp(noise * random.standard_normal(len(sample)))
    return [replace(row, latency_ms=float(time)) for row, time in zip(sample, times, strict=True)]


TRUTH = {name: prior(name)[0] for name in latency_fit.COSTS} | {"threads:d": 0.15, "threads:a": -0.5, "uneven": 0.9}


def test_rows_that_obey_known_effects_are_predicted_exactly_and_the_effects_found() -> None:
    truth = TRUTH | {"pointwise": 0.8, "dev:Raspberry Pi 5": 0.4}
    sample = synthetic(truth)
    found = fit(sample)
    errors = np.log(apply(found, sample)) - np.log([row.latency_ms for row in sample])
    assert np.abs(errors).max() < 0.05
    own = {name: sum(v for k, v in found.items() if name in k and k.startswith(("dev:", "cfg:"))) for name in ("Pi 5", "Pi 4B")}
    assert own["Pi 5"] > own["Pi 4B"] + 0.2
    assert found["pointwise"] == pytest.approx(0.8, abs=0.3)  # shrunk to its prior, and shared with the devices' own


def test_a_new_network_is_predicted_from_the_others() -> None:
    sample = synthetic(TRUTH | {"pointwise": 0.7, "winograd": 0.0, "dev:Jetson Nano": -0.3}, noise=0.03)
    errors, groups = residuals(sample, lambda row: row.family)
    assert set(groups) == {"measured"}
    assert np.median(np.abs(errors)) < 0.06


def test_one_outlier_hardly_moves_the_fit() -> None:
    sample = synthetic(TRUTH, noise=0.02)
    spoiled = [replace(sample[0], latency_ms=20 * sample[0].latency_ms), *sample[1:]]
    before, after = apply(fit(sample), sample), apply(fit(spoiled), sample)
    assert np.abs(np.log(after[1:] / before[1:])).max() < 0.1


def test_the_published_rows_are_those_with_a_layer_list_and_without_doubt() -> None:
    sample = rows()
    assert len(sample) > 1200 and {row.network for row in sample} <= {
        p.stem for p in (CONSTANTS.parent / "published_latency" / "networks").iterdir()
    }
    first = next(
        row for row in sample if row.facts.name == "Jetson AGX Orin" and row.network == "squeezenet" and row.setting.threads == 1
    )
    assert first.latency_ms == 11.66  # the least, not the mean of 11.74
    mean = next(
        row for row in sample if row.network == "yolo11n" and row.setting.runtime == "mnn" and "Orin Nano" in row.facts.name
    )
    assert mean.latency_ms == 74.75 and mean.family == "yolo11" and mean.soc == "Tegra234"
    noisy = {row.noise for row in sample}
    assert len(noisy) == 2 and max(noisy) > min(noisy)
    assert {stage(row) for row in sample} == {"plain", "int8", "other", "gpu-vulkan", "gpu-cuda", "gpu-tensorrt"}


def test_int8_and_other_runtimes_do_not_move_fp32_in_ncnn() -> None:
    plain = [
        row for row in rows() if stage(row) == "plain" and row.network in NETWORKS and row.facts.name.startswith("Raspberry")
    ]
    others = [row for row in rows() if stage(row) in ("int8", "other") and row.facts.name.startswith("Raspberry")]
    alone, together = fit(plain), fit([*plain, *others])
    assert apply(together, plain) == pytest.approx(apply(alone, plain))


def test_the_constants_that_ship_are_what_the_fit_gives() -> None:
    known = read_constants(CONSTANTS.read_text(encoding="utf-8"))
    sample = [row for row in rows() if row.setting.backend == "gpu-vulkan"]
    assert apply(fit(sample), sample) == pytest.approx(apply(known.effects, sample), rel=2e-3)
    assert read_constants(to_json(known)) == known


def test_networks_left_out_are_predicted_far_better_than_by_a_roofline() -> None:
    # the plain roofline's mean error on these rows is above 100 %: python -m tests.bench_latency
    sample = [row for row in rows() if stage(row) == "plain"]
    errors, _ = residuals(sample, lambda row: row.family)
    assert np.mean(np.abs(np.exp(-errors) - 1)) < 0.15
    low, high = spread(errors, len({row.family for row in sample}))
    assert np.mean((errors > -low) & (errors < high)) >= 0.88
    assert math.exp(low + high) < 2.1


def test_an_interval_is_that_of_the_errors_it_was_made_from() -> None:
    errors = np.linspace(-0.2, 0.4, 201)
    assert spread(errors, 1500) == (pytest.approx(0.17, rel=2e-3), pytest.approx(0.37, rel=2e-3))
    assert spread(errors, 5) == (pytest.approx(1.3 * 0.17), pytest.approx(1.3 * 0.37))  # five families lack tails
    assert spread(np.array([-0.1, 0.3, 0.2]), 1500) == (pytest.approx(0.28, rel=2e-3), pytest.approx(0.28, rel=2e-3))


def records(scale: float, names: tuple[str, ...], traffic: float = 1.0) -> list[Record]:
    """Measurements of a board `scale` times as slow as the constants say, that moves data `traffic` times as slowly."""
    setting, known = Setting(threads=4), constants()
    slowed = Constants({**known.effects} | {name: known.effects[name] + math.log(traffic) for name in ("traffic", "tiles")},
                       known.intervals, known.seen, known.macs)  # fmt: skip
    return [Record(network(name), scale * predict(network(name), PI, setting, known=slowed).total_ms, setting) for name in names]


def test_three_records_of_a_slow_board_scale_it() -> None:
    found = refit(records(1.6, NETWORKS[:3]), PI)
    assert (found.device, found.runtime, found.backend, found.records) == ("Raspberry Pi 4B", "ncnn", "cpu", 3)
    assert 0.65 * math.log(1.6) < found.scale < math.log(1.6)  # shrunk towards the constants
    assert found.groups == {}
    right = records(1.6, ("resnet50",))[0].latency_ms
    before, after = (predict(network("resnet50"), PI, Setting(threads=4), fitted=f).total_ms for f in (None, found))
    assert abs(math.log(after / right)) < 0.4 * abs(math.log(before / right))


def test_a_stranger_is_shrunk_less_and_more_records_narrow_the_interval() -> None:
    stranger = replace(PI, name="new board")
    same = [replace(r) for r in records(1.6, NETWORKS[:3])]
    known, unknown = refit(same, PI), refit(same, stranger)
    assert unknown.device == "new board"
    few, many = refit(records(1.6, NETWORKS[:2]), PI), refit(records(1.6, NETWORKS), PI)
    assert few.high > known.high > many.high
    one = [
        Record(r.layers, 3 * predict(r.layers, facts, r.setting).total_ms, r.setting)
        for r in same[:1]
        for facts in (PI, stranger)
    ]
    assert refit(one[1:], stranger).scale > refit(one[:1], PI).scale


def test_from_six_records_on_groups_are_told_apart() -> None:
    found = refit(records(1.0, MIXED, traffic=4.0), PI)
    assert found.groups["a"] > 0.2
    assert found.groups["a"] > 0.15 + max(found.groups[name] for name in "dml")


def test_from_many_records_on_single_costs_are_told_apart() -> None:
    setting, known = Setting(threads=4), constants()
    slow = Constants(
        {**known.effects, "winograd": known.effects["winograd"] + math.log(3.0)}, known.intervals, known.seen, known.macs
    )
    names = [name for name in (*NETWORKS, *MIXED) for _ in range(2)]
    some = [Record(network(n), predict(network(n), PI, setting, known=slow).total_ms, setting) for n in names]
    few, many = refit(some[:16], PI), refit(some, PI)
    assert "winograd" not in few.groups and many.groups["winograd"] > 0.3
    assert many.groups["winograd"] > 0.2 + max(value for name, value in many.groups.items() if name not in ("winograd", *"damsl"))


def test_records_that_cannot_be_fitted_are_refused() -> None:
    one = records(1.0, NETWORKS[:1])[0]
    with pytest.raises(DeviceError, match="got none"):
        refit([], PI)
    with pytest.raises(DeviceError, match="one runtime"):
        refit([one, replace(one, setting=Setting("mnn", threads=4))], PI)
    with pytest.raises(DeviceError, match="above 0"):
        refit([replace(one, latency_ms=0.0)], PI)
    with pytest.raises(DeviceError, match="takes time"):
        refit([replace(one, layers=())], PI)


def test_a_report_gives_a_record_only_when_it_measured() -> None:
    measured = Figure("latency_ms", 12.5, "measured", "board", "500 runs", n=500)
    report = Report("squeezenet", "raspberry-pi", "raspberry-pi-4", "b.edge", (measured,))
    assert record(report, network("squeezenet"), Setting(threads=4)).latency_ms == 12.5
    guessed = Figure("latency_ms", 12.5, "estimated", "board", "a guess", interval=Interval(1, 20, 0.9))
    with pytest.raises(DeviceError, match="no measured latency"):
        record(replace(report, rows=(guessed,)), network("squeezenet"), Setting(threads=4))


def test_a_fit_survives_its_file_and_a_wrong_file_is_refused() -> None:
    found = refit(records(1.3, NETWORKS), PI)
    data = json.loads(json.dumps(fitted_to_json(found)))
    assert data["format"] == "edgesdk-latency-fit/1"
    assert fitted_from_json(data) == found
    assert data["threads"] == [4] and data["precisions"] == ["fp32"] and "conv" in data["operators"]
    for wrong in (
        [],
        {},
        {"format": "other"},
        data | {"low": -1.0},
        data | {"scale": math.inf},
        data | {"more": 1},
        data | {"records": "3"},
        data | {"whence": "a dream"},
        data | {"threads": ["4"]},
    ):
        with pytest.raises(DeviceError):
            fitted_from_json(wrong)


def test_three_networks_of_a_chip_never_seen_halve_its_bias() -> None:
    names = ("Raspberry Pi 3B+", "Raspberry Pi 4B", "Raspberry Pi 5", "Raspberry Pi Zero 2 W", "Jetson Nano", "Jetson TX2 NX")
    sample = [row for row in rows() if stage(row) == "plain" and row.facts.name in names]
    after, before = few_networks(sample)
    assert np.mean(np.abs(np.exp(-after) - 1)) < 0.8 * np.mean(np.abs(np.exp(-before) - 1))
    assert len(after) == len(before) > 300


def test_int8_costs_keep_nearer_to_their_priors() -> None:
    assert prior("q:winograd") == (prior("winograd")[0], prior("winograd")[1] / 2)
    assert prior("q:dev:x") == prior("dev:x") and prior("dev:x:d")[1] < prior("dev:x")[1]
    assert prior("threads:d")[0] == 0.15 and FAMILY > latency_fit.NOISE
