"""An hls4ml project compiled with g++ and run: the C++ that the vendor's tool would synthesise, on integer codes.

The compiler's fixed-point headers come with hls4ml. Each library is built once and kept in the user's cache. It runs in a process
of its own, as generated code ends its process where something is wrong.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from edgesdk_converters.errors import DeviceError, MissingTool, ToolError, Unsupported
from edgesdk_converters.integer_program import Integers

from .. import engine_cache, runner
from . import tool_process
from .hls4ml_backends import BACKENDS
from .hls4ml_flow import Project

COMPILER = "g++"
FLAGS = ("-O1", "-fPIC", "-std=c++17", "-w", '-DWEIGHTS_DIR="weights"')
"""Integers are the same at any level of optimisation; this one compiles fastest."""
TIMEOUT_S = 3600.0
_RUN = """
import ctypes, sys
import numpy as np
library, function, given, taken, *sizes = sys.argv[1:]
inputs = list(np.load(given).values())
sizes = [int(size) for size in sizes]
outputs = [np.zeros((len(inputs[0]), size)) for size in sizes]
call = getattr(ctypes.CDLL(library), function)
call.restype = None
pointer = ctypes.POINTER(ctypes.c_double)
for number in range(len(inputs[0])):
    call(*(array[number].ctypes.data_as(pointer) for array in (*inputs, *outputs)))
np.savez(taken, *outputs)
"""


def emulate(
    project: Project, codes: Mapping[str, Integers], progress: Callable[[str], None] = runner.silent, timeout_s: float = TIMEOUT_S
) -> dict[str, Integers]:
    """Output codes of input codes, by the tensors' names, int64 with a batch axis in front; what the host does included.

    Raises ToolError where g++ is missing, fails or takes longer than the limit, Unsupported for back ends whose headers only the
    vendor's tool has.
    """
    library = compiled(project, progress, timeout_s)
    device = _run(project, library, codes, progress, timeout_s)
    return device if project.host is None else project.host.run(device)


def compiled(project: Project, progress: Callable[[str], None] = runner.silent, timeout_s: float = TIMEOUT_S) -> Path:
    """The project's library in the user's cache, built where it is not there yet."""
    backend = BACKENDS[project.options.backend]
    if not backend.includes:
        told = f"the headers of its C++ come only with {backend.tool_name}"
        target = f"fpga (hls4ml, {backend.name})"
        raise Unsupported(target, project.options.name, "emulation with g++", told, "emulate with back end vitis")
    path = shutil.which(COMPILER)
    if path is None:
        raise MissingTool(COMPILER, "is missing: the emulation of an hls4ml project is C++", hint="sudo apt-get install g++")
    version = subprocess.run([path, "-dumpfullversion", "-dumpmachine"], capture_output=True, text=True, check=False).stdout
    key = hashlib.sha256("\n".join((project.digest, version, *FLAGS, _unit(project))).encode()).hexdigest()[:32]
    place = engine_cache.root() / "hls4ml" / key
    if not place.is_dir():
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            told = f"{place.parent} cannot be made: {error.strerror}"
            raise DeviceError(told, "set XDG_CACHE_HOME to a folder that can be written") from error
        with tempfile.TemporaryDirectory(prefix="building-", dir=place.parent) as scratch:
            _build(project, Path(scratch), path, progress, timeout_s)
            try:
                Path(scratch, "kept").rename(place)
            except OSError:
                if not place.is_dir():  # it is there already where another process built the same at the same time
                    raise
    return place / "network.so"


def _unit(project: Project) -> str:
    """All sources in one, so that the headers are read once."""
    name = project.options.name
    units = (f"firmware/{name}.cpp", f"firmware/{name}_axi.cpp", f"{name}_bridge.cpp")
    return "".join(f'#include "{unit}"\n' for unit in units if unit in project.files)


def _build(project: Project, scratch: Path, compiler: str, progress: Callable[[str], None], timeout_s: float) -> None:
    """Leaves scratch/kept with the library and the weights that it reads when it runs."""
    kept = scratch / "kept"
    for file, data in project.files.items():
        target = scratch / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    flags = [*FLAGS, *(f"-I{folder}" for folder in BACKENDS[project.options.backend].includes)]
    limit = tool_process.Limit(time.monotonic() + timeout_s, timeout_s)
    (scratch / "emulation.cpp").write_text(_unit(project), encoding="ascii")
    kept.mkdir()
    command, label = [compiler, *flags, "-shared", "emulation.cpp", "-o", "kept/network.so"], "compiling the emulation"
    progress(label)
    ended = tool_process.run(command, label, scratch, scratch / "log", os.environ, limit, progress)
    if ended.exit_code:
        raise ToolError(COMPILER, f"{label} ended with {ended.exit_code}", ended.last_lines)
    weights = scratch / "firmware" / "weights"
    if weights.is_dir():
        shutil.copytree(weights, kept / "weights", ignore=shutil.ignore_patterns("*.h"))


def _run(
    project: Project, library: Path, codes: Mapping[str, Integers], progress: Callable[[str], None], timeout_s: float
) -> dict[str, Integers]:
    ports = {port.layer: port for port in project.layers.outputs}
    with tempfile.TemporaryDirectory(prefix="edgesdk-hls4ml-") as scratch:
        given, taken = Path(scratch, "given.npz"), Path(scratch, "taken.npz")
        np.savez(given, *(port.given(np.asarray(codes[port.tensor.name], np.int64)) for port in project.layers.inputs))
        sizes = [str(port.order.size) for port in ports.values()]
        ran = [sys.executable, "-I", "-c", _RUN, str(library), f"{project.options.name}_double", str(given), str(taken)]
        limit, label = tool_process.Limit(time.monotonic() + timeout_s, timeout_s), "running the emulation"
        progress(label)
        log = Path(scratch, "log")
        ended = tool_process.run([*ran, *sizes], label, library.parent, log, os.environ, limit, progress)
        if ended.exit_code:
            raise ToolError("emulation", f"the compiled network ended with {ended.exit_code}", ended.last_lines)
        with np.load(taken) as found:
            values = dict(zip(ports, (found[name] for name in found.files), strict=True))
    return {port.tensor.name: port.taken(values[port.layer]) for port in project.layers.outputs}
