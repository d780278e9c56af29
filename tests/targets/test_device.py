"""Device profiles: every fact has a source, units are sane, names are unique and imply a target."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tomllib

import edgesdk_targets
from edgesdk_converters.errors import DeviceError
from edgesdk_targets import device
from edgesdk_targets.device import DeviceProfile, Fact, profile
from edgesdk_targets.latency_model import DeviceFacts

FILES = sorted((Path(device.__file__).parent / "devices").glob("*.toml"))
NAMES = [path.stem for path in FILES]

SANE: dict[str, Callable[[object], bool]] = {
    "clock_ghz": lambda v: 0.5 <= v <= 5,
    "clock_early_boards_ghz": lambda v: 0.5 <= v <= 5,
    "clock_throttled_ghz": lambda v: 0.5 <= v <= 5,
    "l3_cache_bytes": lambda v: type(v) is int and 2**18 <= v <= 2**26,
    "l2_cache_bytes_per_core": lambda v: type(v) is int and 2**15 <= v <= 2**24,
    "super_clock_ghz": lambda v: 0.5 <= v <= 5,
    "gpu_clock_ghz": lambda v: 0.1 <= v <= 3,
    "super_gpu_clock_ghz": lambda v: 0.1 <= v <= 3,
    "cores": lambda v: type(v) is int and 1 <= v <= 128,
    "gpu_cores": lambda v: type(v) is int and 64 <= v <= 10_000,
    "tensor_cores": lambda v: type(v) is int and 1 <= v <= 1000,
    "dla_cores": lambda v: type(v) is int and 0 <= v <= 4,
    "memory_bytes": lambda v: type(v) is int and 2**28 <= v <= 2**37 and v % 2**20 == 0,
    "memory_bytes_variants": lambda v: v == sorted(v) and all(type(x) is int and x % 2**20 == 0 for x in v),
    "fp32_flop_per_cycle_per_core": lambda v: v in (2, 4, 8, 16, 32, 64),
    "fp16_arithmetic": lambda v: type(v) is bool,
    "int8_dot_product": lambda v: type(v) is bool,
    "jetpack": lambda v: type(v) is list and all(type(x) is str for x in v),
    "packages": lambda v: type(v) is list and all(type(x) is str for x in v),
    **{
        name: lambda v: type(v) is int and v >= 0
        for name in (
            "lut",
            "ff",
            "dsp",
            "bram",
            "uram",
            "io",
            "shell_leaves_lut",
            "shell_leaves_ff",
            "shell_leaves_dsp",
            "shell_leaves_bram",
        )
    },
    "power_modes_w": lambda v: v == sorted(v) and all(1 <= x <= 100 for x in v),
}
ENDINGS: dict[str, Callable[[float], bool]] = {
    "_gb_per_s": lambda v: 1 <= v <= 1000,
    "_gflops": lambda v: 100 <= v <= 1e6,
    "_gops": lambda v: 100 <= v <= 1e6,
    "_w": lambda v: 0.1 <= v <= 100,
}


def test_there_are_boards_of_each_family() -> None:
    assert {"raspberry-pi-zero-2-w", "raspberry-pi-4", "raspberry-pi-5", "jetson-orin-nano", "jetson-agx-orin"} <= set(NAMES)
    assert {"pynq-z2", "zcu102", "alveo-u250", "ecp5-85k"} <= set(NAMES)
    assert device.names() == (*NAMES, "this-machine")
    assert len(set(device.names())) == len(device.names())


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_is_named_like_its_file_and_implies_a_known_target(name: str) -> None:
    found = profile(name)
    assert found.name == name
    assert found.target in edgesdk_targets.TARGETS
    assert found.title
    assert found in edgesdk_targets.find(found.target).devices()


@pytest.mark.parametrize("name", NAMES)
def test_every_fact_has_a_source_and_a_sane_value(name: str) -> None:
    facts = profile(name).facts
    needed = {"cores", "clock_ghz", "memory_bytes", "memory_bandwidth_gb_per_s", "fp32_flop_per_cycle_per_core"}
    assert ({"family", "part", "lut", "ff", "dsp", "bram"} if profile(name).target == "fpga" else needed) <= facts.keys()
    for key, fact in facts.items():
        assert len(fact.source.strip()) > 10, key
        check = SANE.get(key) or next((c for ending, c in ENDINGS.items() if key.endswith(ending)), None)
        if check is not None:
            assert check(fact.value), f"{key} = {fact.value!r}"
        else:
            assert isinstance(fact.value, str), f"no unit rule for {key}"
            assert fact.value


@pytest.mark.parametrize("name", NAMES)
def test_facts_of_one_board_agree_with_each_other(name: str) -> None:
    found = profile(name)
    variants = found.get("memory_bytes_variants", list)
    if variants:
        assert found.need("memory_bytes", int) in variants
    measured = found.get("memory_bandwidth_measured_gb_per_s", float)
    if measured is not None:
        assert measured < found.need("memory_bandwidth_gb_per_s", float)
    idle, load = found.get("power_idle_w", float), found.get("power_load_w", float)
    if idle is not None and load is not None:
        assert idle < load
    cores, clock, peak = (found.get(n, float) for n in ("gpu_cores", "gpu_clock_ghz", "gpu_fp32_gflops"))
    if cores is not None:
        assert clock is not None
        assert peak == pytest.approx(cores * 2 * clock, rel=0.02)
        assert found.need("gpu_fp16_gflops", float) > peak


@pytest.mark.parametrize(
    "name",
    [
        "", "nope", "..", "../jetson_support", "../devices/raspberry-pi-4", "/etc/passwd", "a\\b", "raspberry-pi-4.toml",
        "a\0b", "RASPBERRY-PI-4", "x" * 400,
    ],
)  # fmt: skip
def test_an_unknown_name_lists_the_known_ones(name: str) -> None:
    with pytest.raises(DeviceError, match="unknown device") as caught:
        profile(name)
    assert all(known in caught.value.message for known in device.names())


def test_a_phone_is_not_unknown_but_only_estimated() -> None:
    with pytest.raises(DeviceError, match="'phone-snapdragon-835' is only estimated: there is no target for it") as caught:
        profile("phone-snapdragon-835")
    assert caught.value.hint == "edgesdk estimate MODEL --device phone-snapdragon-835 gives an estimate"


def test_a_fact_is_got_in_its_type_or_refused() -> None:
    found = DeviceProfile(
        "d", "t", "T", facts={"i": Fact(3, "s"), "b": Fact(True, "s"), "s": Fact("x", "s"), "f": Fact(1.5, "s")}
    )
    assert (found.get("i", int), found.get("i", float), found.get("f", float), found.get("b", bool)) == (3, 3.0, 1.5, True)
    assert type(found.get("i", float)) is float
    assert found.get("none", int) is None
    for name, kind in (("s", int), ("f", int), ("b", int), ("b", float), ("i", bool), ("i", str)):
        with pytest.raises(DeviceError, match=rf"device d: fact {name} is .*, expected {kind.__name__}"):
            found.get(name, kind)
    with pytest.raises(DeviceError, match="device d: its profile has no none"):
        found.need("none", int)


def test_a_profile_of_ones_own_is_read_anew_each_time(tmp_path: Path) -> None:
    place = tmp_path / "my-board.toml"
    text = 'name = "my-board"\ntarget = "server"\ntitle = "Mine"\n[facts]\ncores = {{ value = {}, source = "I counted" }}\n'
    place.write_text(text.format(2))
    assert device.read(place).need("cores", int) == 2
    place.write_text(text.format(4))
    assert device.read(place).need("cores", int) == 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'name' is missing"), ("name = ", "cannot be read"), ('name = "a"', "'target' is missing"),
        ('name = "a"\ntarget = "t"\ntitle = "x"\ncolour = 1', "unknown name 'colour'"),
        ('name = "a"\ntarget = "t"\ntitle = "x"\n[facts]\ncores = 4', "expected a table"),
        ('name = "a"\ntarget = "t"\ntitle = "x"\n[facts]\ncores = { value = 4 }', "'source' is missing"),
        ('name = "a"\ntarget = "t"\ntitle = "x"\n[facts]\ncores = { value = 4, source = " " }', "fact cores has no source"),
    ],
)  # fmt: skip
def test_a_file_that_says_too_little_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "b.toml").write_text(text)
    with pytest.raises(DeviceError, match=said):
        device.read(tmp_path / "b.toml")
    with pytest.raises(DeviceError, match="cannot be read"):
        device.read(tmp_path / "missing.toml")


def test_this_machine_is_a_server_with_cores_and_memory() -> None:
    found = profile("this-machine")
    assert found.target == "server"
    assert 1 <= found.need("cores", int) <= 4096
    assert found.need("memory_bytes", int) > 2**27
    assert found.need("cpu", str)


def test_what_the_system_tells_of_this_machine_suffices_for_an_estimate_and_the_rest_is_called_an_assumption() -> None:
    found = profile("this-machine")
    if found.get("clock_ghz", float) is None:  # not every system tells it
        with pytest.raises(DeviceError, match="clock_ghz"):
            DeviceFacts.from_profile(found)
        return
    facts = DeviceFacts.from_profile(found)
    assert (facts.name, facts.cores) == ("this-machine", found.need("cores", int))
    assert facts.clusters[0].flop_per_cycle in (8, 16, 32, 64)
    assert found.facts["memory_bandwidth_gb_per_s"].source.startswith("assumption")
    assert all(fact.source for fact in found.facts.values())


XEON = """processor	: 0
vendor_id	: GenuineIntel
cpu family	: 6
model name	: Intel(R) Xeon(R) Gold 6148 CPU @ 2.40GHz
cpu MHz	: 1199.998
flags	: fpu sse2 avx avx2 fma avx512f
bogomips	: 4800.00

