"""Power and energy: rails of boards as their sensors show them, and the joules of known curves."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest

from edgesdk_targets import power
from edgesdk_targets.power import PMIC_TOTAL, Rails, Sample, Watch, energy, mean_watts, rails

from .boards import PI_5_ADC, orin_nano, pi_4, pi_5


def test_a_jetson_is_read_by_channel_and_its_input_is_the_total(tmp_path: Path) -> None:
    found = rails(orin_nano(tmp_path).system)
    assert found is not None and found.total == "VDD_IN" and "INA3221" in found.source
    assert found.read() == {
        "VDD_IN": pytest.approx(5.040 * 0.960), "VDD_CPU_GPU_CV": pytest.approx(5.032 * 0.176),
        "VDD_SOC": pytest.approx(5.032 * 0.288),
    }  # fmt: skip


def test_channels_that_are_off_or_unconnected_are_no_rails(tmp_path: Path) -> None:
    board = orin_nano(tmp_path)
    board.write("sys/class/hwmon/hwmon1/in2_label", "NC")
    board.write("sys/class/hwmon/hwmon1/in3_enable", 0)
    found = rails(board.system)
    assert found is not None and list(found.read()) == ["VDD_IN"]
    board.write("sys/class/hwmon/hwmon1/curr1_input", "")
    assert found.read() == {}


def test_the_pmic_of_a_pi_5_gives_rails_that_have_voltage_and_current(tmp_path: Path) -> None:
    watts = power.pmic(PI_5_ADC)
    assert len(watts) == 12 and not {"EXT5V", "BATT"} & set(watts)
    assert watts["VDD_CORE"] == pytest.approx(1.2473 * 0.8731) and watts["DDR_VDDQ"] == 0
    found = rails(pi_5(tmp_path).system)
    assert found is not None and found.total == PMIC_TOTAL and "USB" in found.caveat
    assert found.read()[PMIC_TOTAL] == pytest.approx(sum(watts.values()))
    assert power.pmic("VCHI initialization failed") == {}


def test_a_pi_4_and_an_empty_system_have_no_sensors(tmp_path: Path) -> None:
    board = pi_4(tmp_path / "pi")
    assert rails(board.system) is None
    assert "vcgencmd pmic_read_adc" in board.asked
    assert rails(power.System(tmp_path / "nothing", lambda command: PI_5_ADC)) is None


def curve(watts: list[float], period_s: float = 0.1, start_s: float = 0.0) -> list[Sample[power.Watts]]:
    return [Sample(start_s + period_s * index, {"VDD_IN": value, "VDD_SOC": value / 4}) for index, value in enumerate(watts)]


def test_mean_power_is_the_integral_over_the_time_whatever_the_pace_of_the_readings() -> None:
    ramp = [Sample(t, {"a": 2 * t}) for t in (0.0, 0.1, 0.5, 0.6, 0.9, 1.0)]
    assert mean_watts(ramp, 0, 1) == {"a": pytest.approx(1.0)}
    assert mean_watts(curve([5.0] * 11), 0, 1)["VDD_IN"] == pytest.approx(5)


def test_readings_outside_the_runs_do_not_count() -> None:
    readings = curve([1.0] * 10 + [9.0] * 11 + [1.0] * 10)
    assert mean_watts(readings, 1.0 - 1e-9, 2.0 + 1e-9)["VDD_IN"] == pytest.approx(9)
    assert mean_watts(readings, 0.0, 0.35) == {}
    missing = [*curve([2.0] * 5), Sample(0.45, {})]
    assert mean_watts(missing, 0, 1)["VDD_IN"] == pytest.approx(2)


ORIN = Rails("INA3221 by hwmon", 0.1, dict, "VDD_IN")


def test_energy_is_power_times_time_over_runs_with_idle_told_apart() -> None:
    rows = energy(ORIN, curve([6.0] * 41), 0.0, 4.0, 1000, {"VDD_IN": 4.0}, "the board")
    by_segment = {row.segment: row for row in rows}
    whole = by_segment["whole"]
    assert (whole.name, whole.value, whole.unit, whole.provenance, whole.n) == (
        "energy_mj",
        pytest.approx(24.0),
        "mJ",
        "measured",
        1000,
    )
    assert "41 readings" in whole.method and "VDD_IN at 6 W" in whole.method
    assert by_segment["above idle"].value == pytest.approx(8.0) and "less 4 W when idle" in by_segment["above idle"].method
    assert by_segment["rail VDD_SOC"].value == pytest.approx(6.0)
    assert set(by_segment) == {"whole", "above idle", "rail VDD_SOC"}


def test_too_few_readings_are_no_energy() -> None:
    (row,) = energy(ORIN, curve([6.0] * 4), 0.0, 4.0, 10, {}, "the board")
    assert (row.provenance, row.value) == ("unavailable", None) and "4 readings within the runs; 5 are needed" in row.method


def test_without_a_rail_that_carries_everything_there_is_no_total() -> None:
    agx = Rails("INA3221 by hwmon", 0.1, dict, "")
    rows = energy(agx, curve([6.0] * 41), 0.0, 4.0, 1000, {}, "the board")
    assert rows[0].provenance == "unavailable" and "no rail" in rows[0].method
    assert {row.segment for row in rows[1:]} == {"rail VDD_IN", "rail VDD_SOC"}


def test_what_the_total_leaves_out_is_told() -> None:
    pmic = Rails("PMIC by vcgencmd", 0.1, dict, "VDD_IN", "without what hangs on 5 V")
    assert "without what hangs on 5 V" in energy(pmic, curve([6.0] * 9), 0, 1, 9, {}, "the board")[0].method


def test_a_watch_reads_until_it_is_left(tmp_path: Path) -> None:
    board = orin_nano(tmp_path)
    sensors = rails(board.system)
    assert sensors is not None
    begin = time.monotonic()
    with Watch(sensors.read, 0.01) as watch:
        while len(watch.samples) < 8:
            time.sleep(0.005)
    count = len(watch.samples)
    assert all(begin <= sample.at_s <= time.monotonic() for sample in watch.samples)
    assert [sample.at_s for sample in watch.samples] == sorted(sample.at_s for sample in watch.samples)
    assert math.isclose(mean_watts(watch.samples, begin, time.monotonic())["VDD_IN"], 5.04 * 0.96)
    time.sleep(0.05)
    assert len(watch.samples) == count
