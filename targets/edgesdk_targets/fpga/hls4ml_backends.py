"""The back ends of hls4ml 1.3 as data: the layers that each has, its vendor's tool, and the commands that build a project."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

BackendName = Literal["vitis", "vivado", "vivadoaccelerator", "catapult", "quartus", "oneapi", "libero"]
FLAT = frozenset({"InputLayer", "Dense", "Activation", "Reshape"})
SPATIAL = FLAT | {
    "BatchNormalization", "LeakyReLU", "Merge", "Concatenate", "Transpose", "Conv1D", "Conv2D", "MaxPooling1D", "MaxPooling2D",
    "AveragePooling1D", "AveragePooling2D", "ZeroPadding1D", "ZeroPadding2D",
}  # fmt: skip
XILINX = "Xilinx"
WHOLE = SPATIAL | {"DepthwiseConv1D", "DepthwiseConv2D", "Cropping1D", "Cropping2D", "UnaryLUT"}


@dataclass(frozen=True)
class Backend:
    """What a back end of hls4ml 1.3 has: the `kinds` of layers that it computes exactly, and the `unstreamed` ones among them.

    `tool` is the program of the vendor that builds need, `part` the one of hls4ml's own choice, `vendor` whose parts it takes.
    `inexact_means`: it rounds the quotient of an average in its own way.
    Without `includes`, folders of headers in a project, nothing but the vendor's tool compiles it.
    """

    name: str
    tool: str
    tool_name: str
    part: str
    kinds: frozenset[str] = WHOLE
    unstreamed: frozenset[str] = frozenset()
    inexact_means: bool = False
    includes: tuple[str, ...] = ()
    vendor: str = XILINX

    def takes(self, part: str) -> bool:
        """Whether its tool builds for a part: any but those of another vendor."""
        return not part.lower().startswith("xc") or self.vendor == XILINX


_XILINX_HLS = "Xilinx Vivado HLS (2020.1 or earlier)"
_INTEL_HLS = "Intel HLS compiler (Quartus Prime 21.4 or earlier)"
_ONEAPI = "Intel oneAPI DPC++ with its FPGA add-on (2025.0 or earlier)"
_AP, _AC = ("firmware/ap_types",), ("firmware/ac_types", "firmware/ap_types")
_CATAPULT = ("firmware/ac_types/include", "firmware/ac_math/include", "firmware/ac_simutils/include", "firmware/nnet_utils")
_TURNS = frozenset({"Transpose"})  # of streams, as hls4ml writes them, g++ compiles none
_KU115 = "xcku115-flvb2104-2-i"
BACKENDS: Mapping[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend("vitis", "vitis-run", "AMD Vitis (2023.2 or later)", "xc7z020clg400-1", includes=_AP),
        Backend("vivado", "vivado_hls", _XILINX_HLS, "xc7z020clg400-1", includes=_AP),
        Backend("vivadoaccelerator", "vivado_hls", _XILINX_HLS, "", includes=_AP),
        Backend("catapult", "catapult", "Siemens Catapult HLS", _KU115, SPATIAL, _TURNS, inexact_means=True, includes=_CATAPULT),
        Backend("quartus", "i++", _INTEL_HLS, "Arria10", SPATIAL, _TURNS, inexact_means=True, includes=_AC, vendor="Intel"),
        Backend("oneapi", "icpx", _ONEAPI, "Agilex7", SPATIAL, _TURNS, inexact_means=True, vendor="Intel"),
        Backend("libero", "shls", "Microchip Libero SoC with SmartHLS", "MPF300", FLAT, FLAT, vendor="Microchip"),
    )
}
"""hls4ml's ninth back end, symbolicexpression, takes formulas instead of layers."""
BOARDS: Mapping[str, str] = {
    "pynq-z2": "xc7z020clg400-1", "zcu102": "xczu9eg-ffvb1156-2-e", "alveo-u50": "xcu50-fsvh2104-2-e",
    "alveo-u200": "xcu200-fsgd2104-2-e", "alveo-u250": "xcu250-figd2104-2L-e", "alveo-u280": "xcu280-fsvh2892-2L-e",
}  # fmt: skip
"""Boards that vivadoaccelerator writes a whole design for, and their parts."""
STEPS: Mapping[str, int] = {
    "reset": 0, "csim": 0, "synth": 1, "cosim": 0, "validation": 0, "export": 0, "vsynth": 1, "fifo_opt": 0,
}  # fmt: skip
"""Of hls4ml's build scripts: high-level synthesis, then Vivado's synthesis of its result, whose reports are read afterwards."""


@dataclass(frozen=True)
class Build:
    """How the vendor's tool builds a project: commands to run in its folder one after the other, and the program they need."""

    commands: tuple[tuple[str, ...], ...]
    tool: str
    tool_name: str

    def missing(self) -> str:
        """What to say where the tool is not on the path."""
        lines = "; ".join(" ".join(command) for command in self.commands)
        return f"{self.tool} is not on the path: install {self.tool_name}, then run in the project's folder: {lines}"


def build_options() -> bytes:
    """What Vitis's build_prj.tcl does, as hls4ml's own build would write it."""
    lines = "".join(f"    {name} {value}\n" for name, value in STEPS.items())
    return f"array set opt {{\n{lines}}}\n".encode()


def build(backend: BackendName, name: str) -> Build:
    """How to build a project of that name."""
    known = BACKENDS[backend]
    flags = " ".join(f"{name}={value}" for name, value in STEPS.items())
    commands: dict[str, tuple[tuple[str, ...], ...]] = {
        "vitis": (("vitis-run", "--mode", "hls", "--tcl", "build_prj.tcl"),),
        "vivado": (("vivado_hls", "-f", "build_prj.tcl", flags),),
        "vivadoaccelerator": (
            ("vivado_hls", "-f", "build_prj.tcl", flags.replace("export=0", "export=1")),
            ("vivado", "-mode", "batch", "-source", "design.tcl"),
        ),
        "catapult": (("catapult", "-product", "ultra", "-shell", "-f", "build_prj.tcl", "-eval", f"set ::argv {{{flags}}}"),),
        "quartus": (("make", f"{name}-fpga"),),
        "oneapi": (("cmake", "-S", ".", "-B", "build"), ("make", "-C", "build", "report")),
        "libero": (("shls", "-s", "sw_compile"), ("shls", "-s", "hw"), ("shls", "-s", "rtl_synth")),
    }
    return Build(commands[backend], known.tool, known.tool_name)
