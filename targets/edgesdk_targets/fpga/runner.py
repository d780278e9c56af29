"""Run a bundle for an FPGA where there is none: its Verilog in Verilator, or its C++ compiled with g++, on integer codes."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesdk_converters.errors import EdgeError, MissingTool, Unsupported
from edgesdk_converters.integer_program import Integers

from ..bundle import Bundle
from ..runner import DEFAULTS, RunnerFacts, RunOptions
from . import evidence, flow_hls4ml, flow_rtl, testbench
from .interface import FILE, Interface

Array = NDArray[Any]
Simulate = Callable[[Mapping[str, Integers]], Mapping[str, Integers]]
REFERENCE = "integer reference"


class FpgaRunner:
    """The bundle's own design in a simulator. It is exact, not fast: each call starts the simulator, `run_many` once for all.

    The simulator of Verilog is built, unless it is kept from earlier, when the first inputs come: they have been checked then.
    Where the simulator is not installed, or only a vendor has it, and a fallback is allowed, the integer reference runs in its
    place, and the facts say so.
    """

    def __init__(self, bundle: Bundle, options: RunOptions = DEFAULTS) -> None:
        self._program = evidence.program_of(bundle)
        self._interface = Interface.from_bytes(bundle.read(FILE))
        self._shapes = [tuple(int(dim) for dim in output.shape) for output in bundle.manifest.signature.outputs]
        self._folder = Path(tempfile.mkdtemp(prefix="edgesdk-fpga-"))
        self._lock = threading.Lock()
        try:
            self._simulate, self.facts = self._opened(bundle, options)
        except BaseException:
            self.close()
            raise

    def run(self, feed: Mapping[str, Array]) -> Sequence[Array]:
        return self.run_many([feed])[0]

    def run_many(self, feeds: Sequence[Mapping[str, Array]]) -> list[Sequence[Array]]:
        """The outputs of many inputs, in order: the simulator runs them back to back."""
        batch = {port.codes.name: np.concatenate([feed[port.codes.name] for feed in feeds]) for port in self._interface.inputs}
        with self._lock:
            found = self._interface.decode(self._simulate(self._interface.encode(batch)))
        return [
            [output[row].reshape(shape) for output, shape in zip(found, self._shapes, strict=True)] for row in range(len(feeds))
        ]

    def run_into(self, feed: Mapping[str, Array], out: Mapping[str, Array]) -> None:
        for port, array in zip(self._interface.outputs, self.run(feed), strict=True):
            out[port.codes.name][...] = array

    def count_nodes(self, feed: Mapping[str, Array]) -> Mapping[str, int]:
        return {}

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _opened(self, bundle: Bundle, options: RunOptions) -> tuple[Simulate, RunnerFacts]:
        """The simulation and its facts. What is missing is found now: of Verilog by the programs, of C++ on one inference."""
        flow = bundle.manifest.runtime.config.get("flow", "")
        simulate: Simulate
        if flow == "rtl":
            simulate, name, version = flow_rtl.simulation(bundle, self._program, self._folder, options.progress)
        elif flow == "hls4ml":
            simulate, name, version = flow_hls4ml.simulation(bundle, self._program, options.progress)
        else:
            raise EdgeError(f"the bundle is of the flow {flow!r}; known: rtl, hls4ml", "update edgesdk")
        try:
            if flow == "rtl":
                testbench.check(name)
            else:
                simulate(evidence.vectors(self._program, 1))
        except (MissingTool, Unsupported) as error:
            if not options.allow_fallback:
                other = " (or iverilog, which is slower)" if isinstance(error, MissingTool) and error.tool == "verilator" else ""
                error.hint = f"{error.hint}{other}; --allow-fallback (allow_fallback=True) runs the {REFERENCE} in its place"
                raise
            because = f"{error.tool} is not installed" if isinstance(error, MissingTool) else error.reason
            facts = RunnerFacts(REFERENCE, "", (REFERENCE,), fallback=True, simulated=True, because=because)
            return self._program.run, facts
        return simulate, RunnerFacts(name, version, (name,), simulated=True)