processor	: 1
model name	: another
flags	: fpu
"""
ARM = """processor	: 0
BogoMIPS	: 108.00
Features	: fp asimd evtstrm aes asimdhp asimddp
CPU implementer	: 0x41
CPU part	: 0xd0b
"""


@pytest.mark.parametrize(
    ("changes", "clock", "flop"),
    [
        ({}, 2.4, 64), ({"@ 2.40GHz": ""}, 2.4, 64), ({"4800": "5200", " @ 2.40GHz": ""}, 2.6, 64), ({" avx512f": ""}, 2.4, 32),
        ({" avx2 fma avx512f": ""}, 2.4, 16), ({" avx avx2 fma avx512f": ""}, 2.4, 8), ({" fma avx512f": ""}, 2.4, 16),
        ({"GenuineIntel": "AuthenticAMD", "cpu family	: 6": "cpu family	: 25"}, 2.4, 32),
        ({"GenuineIntel": "AuthenticAMD", "cpu family	: 6": "cpu family	: 26"}, 2.4, 64),
    ],
)  # fmt: skip
def test_clock_and_peak_come_from_what_linux_says_of_the_first_core(changes: dict[str, str], clock: float, flop: float) -> None:
    text = XEON
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    found = device.arithmetic(text, "")
    assert (found["clock_ghz"].value, found["fp32_flop_per_cycle_per_core"].value) == (clock, flop)
    assert not found["int8_dot_product"].value and not found["fp16_arithmetic"].value
    assert all("cpuinfo" in fact.source for fact in found.values())


def test_cpufreq_comes_before_what_the_name_says_and_an_arm_core_has_its_own_flags() -> None:
    assert device.arithmetic(XEON, "3700000\n")["clock_ghz"].value == 3.7
    assert device.arithmetic(XEON.replace("avx512f", "avx512f avx512_vnni"), "")["int8_dot_product"].value is True
    found = device.arithmetic(ARM, "2400000")
    assert found["clock_ghz"].value == 2.4 and "cpufreq" in found["clock_ghz"].source
    assert found["fp32_flop_per_cycle_per_core"].value == 16
    assert found["int8_dot_product"].value is found["fp16_arithmetic"].value is True


def test_what_is_not_told_is_left_out() -> None:
    assert device.arithmetic("", "") == {}
    assert "clock_ghz" not in device.arithmetic(ARM, "")  # BogoMIPS of an Arm core is that of its timer
    assert set(device.arithmetic(XEON.replace("flags", "flag"), "0")) == {"clock_ghz"}


def test_every_toml_file_is_read_by_the_standard_library() -> None:
    for path in FILES:
        assert tomllib.loads(path.read_text())["name"] == path.stem
