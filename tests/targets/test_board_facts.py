"""Facts of boards: what each kind tells is found, what it does not tell is left out, on this machine as well."""

from __future__ import annotations

import json
import platform
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from edgesdk_targets import board_facts, device
from edgesdk_targets.board_facts import Moment, System, facts, moment, slowed_between

from .boards import BOARDS, cpuinfo, orin_nano, pi_4, pi_5, policy


def test_a_pi_4_is_told_by_its_files_and_its_firmware(tmp_path: Path) -> None:
    found = facts(pi_4(tmp_path).system)
    assert found["board"] == "Raspberry Pi 4 Model B Rev 1.4"
    assert found["memory_bytes"] == 3884360 * 1024 and found["swap_bytes"] == 102396 * 1024
    assert found["cpu_features"] == ["asimd", "cpuid", "crc32", "evtstrm", "fp"]
    assert found["clusters"] == [
        {
            "cpus": [0, 1, 2, 3],
            "part": "Cortex-A72",
            "min_mhz": 600.0,
            "max_mhz": 1800.0,
            "allowed_mhz": 1800.0,
            "governor": "ondemand",
        }
    ]
    assert not {"l4t", "jetpack", "tensorrt", "cuda", "nvpmodel", "virtual", "emulator"} & set(found)
    now = moment(pi_4(tmp_path).system)
    assert now.clocks_mhz == {"cpu 0,1,2,3": 600.0, "arm (firmware)": pytest.approx(600.117184)}
    assert now.temperatures_c == {"cpu-thermal": 48.312, "firmware": 48.3} and now.hottest_c == 48.312
    assert now.memory_available_bytes == 3411652 * 1024 and now.swap_used_bytes == 10000 * 1024 and now.load == 0.52
    assert now.slowed == ()


def test_an_orin_nano_tells_its_releases_power_mode_and_gpu(tmp_path: Path) -> None:
    board = orin_nano(tmp_path)
    found = facts(board.system)
    assert (found["l4t"], found["jetpack"], found["tensorrt"], found["cuda"]) == ("36.4.3", "6.2+b77", "10.3.0", "12.6.11")
    assert found["nvpmodel"] == "15W (0)"
    assert [one["cpus"] for one in found["clusters"]] == [[0, 1, 2, 3], [4, 5]]
    assert {one["part"] for one in found["clusters"]} == {"Cortex-A78AE"}
    now = moment(board.system)
    assert now.clocks_mhz == {"cpu 0,1,2,3": 1510.4, "cpu 4,5": 729.6, "gpu": 624.75}
    assert now.temperatures_c == {"cpu-thermal": 47.687, "gpu-thermal": 49.5}  # that of cv0 cannot be read while it is off
    assert now.events == {"over-current event oc1": 0, "over-current event oc3": 2}
    assert not any(command.startswith("vcgencmd") for command in board.asked)


def test_a_pi_without_jetpack_is_not_asked_for_nvidias_tools(tmp_path: Path) -> None:
    board = pi_5(tmp_path)
    facts(board.system)
    assert board.asked == []
    assert "asimddp" in facts(board.system)["cpu_features"]


@pytest.mark.parametrize("name", BOARDS)
def test_a_board_is_the_device_of_its_profile_and_no_other(tmp_path: Path, name: str) -> None:
    told = board_facts.board(BOARDS[name](tmp_path).system)
    assert [other for other in device.names() if board_facts.is_board(device.profile(other).title, told)] == [name]


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ("Raspberry Pi 3 Model B Plus Rev 1.3", "raspberry-pi-3b-plus"),
        ("Raspberry Pi Zero 2 W Rev 1.0", "raspberry-pi-zero-2-w"),
        ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", "jetson-orin-nx"),
        ("NVIDIA Jetson AGX Orin Developer Kit", "jetson-agx-orin"),
        ("Raspberry Pi 400 Rev 1.0", ""),
        ("Raspberry Pi Compute Module 4 Rev 1.0", ""),
        ("", ""),
    ],
)
def test_boards_are_told_apart_by_what_they_call_themselves(told: str, name: str) -> None:
    found = [other for other in device.names() if board_facts.is_board(device.profile(other).title, told)]
    assert found == ([name] if name else [])


@pytest.mark.parametrize(
    ("before", "after", "slowed"),
    [
        ("0x0", "0x0", ()),
        ("0x50000", "0x50000", ()),
        ("0x0", "0x20000", ("Arm clock capping has occurred",)),
        ("0x50000", "0xd0000", ("soft temperature limit has occurred",)),
        ("0x0", "0x50005", ("under-voltage", "throttled", "under-voltage has occurred", "throttling has occurred")),
        ("0x80008", "0x80000", ("soft temperature limit",)),
    ],
)
def test_throttling_of_a_pi_counts_where_it_was_during_the_run(
    tmp_path: Path, before: str, after: str, slowed: tuple[str, ...]
) -> None:
    board = pi_4(tmp_path)
    states = []
    for bits in (before, after):
        board.commands["vcgencmd get_throttled"] = f"throttled={bits}\n"
        states.append(moment(board.system))
    assert slowed_between(*states) == slowed


