"""Preflight: what a wheel needs against what the CPU has, told before anything is imported, and a death that stays apart."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from edgesdk import preflight
from edgesdk.preflight import X86_V2, examine, imported, needs
from edgesdk_converters.errors import DeviceError
from edgesdk_targets.board_facts import System

from .conftest import run_apart


def board(folder: Path, *features: str, key: str = "Features") -> System:
    folder.joinpath("proc").mkdir(parents=True)
    folder.joinpath("proc/cpuinfo").write_text(f"processor\t: 0\n{key}\t: {' '.join(features)}\n")
    return System(folder, lambda command: "")


def wheel(folder: Path, name: str, version: str, *tags: str) -> None:
    place = folder / f"{name}-{version}.dist-info"
    place.mkdir(parents=True)
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (place / "WHEEL").write_text("Wheel-Version: 1.0\n" + "".join(f"Tag: cp311-cp311-{tag}\n" for tag in tags))


@pytest.fixture
def arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages that is all that this Python has, on an Arm machine with glibc 2.31."""
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.31"))
    return tmp_path / "site"


def test_a_wheel_that_fits_is_no_problem(arm: Path, tmp_path: Path) -> None:
    wheel(arm, "numpy", "2.4.6", "manylinux_2_27_aarch64", "manylinux_2_28_aarch64")
    wheel(arm, "onnxruntime", "1.32.0", "manylinux_2_27_aarch64")
    found = examine(board(tmp_path, "fp", "asimd", "evtstrm"))
    assert [(one.package, one.version, one.problem) for one in found] == [("numpy", "2.4.6", ""), ("onnxruntime", "1.32.0", "")]


def test_a_cpu_without_neon_is_told_before_numpy_is_imported(arm: Path, tmp_path: Path) -> None:
    wheel(arm, "numpy", "2.4.6", "manylinux_2_28_aarch64")
    (found,) = examine(board(tmp_path, "fp", "crc32"))
    assert found.problem == "it needs asimd, which this CPU lacks" and "numpy" in found.remedy


def test_a_wheel_for_another_machine_or_a_newer_system_is_told(arm: Path, tmp_path: Path) -> None:
    wheel(arm, "numpy", "2.4.6", "linux_armv7l")
    wheel(arm, "onnxruntime", "1.32.0", "manylinux_2_34_aarch64")
    problems = {one.package: one.problem for one in examine(board(tmp_path, "fp", "asimd"))}
    assert problems["numpy"] == "its wheel is for linux_armv7l, this is aarch64"
    assert problems["onnxruntime"] == "its wheel needs glibc 2.34, this is 2.31"


def test_the_oldest_of_several_tags_counts(arm: Path, tmp_path: Path) -> None:
    wheel(arm, "onnxruntime", "1.22.0", "manylinux_2_27_aarch64", "manylinux_2_34_aarch64")
    assert examine(board(tmp_path, "fp", "asimd"))[0].problem == ""


def test_a_package_that_a_distribution_built_has_no_tags_to_judge(arm: Path, tmp_path: Path) -> None:
    wheel(arm, "numpy", "1.24.2")
    assert examine(board(tmp_path, "fp", "asimd"))[0].problem == ""
    (arm / "numpy-1.24.2.dist-info" / "WHEEL").unlink()
    assert examine(System(tmp_path, lambda command: ""))[0].problem == ""


@pytest.mark.parametrize(
    ("version", "v2"), [("1.26.4", False), ("2.3.5", False), ("2.4.0", True), ("2.10.1", True), ("3.0", True)]
)
def test_numpy_for_x86_needs_v2_from_2_4_on(version: str, v2: bool) -> None:
    assert set(X86_V2).issubset(needs("numpy", version, "x86_64")) is v2
    assert needs("numpy", version, "aarch64") == ("fp", "asimd") and needs("onnxruntime", version, "x86_64") == ("sse", "sse2")
    assert needs("numpy", version, "riscv64") == ()


def test_this_machine_has_what_its_numpy_says_it_was_built_for() -> None:
    """The table against NumPy's own record, which cannot be read without importing it."""
    import numpy as np
    from numpy._core._multiarray_umath import __cpu_baseline__  # type: ignore[attr-defined]

    if platform.machine() == "x86_64":
        assert ("X86_V2" in __cpu_baseline__) == set(X86_V2).issubset(needs("numpy", np.__version__, "x86_64"))
    assert all(not one.problem for one in examine())


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "a_runtime.py"


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "ends with SIGILL: it uses instructions that this CPU lacks"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ends with SIGSEGV"),
        ("raise ImportError('libcudart.so.12: cannot open')", "ImportError: libcudart.so.12"),
        ("import os; os._exit(3)", "ends with 3"),
        ("import os; assert os.environ['ORT_DISABLE_TELEMETRY'] == '1' and 'EDGESDK_TOKEN' not in os.environ", ""),
    ],
)
def test_an_import_that_dies_takes_nothing_with_it(module: Path, monkeypatch: pytest.MonkeyPatch, code: str, told: str) -> None:
    monkeypatch.setenv("EDGESDK_TOKEN", "secret")
    module.write_text(code)
    found = imported("a_runtime")
    assert told in found and bool(told) == bool(found)
    assert imported("a_module_that_is_not_there") == ""


def test_an_import_without_end_is_ended(module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "SECONDS", 0.5)
    module.write_text("import time; time.sleep(60)")
    assert "takes more than" in imported("a_runtime")


def test_check_names_the_package_the_reason_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    preflight.check()
    monkeypatch.setattr(preflight, "imported", lambda name: "importing it ends with SIGILL" if name == "onnxruntime" else "")
    with pytest.raises(DeviceError, match=r"onnxruntime [\d.]+ does not run here: importing it ends with SIGILL") as caught:
        preflight.check()
    assert "for this CPU" in caught.value.hint
    preflight.check(("numpy",))


def test_nothing_is_imported_that_could_need_another_cpu() -> None:
    code = (
        "import sys, edgesdk.cli, edgesdk.preflight as p; p.examine();"
        "print([name for name in ('numpy', 'onnxruntime', 'uvicorn') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("verb", ["doctor", "agent --port 0 --check"])
def test_a_numpy_that_dies_is_one_line_and_no_crash(tmp_path: Path, verb: str) -> None:
    package = tmp_path / "broken/numpy"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n")
    result = run_apart(verb, tmp_path, environment={"PYTHONPATH": str(tmp_path / "broken"), "XDG_CACHE_HOME": str(tmp_path)})
    assert result.code == 1 and result.error["kind"] == "DeviceError"
    assert "numpy" in result.error["message"] and "SIGILL" in result.error["message"]
    assert os.listdir(tmp_path) == ["broken"]
