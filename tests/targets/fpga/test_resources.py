"""Capacities: those of the profiles, what does not fit, and what is said before it is too late."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgesdk_converters.errors import DeviceError, DoesNotFit
from edgesdk_targets.device import DeviceProfile, Fact, of_target, profile
from edgesdk_targets.figure import Figure, Interval
from edgesdk_targets.fpga.resources import FILL, LARGEST, bounds, capacities, check, family, notes

TABLE = {
    "pynq-z2": ("xc7", 53_200, 106_400, 220, 280, 0),
    "zcu102": ("xcup", 274_080, 548_160, 2_520, 1_824, 0),
    "alveo-u200": ("xcup", 1_182_240, 2_364_480, 6_840, 4_320, 960),
    "alveo-u250": ("xcup", 1_728_000, 3_456_000, 12_288, 5_376, 1_280),
    "ecp5-25k": ("ecp5", 24_288, 24_288, 28, 56, None),
    "ecp5-45k": ("ecp5", 43_848, 43_848, 72, 108, None),
    "ecp5-85k": ("ecp5", 83_640, 83_640, 156, 208, None),
}
"""Family, LUT, FF, DSP, BRAM of 18 kbit, URAM."""
PYNQ = profile("pynq-z2")


@pytest.mark.parametrize("name", TABLE)
def test_the_profiles_have_the_published_capacities(name: str) -> None:
    found = capacities(profile(name))
    have = tuple(found[key].have if key in found else None for key in ("lut", "ff", "dsp", "bram", "uram"))
    assert (family(profile(name)), *have) == TABLE[name]


def test_every_fpga_profile_is_in_the_table_and_names_its_part() -> None:
    assert {device.name for device in of_target("fpga")} == set(TABLE)
    for device in of_target("fpga"):
        assert device.need("part", str)


def test_each_family_says_what_it_counts() -> None:
    assert capacities(PYNQ)["bram"].unit == "BRAM18"
    assert capacities(profile("zcu102"))["dsp"].unit == "DSP48E2"
    ecp5 = capacities(profile("ecp5-85k"))
    assert (ecp5["lut"].unit, ecp5["bram"].unit, ecp5["io"].have) == ("LUT4", "EBR (18 kbit)", 205)


def test_what_is_well_below_the_bound_needs_no_note() -> None:
    assert check(PYNQ, {"lut": FILL * 53_200, "ff": 0, "dsp": Interval(10, 154, 0.8)}) == ()
    assert check(PYNQ, {}) == ()


def test_above_seventy_percent_there_is_a_note() -> None:
    (note,) = check(PYNQ, {"lut": 0.7 * 53_200 + 1, "ff": 53_200})
    assert "pynq-z2: of 53,200 LUT6 it needs 37,241: 70%" in note
    (note,) = check(PYNQ, {"dsp": Interval(100, 200, 0.8)})
    assert "100 to 200: 91%" in note


def test_all_of_a_part_still_fits_and_one_more_does_not() -> None:
    assert len(check(PYNQ, {"bram": 280})) == 1
    with pytest.raises(DoesNotFit) as caught:
        check(PYNQ, {"bram": 281})
    assert (caught.value.need, caught.value.have, caught.value.unit) == (281, 280, "BRAM18")


def test_an_interval_does_not_fit_only_where_its_low_end_does_not() -> None:
    (note,) = check(PYNQ, {"lut": Interval(50_000, 60_000, 0.8)})
    assert "50,000 to 60,000: may not fit" in note
    with pytest.raises(DoesNotFit, match="need 53,201 LUT6, have 53,200 LUT6"):
        check(PYNQ, {"lut": Interval(53_201, 60_000, 0.8)})


def test_the_worst_is_named_and_the_others_in_the_hint() -> None:
    with pytest.raises(DoesNotFit, match="dsp on pynq-z2") as caught:
        check(PYNQ, {"lut": 60_000, "dsp": 2_200, "ff": 10})
    assert "also short of lut: need 60,000, have 53,200 LUT6" in caught.value.hint


def test_a_memory_that_a_part_has_none_of_does_not_fit() -> None:
    with pytest.raises(DoesNotFit, match="uram on pynq-z2"):
        check(PYNQ, {"uram": 1})
    assert check(PYNQ, {"uram": 0}) == ()


def test_what_a_profile_does_not_say_is_said_and_not_refused() -> None:
    (note,) = check(PYNQ, {"io": 100})
    assert "does not say how many pins" in note
    with pytest.raises(DoesNotFit, match="io on ecp5-85k"):
        check(profile("ecp5-85k"), {"io": 206})


def test_what_the_shell_of_a_card_leaves_is_a_note() -> None:
    notes = check(profile("alveo-u250"), {"lut": 1_500_000})
    assert any("beside the card's shell 1,379,740 LUT6 are free" in note for note in notes)


def test_an_unknown_family_and_a_profile_without_a_capacity_are_refused() -> None:
    with pytest.raises(DeviceError, match="family 'ice40'; known are: xc7, xcup, ecp5"):
        capacities(DeviceProfile("mine", "fpga", "Mine", facts={"family": Fact("ice40", "me")}))
    facts = {key: fact for key, fact in PYNQ.facts.items() if key != "dsp"}
    with pytest.raises(DeviceError, match="its profile has no dsp"):
        check(replace(PYNQ, facts=facts), {"lut": 1})


@pytest.mark.parametrize("needs", [{"luts": 1}, {"lut": -1}, {"lut": float("nan")}, {"lut": float("inf")}])
def test_what_is_no_count_is_a_bug(needs: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="is no count of"):
        check(PYNQ, needs)


def total(name: str, value: float | None, *around: float, layer: str | None = None) -> Figure:
    interval = Interval(around[0], around[1], 0.8) if around else None
    return Figure(name, value, "estimated" if value is not None else "unavailable", "here", "why", layer=layer, interval=interval)


def test_every_resource_of_an_estimate_that_is_short_or_nearly_so_has_its_note() -> None:
    rows = (
        total("lut", 83_424, 25_505, 274_657), total("ff", 100, 50, 200), total("dsp", 4_256, 2_410, 7_515), total("bram", None),
        total("cycles", 10**9, 1, 10**9), total("dsp", 10**6, 10**6, 10**6, layer="fc"),
    )  # fmt: skip
    lut, dsp = notes(PYNQ, rows)
    assert lut == "pynq-z2: of 53,200 LUT6 it needs 25,505 to 274,657: may not fit"
    assert dsp.startswith("DoesNotFit, at the low end of the estimate's interval: dsp on pynq-z2 does not fit:")
    assert "need 2,410 DSP48E1, have 220 DSP48E1" in dsp
    assert notes(PYNQ, [total("lut", 100, 50, 200)]) == ()


def test_no_result_needs_ten_times_its_part() -> None:
    assert bounds("xc7z020clg400-1") == {"lut": 532_000, "ff": 1_064_000, "dsp": 2_200, "bram": 2_800}
    assert bounds("") == bounds("xcvu19p-fsva3824-2-e") == {name: 10 * have for name, have in LARGEST.items()}
    assert all(bounds("")[name] >= bounds(device.need("part", str))[name] for device in of_target("fpga") for name in LARGEST)