def test_throttling_of_a_jetson_is_told_by_cooling_devices_and_events_but_not_by_its_fan(tmp_path: Path) -> None:
    board = orin_nano(tmp_path)
    before = moment(board.system)
    assert before.slowed == () and slowed_between(before, before) == ()
    board.write("sys/class/thermal/cooling_device1/cur_state", 3)
    board.write("sys/class/hwmon/hwmon2/oc3_event_cnt", 5)
    after = moment(board.system)
    assert slowed_between(before, after) == ("cpufreq-cpu0 cools at level 3", "over-current event oc3")


def test_clusters_of_several_kinds_come_fastest_first(tmp_path: Path) -> None:
    board = pi_4(tmp_path)
    for path, content in (
        policy(0, (0, 1), 400000, 1800000, 400000, "a") | policy(2, (2, 3), 400000, 1600000, 400000, "a")
    ).items():
        board.write(path, content)
    for cpu, capacity in ((0, 446), (2, 1024)):
        board.write(f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity", capacity)
    assert [one["cpus"] for one in board_facts.clusters(board.system)] == [[2, 3], [0, 1]]


def test_features_are_those_that_every_core_has(tmp_path: Path) -> None:
    board = pi_4(tmp_path)
    board.write("proc/cpuinfo", cpuinfo("0xd05", "fp asimd crc32", 2) + cpuinfo("0xd0b", "fp asimd asimddp", 2))
    assert board_facts.features(board.system) == {"fp", "asimd"}


def test_an_empty_system_tells_nothing_and_nothing_is_invented(tmp_path: Path) -> None:
    empty = System(tmp_path, lambda command: "")
    assert moment(empty) == Moment() and moment(empty).to_json() == {}
    assert set(facts(empty)) <= {"kernel", "libc", "python", "versions"}
    assert slowed_between(moment(empty), moment(empty)) == ()


def test_files_that_hold_nonsense_are_no_facts(tmp_path: Path) -> None:
    board = pi_5(tmp_path)
    for path in ("sys/class/thermal/thermal_zone0/temp", "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq"):
        board.write(path, "<unsupported>")
    board.commands |= {
        "vcgencmd measure_temp": "VCHI initialization failed\n",
        "vcgencmd measure_clock arm": "",
        "vcgencmd get_throttled": "?",
    }
    found = moment(board.system)
    assert found.temperatures_c == {} and found.clocks_mhz == {} and found.events == {} and found.hottest_c is None


def test_this_machine_is_described_truthfully() -> None:
    found, now = facts(), moment()
    json.dumps([found, now.to_json()])
    assert all(value not in (None, "", [], {}) for value in found.values())
    assert found["python"] == platform.python_version() and found["versions"]["numpy"]
    for key, path in (("board", "proc/device-tree/model"), ("l4t", "etc/nv_tegra_release")):
        assert Path("/", path).exists() or key not in found or key == "board"
    assert bool(now.temperatures_c) == any(Path("/sys/class/thermal").glob("thermal_zone*/temp"))
    assert bool(now.clocks_mhz) == any(Path("/sys/devices/system/cpu/cpufreq").glob("policy*/scaling_cur_freq"))
    assert now.memory_available_bytes is not None and 0 < now.memory_available_bytes <= found["memory_bytes"]
    assert "emulator" not in found and board_facts.provenance() == "measured"


def elf(machine: int, order: str = "<") -> bytes:
    return b"\x7fELF\x02" + (b"\x01" if order == "<" else b"\x02") + b"\x01" + bytes(9) + struct.pack(order + "HH", 2, machine)


@pytest.mark.parametrize(
    ("machine", "claimed", "found"),
    [
        (62, "aarch64", "qemu-aarch64"),
        (183, "aarch64", ""),
        (40, "aarch64", ""),
        (3, "x86_64", ""),
        (183, "x86_64", "qemu-aarch64"),
        (62, "mips", ""),
    ],
)
def test_an_emulator_is_found_by_the_program_that_the_kernel_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: int, claimed: str, found: str
) -> None:
    (tmp_path / "qemu-aarch64").write_bytes(elf(machine))
    (tmp_path / "proc/thread-self").mkdir(parents=True)
    (tmp_path / "proc/thread-self/exe").symlink_to(tmp_path / "qemu-aarch64")
    monkeypatch.setattr(platform, "machine", lambda: claimed)
    monkeypatch.delenv(board_facts.EMULATOR, raising=False)
    system = System(tmp_path, lambda command: "")
    assert board_facts.emulator(system) == found
    assert board_facts.provenance(system) == ("emulated" if found else "measured")
    monkeypatch.setenv(board_facts.EMULATOR, "a simulator")
    assert board_facts.emulator(system) == "a simulator"


def test_nothing_is_imported_that_could_need_another_cpu() -> None:
    code = "import sys, edgesdk_targets.board_facts as b; b.facts(); b.moment(); print('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
