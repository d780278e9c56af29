"""The flow `hls4ml`: an HLS project of a fixed-point network, for every back end that hls4ml 1.3 has, equal to it to the bit.

hls4ml's front ends for ONNX, Keras and torch are not used: they misread some models without a word. Its graph is built from our
own layers instead, every type stated, and afterwards it is checked that none of its passes changed one.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import keyword
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgesdk_converters.errors import MissingExtra, RecipeError, TargetError, Unsupported
from edgesdk_converters.integer_program import Conv, Dense, IntegerProgram, read

from . import hls4ml_backends, hls4ml_rules, reuse
from .hls4ml_backends import BACKENDS, BOARDS, Backend, BackendName, Build
from .hls4ml_types import Fixed, HlsLayer, Layers

if TYPE_CHECKING:
    from hls4ml.model.graph import ModelGraph

PORTS = "ports.json"
"""Beside hls4ml's files: of each port its tensor, the 2**exponent that a code counts, and `order`: at place p of the layer's flat
tensor lies element order[p] of the network's."""
FLOAT_BITS = 24
"""Of whole numbers that a C++ float holds."""
INHERITING = ("Reshape", "Transpose", "ZeroPadding1D", "ZeroPadding2D", "Cropping1D", "Cropping2D")
"""They pass elements on in their source's type, whose rounding and saturation never act in them."""
_BUG = "report this as a bug of edgesdk"


@dataclass(frozen=True)
class Options:
    """`reuse_factors` are those of single nodes by name, in place of `reuse_factor`; `board` is for vivadoaccelerator.

    Reuse factors that hls4ml does not take become the closest that it does, which the project's notes tell.
    """

    backend: BackendName = "vitis"
    part: str = ""
    board: str = "pynq-z2"
    clock_ns: float = 5.0
    io_type: Literal["io_parallel", "io_stream"] = "io_parallel"
    strategy: Literal["latency", "resource"] = "latency"
    reuse_factor: int = 1
    reuse_factors: Mapping[str, int] = field(default_factory=dict)
    name: str = "network"


