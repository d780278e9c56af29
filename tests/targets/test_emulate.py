"""The emulator: exact counts of a program made by hand, real bundles on emulated cores, and what stands in the way."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from edgesdk_converters.errors import ContractBroken, DeviceError, EdgeError, ToolError
from edgesdk_targets import bundle as bundles
from edgesdk_targets import device, emulate, sysroot
from edgesdk_targets.bundle import Bundle, Provider, Runtime

NOP = 0xD503201F
INSTRUCTIONS = {
    "integer": (0x8B020020, 0x9B027C20, 0xD2800020, 0x1AC20820),  # add, mul, mov (immediate), udiv
    "fp": (0x1E222820, 0x1E620820, 0x1F420C20, 0x1E380020),  # fadd s, fmul d, fmadd d, fcvtzs w, s
    "neon": (
        0x4E22D420,
        0x4E22CC20,
        0x0E22C020,
        0x4F821020,
        0x5E22D420 & 0 | 0x5EE28420,
    ),  # fadd, fmla, smull, fmla (element), add d
    "dot_product": (0x4E829420, 0x6E829420, 0x4F82E020, 0x6F82E820, 0x0E829420),  # sdot, udot, sdot and udot (element), sdot 8b
    "memory": (0xF94003E0, 0xF90003E0, 0x3DC003E0, 0xA9407BE0),  # ldr, str, ldr q, ldp
    "branch": (0x14000001, 0x54000020, 0xB4000020, NOP),  # b, b.eq, cbz (each to the next), a hint
}
"""Encodings, from the A64 instruction set reference."""


def arm_program(words: list[int]) -> bytes:
    """A static AArch64 executable that runs the words between the markers, and ends."""

    def move(register: int, value: int) -> list[int]:
        low, high = value & 0xFFFF, value >> 16
        return [0xD2800000 | low << 5 | register, 0xF2A00000 | high << 5 | register]

    call = 0xD4000001

    def marker(number: int) -> list[int]:
        return [*move(8, 155), *move(0, number), call]

    body = [*marker(emulate.OPEN), *words, *marker(emulate.CLOSE), *move(8, 93), *move(0, 0), call]
    code = b"".join(struct.pack("<I", word) for word in body)
    base, head = 0x400000, 64 + 56
    elf = b"\x7fELF\x02\x01\x01" + bytes(9)
    elf += struct.pack("<HHIQQQIHHHHHH", 2, 183, 1, base + head, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    elf += struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, head + len(code), head + len(code), 0x1000)
    return elf + code


def counted_by_plugin(words: list[int], folder: Path) -> dict[str, int]:
    program, log = folder / "program", folder / "log"
    program.write_bytes(arm_program(words))
    program.chmod(0o755)
    plugin = emulate._plugin(emulate.release())
    subprocess.run(
        [emulate.QEMU, "-cpu", "max", "-plugin", str(plugin), "-d", "plugin", "-D", str(log), str(program)], check=True
    )  # fmt: skip
    (line,) = log.read_text().splitlines()
    total, *classes = map(int, line.removeprefix(emulate.WINDOW).split())
    assert total == sum(classes)
    return dict(zip(emulate.CLASSES, classes, strict=True))


MARKER_COST = {"integer": 4, "fp": 0, "neon": 0, "dot_product": 0, "memory": 0, "branch": 1}
"""The closing marker itself: four moves and the system call."""


@pytest.mark.parametrize("kind", INSTRUCTIONS)
def test_every_instruction_is_counted_in_its_class(kind: str, tmp_path: Path) -> None:
    for word in INSTRUCTIONS[kind]:
        got = counted_by_plugin([word] * 7, tmp_path)
        assert got == MARKER_COST | {kind: MARKER_COST[kind] + 7}, f"{word:08x}"


def test_a_loop_is_counted_as_often_as_it_runs(tmp_path: Path) -> None:
    loop = [0x4E829420, 0xF1000421, 0x54FFFFC1]  # sdot; subs x1, x1, #1; b.ne back to sdot
    got = counted_by_plugin([0xD2807D01, *loop], tmp_path)  # mov x1, #1000
    assert got == {"integer": 4 + 1 + 1000, "fp": 0, "neon": 0, "dot_product": 1000, "memory": 0, "branch": 1 + 1000}


def test_the_empty_model_is_one_identity() -> None:
    model = onnx.load_from_string(emulate._IDENTITY)
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["Identity"]
    session = ort.InferenceSession(emulate._IDENTITY, providers=["CPUExecutionProvider"])
    assert session.run(["y"], {"x": np.full(1, 3, np.float32)})[0].tolist() == [3.0]


# --- bundles ----------------------------------------------------------------------------------------


def dense(model_of: Callable[..., Any], wide: int) -> Any:
    weights = np.random.default_rng(1).standard_normal((wide, 64)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="dense")]
    shapes = {"x": (TensorProto.FLOAT, [16, wide])}, {"y": (TensorProto.FLOAT, [16, 64])}
    return model_of(nodes, *shapes, {"w": weights}, name=f"dense{wide}")


def test_golden_vectors_hold_on_the_core_and_counts_repeat(small_bundle: Bundle) -> None:
    profile = device.profile("raspberry-pi-4")
    first, again = (emulate.count(small_bundle, profile) for _ in range(2))
    assert first.comparison is not None and first.comparison.holds and first.comparison.cases == 2
    assert first.comparison.artifact_relative_error < 1e-5
    assert abs(first.total / again.total - 1) < 0.01
    assert first.total == sum(first.by_class.values()) and first.by_class["dot_product"] == 0
    assert min(first.runs) > first.overhead > 1000 and "Cortex-A72" in first.where and "one thread" in first.method


def test_vector_work_grows_with_the_macs(model_of: Callable[..., Any], bundle_of: Callable[..., Bundle], tmp_path: Path) -> None:
    profile = device.profile("raspberry-pi-3b-plus")
    small, large = (
        emulate.count(bundle_of(dense(model_of, wide), tmp_path / f"{wide}.edge"), profile).by_class["neon"]
        for wide in (256, 512)
    )
    fewest = 16 * 256 * 64 / 4  # four multiply-adds an instruction
    assert fewest <= small < 1.5 * fewest and large / small == pytest.approx(2, rel=0.05)


def test_an_inference_on_given_inputs(small_bundle: Bundle) -> None:
    feed = {"x": np.zeros((1, 3, 8, 8), np.float32)}
    assert emulate.count(small_bundle, device.profile("raspberry-pi-5"), feed=feed).total > 1000
    with pytest.raises(EdgeError, match="failed on these inputs"):
        emulate.count(small_bundle, device.profile("raspberry-pi-5"), feed={"x": np.zeros((1, 3, 9, 9), np.float32)})


def retold(bundle: Bundle, path: Path, **changes: Any) -> Bundle:
    """The bundle with its manifest changed, and its first golden output moved by a tenth where `moved` says so."""
    files = {name: bundle.read(name) for name in bundle.manifest.files}
    if changes.pop("moved", False):
        assert bundle.manifest.golden is not None
        name = next(iter(bundle.manifest.golden.outputs.values()))
        whole = bytearray(files[name])
        values = np.frombuffer(bytes(whole[-20:]), np.float32) + np.float32(0.1)
        whole[-20:] = values.tobytes()
        files[name] = bytes(whole)
    return bundles.write(path, replace(bundle.manifest, files={}, **changes), files)


def test_another_result_on_the_core_is_a_broken_contract(small_bundle: Bundle, tmp_path: Path) -> None:
    bundle = retold(small_bundle, tmp_path / "other.edge", target="raspberry-pi", device="raspberry-pi-4", moved=True)
    with pytest.raises(ContractBroken, match=r"emulated Cortex-A72.*relative from the golden ones"):
        emulate.emulate(bundle.path)


def test_the_report_has_counts_and_no_time(small_bundle: Bundle, tmp_path: Path) -> None:
    bundle = retold(small_bundle, tmp_path / "pi.edge", target="raspberry-pi", device="raspberry-pi-zero-2-w")
    said: list[str] = []
    report = emulate.emulate(bundle.path, progress=said.append)
    assert {row.provenance for row in report.rows} == {"emulated", "unavailable"}
    assert not any(row.name.endswith("_ms") and row.value is not None for row in report.rows)
    total = report.find("instructions")
    parts = [row for row in report.rows if row.name == "instructions" and row.segment != "whole"]
    assert total is not None and total.value == sum(row.value or 0 for row in parts)
    assert [row.segment for row in parts] == list(emulate.CLASSES) and "Cortex-A53" in total.where
    assert "counting instructions" in said


def test_what_cannot_be_emulated_is_said(small_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"jetson-orin-nano has Cortex-A78AE; emulated are: Cortex-A53, Cortex-A72, Cortex-A76"):
        emulate.core(device.profile("jetson-orin-nano"))
    runtime = Runtime("onnxruntime", "model.onnx", providers=(Provider("TensorrtExecutionProvider"),))
    bundle = retold(small_bundle, tmp_path / "gpu.edge", runtime=runtime)
    with pytest.raises(DeviceError, match="accelerator"):
        emulate.count(bundle, device.profile("raspberry-pi-4"))
    with pytest.raises(EdgeError, match="no golden inputs"):
        emulate.count(retold(small_bundle, tmp_path / "bare.edge", golden=None), device.profile("raspberry-pi-4"))


@pytest.mark.parametrize(("kept", "missing", "package"), [(["cc"], "qemu-aarch64", "qemu-user"), (["qemu-aarch64"], "cc", "gcc")])
def test_a_missing_tool_is_named_with_its_package(
    small_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: list[str], missing: str, package: str
) -> None:
    for tool in kept:
        place = shutil.which(tool)
        assert place is not None
        (tmp_path / tool).symlink_to(place)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not emulate.is_ready(device.profile("raspberry-pi-4"))
    with pytest.raises(ToolError, match=f"{missing}: is missing") as caught:
        emulate.count(small_bundle, device.profile("raspberry-pi-4"))
    assert caught.value.hint == f"sudo apt-get install {package}"


def test_a_qemu_without_plugins_is_said(small_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretender = tmp_path / "qemu-aarch64"
    pretender.write_text("#!/bin/sh\necho 'qemu-aarch64 version 10.0.13 (Debian)'; echo '-d item[,...]  enable logging'\n")
    pretender.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ToolError, match=r"qemu-aarch64: version 10.0 takes no plugins") as caught:
        emulate.count(small_bundle, device.profile("raspberry-pi-4"))
    assert "--enable-plugins" in caught.value.hint and not emulate.is_ready(device.profile("raspberry-pi-4"))


@pytest.mark.parametrize(
    ("program", "told"),
    [
        (b"\x7fELF of another machine", "cannot be run: Exec format error"),
        (b"#!/nowhere/sh\n", "cannot be run: No such file or directory"),
        (b"#!/bin/sh\necho hello\n", "does not tell its version: hello"),
        (b"#!/bin/sh\nprintf '\\377 version 7.2'\n", "takes no plugins"),
    ],
)
def test_what_is_no_qemu_is_said_and_is_not_ready(
    program: bytes, told: str, small_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended(program, tmp_path, monkeypatch)
    (tmp_path / "bin/cc").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    profile = device.profile("raspberry-pi-4")
    assert told in emulate.obstacle(profile) and not emulate.is_ready(profile)
    with pytest.raises(ToolError, match=f"qemu-aarch64: .*{told}"):
        emulate.count(small_bundle, profile)


@pytest.mark.parametrize(
    ("version", "does", "told"),
    [
        ("9.2", "echo 'plugin requires API version 4, this is 5' >&2; exit 1", "ended with 1: plugin requires API version 4"),
        ("5.2", "echo \"unable to find CPU model '$2'\" >&2; exit 1", "unable to find CPU model 'cortex-a72'"),
        ("8.2", """printf '{"progress": "loading"}\\n{"coun'; kill -9 $$""", "ended with SIGKILL"),
        ("8.2", """echo '{"counted": 3, "facts": "", "comparison": null}'""", "0 windows were counted, 6 were run"),
    ],
)
def test_another_qemu_is_one_error_that_says_which_one_was_tried(
    version: str, does: str, told: str, small_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = f"case $1 in --version) echo version {version};; --help) echo -plugin;; *) {does};; esac"
    pretended(f"#!/bin/sh\n{answers}\n".encode(), tmp_path, monkeypatch)
    monkeypatch.setattr(emulate, "_fixed_addresses", list)
    with pytest.raises(ToolError) as caught:
        emulate.count(small_bundle, device.profile("raspberry-pi-4"))
    assert told in caught.value.message and caught.value.hint == f"tried was QEMU 7.2; this is {version}"


def pretended(qemu: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program by the name of QEMU, and a cache of its own that has this machine's arm64 system."""
    place, whole = sysroot.place(), sysroot.made(silent)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    sysroot.place().parent.mkdir(parents=True)
    sysroot.place().symlink_to(whole)
    assert sysroot.place().name == place.name
    programs = folder / "bin"
    programs.mkdir()
    (programs / emulate.QEMU).write_bytes(qemu)
    (programs / emulate.QEMU).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")