@dataclass(frozen=True, eq=False)
class Project:
    """Files by name with their bytes; the same network and options give the same bytes.

    `layers` tells what stands for what; `reuse_factors` those in use, by node; `host` is what the host still computes of the
    layers' outputs, None for nothing.
    """

    options: Options
    files: Mapping[str, bytes]
    build: Build
    layers: Layers
    reuse_factors: Mapping[str, int]
    notes: tuple[str, ...]
    host: IntegerProgram | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of names and bytes."""
        found = hashlib.sha256()
        for name, data in sorted(self.files.items()):
            found.update(f"{name}\0{len(data)}\0".encode())
            found.update(data)
        return found.hexdigest()


def project(program: IntegerProgram, options: Options) -> Project:
    """An hls4ml project that computes the program to the bit.

    Raises Unsupported (node, operator, reason) for what hls4ml has no exact layer for, RecipeError for options that do not exist,
    MissingExtra without hls4ml.
    """
    backend = _checked(program, options)
    device, host = divided(program, backend)
    layers = hls4ml_rules.layers(device, backend, options.io_type == "io_stream")
    factors, notes = _reuse_factors(layers, options)
    with tempfile.TemporaryDirectory() as folder:
        said = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(said):
            warnings.simplefilter("ignore")  # they tell that its own passes set attributes again
            graph = _graph(layers, options, factors, folder)
            _check(graph, layers, factors)
            _write(graph)
        files = dict(_files(Path(folder)))
    if "build_opt.tcl" in files:
        files["build_opt.tcl"] = hls4ml_backends.build_options()
    files[PORTS] = _ports(layers)
    told = [line.strip() for line in said.getvalue().splitlines() if line.startswith("WARNING")]
    left = [f"{op.node} ({type(op).__name__}): done by the host, on integers" for op in (host.operations if host else ())]
    notes = [*layers.notes, *left, *notes, *(f"hls4ml: {line}" for line in dict.fromkeys(told))]
    return Project(options, files, hls4ml_backends.build(options.backend, options.name), layers, factors, tuple(notes), host)


def _ports(layers: Layers) -> bytes:
    """How a driver feeds the network: each port's type and shape, and which of the network's elements lie where."""
    told = {}
    for side, ports in (("inputs", layers.inputs), ("outputs", layers.outputs)):
        types = {layer.name: str(layer.precision["result"]) for layer in layers.layers}
        told[side] = [
            {
                "tensor": port.tensor.name, "shape": list(port.tensor.shape), "exponent": port.tensor.exponent,
                "layer": port.layer, "layer_shape": list(port.shape), "type": types[port.layer], "order": port.order.tolist(),
            }
            for port in ports
        ]  # fmt: skip
    return (json.dumps(told, indent=1) + "\n").encode()


def divided(program: IntegerProgram, backend: Backend) -> tuple[IntegerProgram, IntegerProgram | None]:
    """What the device computes, and what the host does behind it: argmax, softmax, layer normalisation, curves, and tables where
    the back end has none.

    The host gets all that follows them too, unless weights do: then nothing is divided, and the rules refuse.
    """
    made: set[str] = set()
    behind = []
    for operation in program.operations:
        if isinstance(operation, hls4ml_rules.on_host(backend)) or made.intersection(read(operation)):
            behind.append(operation)
            made.add(operation.result)
    ahead = tuple(operation for operation in program.operations if operation.result not in made)
    if not behind or not ahead or any(isinstance(operation, Dense | Conv) for operation in behind):
        return program, None
    taken = [name for operation in behind for name in read(operation) if name not in made]
    between = tuple(dict.fromkeys([*taken, *(name for name in program.outputs if name not in made)]))
    device = replace(program, outputs=between, operations=ahead)
    return device, replace(program, inputs=between, operations=tuple(behind), roundings={}, exact={})


def _checked(program: IntegerProgram, options: Options) -> Backend:
    if options.backend not in BACKENDS:
        raise RecipeError(f"hls4ml has no back end {options.backend!r}; it has: {', '.join(BACKENDS)}", "--set backend=vitis")
    if options.io_type == "io_stream" and "Dense" in BACKENDS[options.backend].unstreamed:
        raise RecipeError(f"hls4ml's back end {options.backend} has no exact io_stream", "--set io_type=io_parallel")
    if options.backend == "vivadoaccelerator":
        if options.board not in BOARDS:
            raise RecipeError(f"hls4ml's vivadoaccelerator has no board {options.board!r}; it has: {', '.join(BOARDS)}")
        if len(program.inputs) != 1 or len(program.outputs) != 1:
            told = f"{len(program.inputs)} inputs and {len(program.outputs)} outputs; its wrapper has one of each"
            raise Unsupported("fpga (hls4ml, vivadoaccelerator)", program.name, "network", told, "--set backend=vivado")
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", options.name) or keyword.iskeyword(options.name):
        told = f"project name {options.name!r}: a letter, then letters, digits and _, all lower case, at most 40"
        raise RecipeError(told, "--set name=network")
    if not re.fullmatch(r"[A-Za-z0-9-]{0,60}", options.part):
        raise RecipeError(f"part {options.part!r}: letters, digits and -", "--set part=xc7z020clg400-1")
    if not 0.1 <= options.clock_ns <= 1000:
        raise RecipeError(f"a clock period of {options.clock_ns:g} ns; allowed: 0.1 to 1000", "--set clock_ns=5")
    nodes = {operation.node for operation in program.operations}
    for node, factor in [("", options.reuse_factor), *options.reuse_factors.items()]:
        if node and node not in nodes:
            raise RecipeError(f"a reuse factor for {node!r}, which is no node of the network: {', '.join(sorted(nodes))}")
        if factor < 1:
            raise RecipeError(f"reuse factor {factor}; allowed: 1 and more", "--set reuse_factor=1")
    return BACKENDS[options.backend]


def _reuse_factors(layers: Layers, options: Options) -> tuple[dict[str, int], list[str]]:
    """Legal ones by node, and what had to be changed. The latency strategy takes any: it is a limit on multipliers there."""
    chosen, notes = {}, []
    for layer in layers.layers:
        if layer.products is None:
            continue
        wanted = options.reuse_factors.get(layer.node, options.reuse_factor)
        most = layer.products[0] if layer.kind.startswith("Conv") and options.io_type == "io_parallel" else wanted
        chosen[layer.node] = reuse.closest(*layer.products, min(wanted, most)) if _folds(options) else wanted
        if chosen[layer.node] != wanted:
            within = f", within its window's {most}, as in parallel hls4ml folds no further" if most < wanted else ""
            notes.append(f"{layer.node}: reuse factor {chosen[layer.node]}, the legal one closest to {wanted}{within}")
        if _is_unrolled(layer, options) and options.strategy == "resource":
            notes.append(f"{layer.node}: strategy latency, as hls4ml has no other for depthwise convolutions in parallel")
    return chosen, notes


def _folds(options: Options) -> bool:
    return options.strategy == "resource" or options.backend in ("quartus", "oneapi")


def _graph(layers: Layers, options: Options, factors: Mapping[str, int], folder: str) -> ModelGraph:
    try:
        from hls4ml.model.graph import ModelGraph
        from hls4ml.utils.config import create_config
    except ImportError as error:
        raise MissingExtra("fpga", "hls4ml") from error
    settings: dict[str, Any] = {"part": options.part or BACKENDS[options.backend].part}
    if options.backend == "vivadoaccelerator":
        widest = max(port.tensor.bits for port in (*layers.inputs, *layers.outputs))
        carried = "float" if widest <= FLOAT_BITS else "double"
        settings = {"part": BOARDS[options.board], "board": options.board, "input_type": carried, "output_type": carried}
    if options.backend == "libero":
        settings["smarthls_path"] = "SMARTHLS_ROOT"  # only in a Makefile for libraries, which no command here uses
    clock = int(options.clock_ns) if options.clock_ns == int(options.clock_ns) else options.clock_ns
    config = create_config(
        output_dir=folder,
        project_name=options.name,
        backend=options.backend,
        clock_period=clock,
        io_type=options.io_type,
        **settings,
    )
    config["HLSConfig"] = {
        "Model": {"Precision": {"default": "fixed<16,6>"}, "ReuseFactor": 1, "Strategy": options.strategy},
        "LayerName": {layer.name: _settings(layer, options, factors) for layer in layers.layers},
    }
    listed = [dict(layer.attributes) for layer in layers.layers]
    inputs, outputs = [port.layer for port in layers.inputs], [port.layer for port in layers.outputs]
    return ModelGraph.from_layer_list(config, listed, inputs, list(dict.fromkeys(outputs)))


def _settings(layer: HlsLayer, options: Options, factors: Mapping[str, int]) -> dict[str, Any]:
    settings: dict[str, Any] = {"Precision": {name: str(fixed) for name, fixed in layer.precision.items()}}
    if layer.products is not None:
        settings["ReuseFactor"] = factors[layer.node]
        settings["Strategy"] = "latency" if _is_unrolled(layer, options) else options.strategy
    return settings


def _is_unrolled(layer: HlsLayer, options: Options) -> bool:
    return layer.kind.startswith("Depthwise") and options.io_type == "io_parallel"


def _check(graph: ModelGraph, layers: Layers, factors: Mapping[str, int]) -> None:
    """That every layer still has what it was given. A TargetError is a bug of ours or another hls4ml."""
    for layer in layers.layers:
        node = graph.graph.get(layer.name)
        if node is None:
            if layer.kind == "Reshape":  # elements in parallel lie flat anyway
                continue
            if layer.attributes.get("activation") == "linear":  # of the type that it reads, so that it changes nothing
                continue
            raise TargetError(f"hls4ml has dropped layer {layer.name!r} ({layer.kind})", _BUG)
        for name, fixed in layer.precision.items():
            precision = node.get_output_variable().type.precision if name == "result" else node.attributes[f"{name}_t"].precision
            if not _is_kept(_told(precision), fixed, name, layer.kind):
                told = f"hls4ml has made {precision} of the {name} of layer {layer.name!r}, which has to be {fixed}"
                raise TargetError(told, _BUG)
        if layer.products is not None and node.attributes["reuse_factor"] != factors[layer.node]:
            told = f"hls4ml has made {node.attributes['reuse_factor']} of reuse factor {factors[layer.node]} of {layer.name!r}"
            raise TargetError(told, _BUG)


def _is_kept(found: Fixed, given: Fixed, name: str, kind: str) -> bool:
    """Whether a type does what the given one does: an accumulator, which nothing exceeds, may be wider."""
    if kind in INHERITING:
        return replace(found, rounding=given.rounding, saturation=given.saturation) == given
    if name == "accum":
        spare = found.integer_bits - found.signed - (given.integer_bits - given.signed)
        finer = found.bits - found.integer_bits - (given.bits - given.integer_bits)
        return found.signed >= given.signed and spare >= 0 and finer >= 0
    return found == given


def _write(graph: ModelGraph) -> None:
    """As graph.write() does, but without its random stamp."""
    graph.config.config["Stamp"] = "emulation"
    writer = graph.config.backend.writer
    try:
        writer.write_hls(graph)
    except FileNotFoundError as error:  # hls4ml 1.3.0's wheel lacks this script for libero, whose builds do not need it
        if not str(error.filename).endswith("build_lib.sh"):
            raise
        for left in (writer.write_nnet_utils, writer.write_generated_code, writer.write_yml):
            left(graph)


def _told(precision: Any) -> Fixed:
    rounding = {"TRN": "truncate", "RND": "half_up", "RND_CONV": "half_even"}[str(precision.rounding_mode or "TRN")]
    saturation: Any = str(precision.saturation_mode or "WRAP")
    return Fixed(precision.width, precision.integer, bool(precision.signed), rounding, saturation)  # type: ignore[arg-type]


def _files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """What hls4ml wrote, without the folder in which it wrote."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            data = path.read_bytes().replace(str(folder.resolve()).encode(), b".").replace(str(folder).encode(), b".")
            yield path.relative_to(folder).as_posix(), data