def test_a_compiler_that_fails_leaves_nothing_and_the_next_one_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = os.environ["PATH"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    broken = tmp_path / "cc"
    for does, told in (("echo 'cc1: no such file' >&2; exit 1", ": cc1: no such file"), ("exit 0", "")):
        broken.write_text(f"#!/bin/sh\n{does}\n")
        broken.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{path}")
        with pytest.raises(ToolError, match=f"cc: cannot compile the counting plugin{told}$") as caught:
            emulate._plugin("7.2")
        assert "gcc" in caught.value.hint and list((tmp_path / "cache/edgesdk/emulator").iterdir()) == []
    monkeypatch.setenv("PATH", path)
    assert emulate._plugin("7.2").is_file()


def test_a_damaged_plugin_is_compiled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    built = emulate._plugin("7.2")
    whole = built.read_bytes()
    built.write_bytes(whole[:1000])
    again = emulate._plugin("7.2")
    assert again.read_bytes() == whole and list(built.parent.iterdir()) == [again]
    assert counted_by_plugin([NOP], tmp_path)["branch"] == MARKER_COST["branch"] + 1


def test_damaged_bytecode_is_an_error_once(small_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment, bytecode = emulate._environment(sysroot.made(silent)), tmp_path / "bytecode"
    monkeypatch.setattr(emulate, "_environment", lambda system: environment | {"PYTHONPYCACHEPREFIX": str(bytecode)})
    shutil.copytree(environment["PYTHONPYCACHEPREFIX"], bytecode)
    (compiled,) = bytecode.rglob("argparse.*.pyc")
    compiled.write_bytes(compiled.read_bytes()[:100])
    with pytest.raises(ToolError, match="marshal data too short"):
        emulate.count(small_bundle, device.profile("raspberry-pi-4"))
    assert not bytecode.exists(), "what the next run compiles is whole"


def test_a_full_disk_is_one_error(small_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sysroot.made(silent)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(ToolError, match=r"the emulator: cannot write: .*nowhere") as caught:
        emulate.count(small_bundle, device.profile("raspberry-pi-4"))
    assert "TMPDIR" in caught.value.hint


def test_what_stands_in_the_way_of_a_count_is_told_without_setting_it_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = device.profile("raspberry-pi-4")
    assert "emulated are: Cortex-A53" in emulate.obstacle(device.profile("jetson-orin-nano"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert emulate.obstacle(profile) == "the emulator's arm64 system is not made yet (--on emulator makes it)"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert emulate.obstacle(profile) == "the emulator needs qemu-aarch64 (sudo apt-get install qemu-user)"
    assert list(tmp_path.iterdir()) == []


def test_a_guest_that_crashes_is_one_error(small_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulate, "_environment", lambda system: {"PATH": os.defpath, "PYTHONHOME": "/nowhere"})
    with pytest.raises(ToolError, match=r"qemu-aarch64: the emulated program ended with 1: .*no Python frame"):
        emulate.count(small_bundle, device.profile("raspberry-pi-4"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_control_c_and_sigterm_stop_the_emulator_too(small_bundle: Bundle, tmp_path: Path, number: signal.Signals) -> None:
    bundle = retold(small_bundle, tmp_path / "pi.edge", target="raspberry-pi", device="raspberry-pi-4")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-m", "edgesdk.cli", "measure", str(bundle.path), "--on", "emulator"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(scratch)}
    ) as started:  # fmt: skip
        assert started.stderr is not None
        for line in started.stderr:
            if "loading the bundle on the emulated core" in line:
                break
        started.send_signal(number)
        rest = started.stderr.read()
        assert started.wait() == 128 + number and "Traceback" not in rest and "stopped" in rest
    assert list(scratch.iterdir()) == []
    time.sleep(0.2)
    assert str(bundle.path) not in subprocess.run(["ps", "ax", "-o", "args"], capture_output=True, text=True, check=True).stdout


# --- the sysroot ------------------------------------------------------------------------------------


@pytest.fixture
def light(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A cache of its own, and what is downloaded replaced by two files; the list tells each making."""
    made: list[str] = []

    def unpack(scratch: Path, root: Path, progress: Callable[[str], None]) -> None:
        made.append("packages")
        root.joinpath("usr/bin").mkdir(parents=True)
        root.joinpath("usr/bin/python3.11").write_text("interpreter")
        root.joinpath("usr/bin/python3").symlink_to("python3.11")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sysroot, "_unpack_packages", unpack)
    monkeypatch.setattr(sysroot, "_install_wheels", lambda root, progress: made.append("wheels"))
    return made


def silent(message: str) -> None:
    del message


def test_a_sysroot_is_made_once(light: list[str]) -> None:
    assert not sysroot.is_made()
    folder = sysroot.made(silent)
    assert sysroot.made(silent) == folder and light == ["packages", "wheels"] and sysroot.is_made()
    assert sysroot.python(folder).name == "python3.11"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert f"onnxruntime-{ort.__version__}" in folder.name


@pytest.mark.parametrize("harm", ["changed", "removed", "added", "relinked", "sums"])
def test_a_damaged_sysroot_is_made_anew(light: list[str], harm: str) -> None:
    folder = sysroot.made(silent)
    binary, link = folder / "usr/bin/python3.11", folder / "usr/bin/python3"
    if harm == "changed":
        binary.write_text("interpretes")
    elif harm == "removed":
        binary.unlink()
    elif harm == "added":
        folder.joinpath("usr/more").touch()
    elif harm == "sums":
        folder.joinpath(sysroot.SUMS).write_bytes(b"\xff\xfe no text")
    else:
        link.unlink()
        link.symlink_to("/etc/passwd")
    said: list[str] = []
    assert sysroot.made(said.append) == folder
    assert light == ["packages", "wheels"] * 2 and any("damaged" in line for line in said)
    assert sysroot.sums(folder) == (folder / sysroot.SUMS).read_text()


def test_a_stopped_making_leaves_nothing(light: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(root: Path, progress: Callable[[str], None]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sysroot, "_install_wheels", stop)
    with pytest.raises(KeyboardInterrupt):
        sysroot.made(silent)
    assert not sysroot.is_made() and list(sysroot.place().parent.iterdir()) == []


def test_what_a_killed_making_left_is_removed_by_the_next(light: list[str]) -> None:
    home = sysroot.place().parent
    home.joinpath("making-dead/root/usr").mkdir(parents=True)
    home.joinpath("arm64-numpy-1-onnxruntime-1").mkdir()
    folder = sysroot.made(silent)
    assert {path.name for path in home.iterdir()} == {folder.name, "arm64-numpy-1-onnxruntime-1"}


def test_two_that_need_it_at_once_make_one(light: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    inside, waits, told = threading.Event(), threading.Event(), list[str]()
    unpack = sysroot._unpack_packages

    def slow(scratch: Path, root: Path, progress: Callable[[str], None]) -> None:
        inside.set()
        assert waits.wait(30), "the second did not wait"
        unpack(scratch, root, progress)

    def second(message: str) -> None:
        told.append(message)
        if "another process" in message:
            waits.set()

    monkeypatch.setattr(sysroot, "_unpack_packages", slow)
    first = threading.Thread(target=sysroot.made, args=(silent,))
    first.start()
    assert inside.wait(30)
    assert sysroot.made(second) == sysroot.place()
    first.join()
    assert light == ["packages", "wheels"] and "waiting for another process that makes the arm64 system" in told


def test_a_cache_that_cannot_be_written_is_one_error(light: list[str], tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(ToolError, match=r"the arm64 system: cannot be kept: .*/cache/.*: Not a directory") as caught:
        sysroot.made(silent)
    assert "XDG_CACHE_HOME" in caught.value.hint and light == []


def test_without_a_network_both_downloads_say_so_and_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = "http://127.0.0.1:9"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, value in {"PIP_INDEX_URL": closed, "PIP_RETRIES": "0", "PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": ""}.items():
        monkeypatch.setenv(name, value)
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, closed)
    with pytest.raises(ToolError, match="apt-get: ended with 100") as caught:
        sysroot.made(silent)
    assert "mirrors reachable" in caught.value.hint

    def unpack(scratch: Path, root: Path, progress: Callable[[str], None]) -> None:
        root.joinpath("usr/bin").mkdir(parents=True)
        root.joinpath("usr/bin/python3.11").touch()

    monkeypatch.setattr(sysroot, "_unpack_packages", unpack)
    with pytest.raises(ToolError, match=r"pip: ended with 1: .*numpy==") as caught:
        sysroot.made(silent)
    assert "index reachable" in caught.value.hint
    assert list((tmp_path / "cache/edgesdk/sysroots").iterdir()) == []


def test_without_apt_the_error_says_what_is_needed(light: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolError, match="apt-get: is missing: the arm64 system is made of Debian packages"):
        sysroot.made(silent)


def test_a_failing_download_ends_with_its_last_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sysroot, "PACKAGES", ("no-such-package-anywhere",))
    with pytest.raises(ToolError, match=r"apt-get: ended with 100: .*no-such-package-anywhere") as caught:
        sysroot.made(silent)
    assert "mirrors" in caught.value.hint and list((tmp_path / "cache/edgesdk/sysroots").iterdir()) == []
