"""Bad input gets one clear line and the right exit code, and leaves everything as it was: over a hundred kinds of it."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import struct
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.sdk.conftest import Result, dense, graph_model, run_apart, run_here, tree

Make = Callable[[Path], None]
_ALLOWED = re.compile(
    r"allowed|known|has:|expected|wanted|wants|needed|need|takes|reads|at most|gives|must|only|belongs to|has \d"
    r"|No such file|no JSON|not valid TOML|cannot be read|names no pass|too long"
)
"""What a message without a hint must hold: what is allowed, or a reason that says by itself what to do."""


def nothing(folder: Path) -> None:
    """The folder as it is."""


@dataclass(frozen=True)
class Kind:
    """One kind of bad input: how it is made, what is typed, and what the answer must say.

    `{out}` in `command` stands for each of `outs`: an older bundle, which must stay, and a new place, which must stay empty.
    """

    name: str
    says: tuple[str, ...]
    command: str = "export m.onnx --target raspberry-pi --out {out}"
    make: Make = nothing
    code: int = 1
    error: str = "ModelError"
    outs: tuple[str, ...] = ("older.edge", "new.zip")


def file(name: str, content: bytes | str) -> Make:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: void((folder / name).write_bytes(data))


def void(_: object) -> None:
    """For lambdas that are called for what they do."""


def model(make: Callable[[], onnx.ModelProto]) -> Make:
    return lambda folder: void((folder / "m.onnx").write_bytes(make().SerializeToString()))


def samples(**arrays: object) -> Make:
    return lambda folder: np.savez(folder / "bad.npz", **{name: np.asarray(value) for name, value in arrays.items()})


def node(operator: str, inputs: Sequence[str], outputs: Sequence[str], name: str = "", **attributes: object) -> onnx.NodeProto:
    return helper.make_node(operator, list(inputs), list(outputs), name=name or None, **attributes)


def tensor(name: str, dims: Sequence[int], raw: bytes | None = None) -> onnx.TensorProto:
    """A float tensor that declares `dims` and holds `raw`, fitting or not."""
    made = onnx.TensorProto(name=name, data_type=TensorProto.FLOAT, dims=dims)
    if raw is not None:
        made.raw_data = raw
    return made


def with_weight(weight: onnx.TensorProto) -> onnx.ModelProto:
    return graph_model([node("MatMul", ["x", weight.name], ["y"], "dense")], weights=[weight])


def external(location: str, offset: str = "0", length: str = "128") -> onnx.ModelProto:
    weight = tensor("w", [8, 4])
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        weight.external_data.add(key=key, value=value)
    return with_weight(weight)


def external_link(folder: Path) -> None:
    (folder / "real.bin").write_bytes(bytes(128))
    (folder / "w.bin").symlink_to("real.bin")
    model(lambda: external("w.bin"))(folder)


def damage(name: str, change: Callable[[bytes], bytes]) -> Make:
    return lambda folder: void((folder / name).write_bytes(change((folder / name).read_bytes())))


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def manifest(change: Callable[[dict[str, object]], object]) -> Make:
    """older.edge with its manifest changed and its digest not."""

    def make(folder: Path) -> None:
        place = folder / "older.edge/manifest.json"
        data = json.loads(place.read_text())
        change(data)
        place.write_text(json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False) + "\n")

    return make


def torch_file(text: str) -> Make:
    return file("bad_module.py", "import torch\n" + text)


def npy_header(shape: tuple[int, ...]) -> bytes:
    """An .npy file that declares a shape and holds nothing."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()


def archive(**members: bytes) -> Make:
    def make(folder: Path) -> None:
        with zipfile.ZipFile(folder / "bad.npz", "w") as sink:
            for name, data in members.items():
                sink.writestr(name.replace("__", "."), data)

    return make


def large_weights() -> onnx.ModelProto:
    """160 MB of zeros, which need 2.5 times that on a board."""
    return with_weight(tensor("w", [8, 5_000_000], bytes(160_000_000)))


RELU = [node("Relu", ["x"], ["y"], "relu")]


def nested(depth: int) -> bytes:
    """An ONNX file of If in If in If, written as bytes because protobuf itself would refuse."""

    def record(number: int, data: bytes) -> bytes:
        size = len(data)
        digits = bytearray()
        while size > 127:
            digits.append(size & 127 | 128)
            size >>= 7
        return bytes([number << 3 | 2]) + bytes(digits) + bytes([size]) + data

    graph = record(1, record(4, b"Relu") + record(1, b"x") + record(2, b"y"))
    for _ in range(depth):
        branch = record(1, b"then_branch") + record(6, graph)
        graph = record(1, record(4, b"If") + record(1, b"x") + record(2, b"y") + record(5, branch))
    return b"\x08\x09" + record(7, graph)


def from_nothing() -> onnx.ModelProto:
    """A model whose answer to ones is exactly 0 in fp32 and above 0 in fp16: no relative error is finite."""
    weights = np.array([[1.0, 1.0], [-1.0003, -1.0003], [0.0002, 0.0002]], np.float32)
    return graph_model(
        [node("MatMul", ["x", "w"], ["m"]), node("Relu", ["m"], ["y"])],
        inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])],
        weights=[numpy_helper.from_array(weights, "w")],
    )


GARBAGE = np.random.default_rng(3).bytes(5000)
JPEG = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00" + GARBAGE
EXPORT = "export m.onnx --target raspberry-pi --out {out} "
TORCH = "export bad_module:make --target server --out {out} "

MODEL_FILES = (
    Kind("missing file", ("nowhere.onnx", "does not exist", "give the path"), "export nowhere.onnx --target server --out {out}"),
    Kind("empty file", ("m.onnx is empty", "export the model again"), make=file("m.onnx", b"")),
    Kind("directory", ("is a directory", "give the path of an .onnx file"), "export . --target server --out {out}"),
    Kind("random bytes", ("not an ONNX file", "export the model again"), make=file("m.onnx", GARBAGE)),
    Kind("truncated", ("not an ONNX file", "cut short"), make=damage("m.onnx", lambda data: data[: len(data) * 2 // 3])),
    Kind("text file", ("not an ONNX file",), make=file("m.onnx", "Hello, this is no model.\n" * 20)),
    Kind("JPEG renamed", ("not an ONNX file",), make=file("m.onnx", JPEG)),
    Kind("no nodes", ("no ONNX graph with nodes",), make=model(lambda: graph_model([]))),
    Kind(
        "cycle", ("cycle", "first", "second", "acyclic"),
        make=model(lambda: graph_model([node("Add", ["x", "b"], ["a"], "first"), node("Relu", ["a"], ["b"], "second"),
                                        node("Relu", ["b"], ["y"])])),
    ),
    Kind(
        "unsorted", ("topological order", "sort"),
        make=model(lambda: graph_model([node("Relu", ["a"], ["y"]), node("Relu", ["x"], ["a"])])),
    ),
    Kind("produced by nothing", ("'ghost'", "'join'", "produced by nothing"),
         make=model(lambda: graph_model([node("Add", ["x", "ghost"], ["y"], "join")]))),
    Kind("output produced by nothing", ("'other'",),
         make=model(lambda: graph_model(RELU, outputs=[helper.make_tensor_value_info("other", TensorProto.FLOAT, [1, 8])]))),
    Kind("opset 8", ("opset 8", "9 to 24", "opset_version"), make=model(lambda: graph_model(RELU, opset=8))),
    Kind("opset 99", ("opset 99", "9 to 24", "opset_version"), make=model(lambda: graph_model(RELU, opset=99))),
    Kind("no opset", ("no opset", "9 to 24"), make=model(lambda: graph_model(RELU, opset=None))),
    Kind("IR version 99", ("IR version 99", "3 to 13"), make=model(lambda: graph_model(RELU, ir=99))),
    Kind("unknown operator", ("unknown operator Frobnicate",), make=model(lambda: graph_model([node("Frobnicate", "x", "y")]))),
    Kind("unknown domain", ("com.acme",),
         make=model(lambda: graph_model([node("Relu", "x", "y", "odd", domain="com.acme")]))),
    Kind("NaN weights", ("'w'", "1 NaN among 32", "checkpoint"),
         make=model(lambda: dense(np.where(np.arange(32).reshape(8, 4) == 5, np.nan, 1.0)))),
    Kind("external data above the folder", ("'../w.bin'", "leaves the model's directory"),
         make=lambda folder: (model(lambda: external("../w.bin"))(folder))),
    Kind("external data at an absolute path", ("'/etc/passwd'", "not a plain relative path"),
         make=model(lambda: external("/etc/passwd"))),
    Kind("external data behind a link", ("'w.bin'", "is a link", "cp -L"), make=external_link),
    Kind("external data missing", ("'w.bin'", "No such file", "beside the model"), make=model(lambda: external("w.bin"))),
    Kind("external data too short", ("bytes 0..128", "has 64", "cut short"),
         make=lambda folder: (file("w.bin", bytes(64))(folder), model(lambda: external("w.bin"))(folder))[1]),
    Kind("external offset negative", ("offset -1",), make=model(lambda: external("w.bin", offset="-1"))),
    Kind("external length no number", ("no number",), make=model(lambda: external("w.bin", length="many"))),
    Kind("4 GB declared in 1 kB", ("more than 2.1 GB", "'w'", "under 2 GB"),
         make=model(lambda: with_weight(tensor("w", [8, 2**27], bytes(1000))))),
    Kind("1 GB declared in 1 kB", ("declares 1073741824 bytes but holds 1000",),
         make=model(lambda: with_weight(tensor("w", [8, 2**25], bytes(1000))))),
    Kind("negative dimension", ("negative dimension",), make=model(lambda: with_weight(tensor("w", [8, -4], bytes(128))))),
    Kind("tensor too short", ("'w'", "declares 128 bytes but holds 100"),
         make=model(lambda: with_weight(tensor("w", [8, 4], bytes(100))))),
    Kind("shapes do not match", ("shapes do not fit", "dense"), make=model(lambda: with_weight(tensor("w", [5, 4], bytes(80))))),
    Kind("output of 40 GB", ("40.0 GB", "2 GB"), make=model(lambda: graph_model(
        [node("Expand", ["x", "to"], ["y"])], inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        outputs=[helper.make_tensor_value_info("y", TensorProto.FLOAT, [10**10])],
        weights=[numpy_helper.from_array(np.array([10**10]), "to")]))),
    Kind("two weights of one name", ("two initialisers", "'w'"),
         make=model(lambda: graph_model([node("MatMul", ["x", "w"], ["y"])],
                                        weights=[tensor("w", [8, 4], bytes(128))] * 2))),
    Kind("two values of one name", ("'a'",),
         make=model(lambda: graph_model([node("Relu", "x", "a"), node("Neg", "x", "a"), node("Relu", "a", "y")]))),
    Kind("sequence input", ("'x'", "only tensors"), make=model(lambda: graph_model(
        [node("SequenceAt", ["x", "i"], ["y"])], weights=[numpy_helper.from_array(np.array(0), "i")],
        inputs=[helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, [1, 8])]))),
    Kind("no outputs", ("no outputs",), make=model(lambda: graph_model(RELU, outputs=[]))),
    Kind("no inputs", ("no inputs",), make=model(lambda: graph_model([node("Relu", "w", "y")], inputs=[],
                                                               weights=[tensor("w", [1, 8], bytes(32))]))),
    Kind("deeply nested", ("m.onnx",), make=file("m.onnx", nested(200))),
    Kind("input of size 0", ("'x'", "size 0"), make=model(lambda: graph_model(
        RELU, inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, [0, 8])]))),
    Kind("input without rank", ("'x'", "no rank"), make=model(lambda: graph_model(
        RELU, inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, None)]))),
    Kind("processing metadata is no JSON", ("edgesdk.io", "no JSON"),
         make=damage("m.onnx", lambda data: with_metadata(data, "{"))),
    Kind("device as model", ("/dev/null",), "export /dev/null --target server --out {out}"),
    Kind("endless model", ("/dev/zero",), "export /dev/zero --target server --out {out}"),
    Kind("name too long", ("too long",), f"export {'n' * 300}.onnx --target server --out {{out}}"),
    Kind("pipe as model", ("pipe", "give the path"), "export pipe --target server --out {out}",
         lambda folder: os.mkfifo(folder / "pipe")),
    *(
        Kind(f"model {name}", (what, "package.module:callable"), f"export {name} --target server --out {{out}}",
             file(name, GARBAGE))
        for name, what in (
            ("n.h5", "a Keras model"),
            ("n.tflite", "TensorFlow Lite"),
            ("n.safetensors", "weights without a graph"),
            ("n.engine", "an engine"),
        )
    ),
    Kind("bundle exported", ("is a bundle", "edgesdk inspect"), "export jetson.edge --target server --out {out}"),
    Kind("layer list exported", ("layer list", "estimated, not exported"), "export m.json --target server --out {out}"),
)  # fmt: skip


def with_metadata(data: bytes, text: str) -> bytes:
    proto = onnx.ModelProto.FromString(data)
    proto.metadata_props.add(key="edgesdk.io", value=text)
    return bytes(proto.SerializeToString())


TORCH_MODELS = (
    *(
        Kind(f"pickle {end}", ("is a pickle", "safetensors", ".pt2"), f"export bad{end} --target server --out {{out}}",
             file(f"bad{end}", pickle.dumps({"a": 1})))
        for end in (".pt", ".pth", ".ckpt", ".pkl")
    ),
    Kind("pt2 garbage", ("no readable .pt2", "torch.export.save"), "export bad.pt2 --target server --out {out}",
         file("bad.pt2", GARBAGE)),
    Kind("pt2 empty", ("no readable .pt2", "torch.export.save"), "export bad.pt2 --target server --out {out}",
         file("bad.pt2", b"")),
    Kind("pt2 missing", ("does not exist", "torch.export.save"), "export bad.pt2 --target server --out {out}"),
    Kind("pt2 directory", ("is no file",), "export bad.pt2 --target server --out {out}",
         lambda folder: (folder / "bad.pt2").mkdir()),
    Kind("module not importable", ("no_such_module", "PYTHONPATH"), "export no_such_module:make --target server --out {out}"),
    Kind("module without the name", ("bad_module:make", "package.module:callable"), TORCH, torch_file("")),
    Kind("module that does not parse", ("bad_module",), TORCH, torch_file("def (:\n")),
    Kind("module that raises", ("bad_module", "boom"), TORCH, torch_file("raise RuntimeError('boom')\n")),
    Kind("factory that raises", ("bad_module:make", "boom"), TORCH, torch_file("def make():\n    raise KeyError('boom')\n")),
    Kind("name is no callable", ("bad_module:make", "called"), TORCH, torch_file("make = 3\n")),
    Kind("factory needs arguments", ("without arguments",), TORCH, torch_file("def make(size):\n    return size\n")),
    Kind("factory gives no module", ("returned int", "torch.nn.Module"), TORCH, torch_file("def make():\n    return 3\n")),
    Kind("no example inputs", ("no example inputs", "--shape"), TORCH,
         torch_file("def make():\n    return torch.nn.Linear(8, 4)\n")),
    Kind("example inputs do not fit", ("torch cannot export",), TORCH + "--shape input=1x5",
         torch_file("def make():\n    return torch.nn.Linear(8, 4)\n")),
    Kind("module torch cannot export", ("torch cannot export",), TORCH + "--shape x=1x5", torch_file(
        "class Odd(torch.nn.Module):\n    def forward(self, x):\n        return x if x.sum() > 0 else -x\n"
        "def make():\n    return Odd()\n")),
    *(
        Kind(f"weights {what}", says, TORCH + "--weights bad.safetensors --shape input=1x8", lambda folder, data=data: (
            torch_file("def make():\n    return torch.nn.Linear(8, 4)\n")(folder),
            data and file("bad.safetensors", data)(folder))[0])
        for what, says, data in (
            ("garbage", ("no readable safetensors", "save_file"), GARBAGE),
            ("missing", ("bad.safetensors", "safetensors"), b""),
            ("of another module", ("does not fit the module",), struct.pack("<Q", 2) + b"{}"),
        )
    ),
    Kind("weights for ONNX", ("--weights goes with package.module:callable",), EXPORT + "--weights w.safetensors"),
)  # fmt: skip

CHOICES = (
    Kind("no target", ("no target given", "raspberry-pi, jetson, fpga, server", "--device"), "export m.onnx --out {out}",
         error="TargetError"),
    Kind("unknown target", ("'toaster'", "raspberry-pi, jetson, fpga, server"), "export m.onnx --target toaster --out {out}",
         error="TargetError"),
    Kind("unknown device", ("'raspberry-pi-9'", "raspberry-pi-5", "edgesdk devices"),
         "export m.onnx --device raspberry-pi-9 --out {out}", error="DeviceError"),
    Kind("device as path", ("'../devices/raspberry-pi-4'",), "export m.onnx --device ../devices/raspberry-pi-4 --out {out}",
         error="DeviceError"),
    Kind("device of another target", ("'raspberry-pi-4'", "'jetson'", "jetson-orin-nano"),
         "export m.onnx --target jetson --device raspberry-pi-4 --out {out}", error="DeviceError"),
    Kind("device for estimates only", ("jetson-nano", "TensorRT 8", "edgesdk estimate"),
         "export m.onnx --device jetson-nano --out {out}", error="DeviceError"),
    Kind("phone", ("'phone-snapdragon-835'", "only estimated", "edgesdk estimate MODEL --device phone-snapdragon-835"),
         "export m.onnx --device phone-snapdragon-835 --out {out}", error="DeviceError"),
    Kind("unknown precision", ("'int3'", "fp32, fp16", "--precision"), EXPORT + "--precision int3", error="TargetError"),
    Kind("setting of no target option", ("'turbo'", "threads, memory_gb"), EXPORT + "--set turbo=1", code=2, error="RecipeError"),
    Kind("setting of the wrong type", ("'many'", "a whole number"), EXPORT + "--set threads=many", code=2, error="RecipeError"),
    Kind("setting not a number", ("memory_gb", "nan"), EXPORT + "--set memory_gb=nan", error="TargetError"),
    Kind("setting out of range", ("threads", "-1"), EXPORT + "--set threads=-1", error="TargetError"),
    Kind("setting without value", ("'threads'", "NAME=VALUE"), EXPORT + "--set threads", code=2, error="RecipeError"),
    Kind("setting of no pass", ("quantise.bits", "fold"), EXPORT + "--set quantise.bits=4", code=2, error="RecipeError"),
    Kind("setting of no pass option", ("'bits'", "headroom"), EXPORT + "--precision fp16 --set half.bits=4", code=2,
         error="RecipeError"),
    Kind("pass option out of range", ("headroom is 0.5", "1 or more"), EXPORT + "--precision fp16 --set half.headroom=0.5",
         error="PassError"),
    Kind("unknown JetPack", ("'9.9'", "6.2"), "export m.onnx --target jetson --set jetpack=9.9 --out {out}", error="TargetError"),
    Kind("JetPack of other boards", ("does not run on", "it has:"), "export m.onnx --target jetson --set jetpack=4.6 --out {out}",
         error="TargetError"),
    Kind("builder level out of range", ("builder_level is 7", "0 to 5"),
         "export m.onnx --target jetson --set builder_level=7 --out {out}", error="TargetError"),
    Kind("DLA where there is none", ("DLA",), "export m.onnx --target jetson --precision fp16 --set dla=true --out {out}",
         error="TargetError"),
    Kind("recipe missing", ("none.toml", "cannot be read"), EXPORT + "--recipe none.toml", code=2, error="RecipeError"),
    *(
        Kind(f"recipe {what}", says, EXPORT + "--recipe bad.toml", file("bad.toml", text), 2, "RecipeError")
        for what, says, text in (
            ("is no TOML", ("bad.toml", "not valid TOML", "line 1"), "[[whole]\n"),
            ("is binary", ("bad.toml", "cannot be read"), GARBAGE),
            ("nested without end", ("bad.toml",), "a = " + "[" * 5000),
            ("with an unknown pass", ("'shrink'", "known", "fold"), '[[whole]]\npass = "shrink"\n'),
            ("with an unknown section", ("'body'", "known: whole"), '[[body]]\npass = "fold"\n'),
            ("without a pass name", ("table 1 names no pass",), "[[whole]]\nbits = 4\n"),
            ("with an unknown option", ("'bits'", "headroom"), '[[whole]]\npass = "half"\nbits = 4\n'),
            ("with an option of the wrong type", ("headroom", "a number"), '[[whole]]\npass = "half"\nheadroom = "big"\n'),
            ("with a table for a list", ("[[whole]]",), 'whole = {pass = "fold"}\n'),
        )
    ),
    Kind("recipe option out of range", ("headroom is 0", "1 or more"), EXPORT + "--recipe bad.toml",
         file("bad.toml", '[[whole]]\npass = "half"\nheadroom = 0\n'), error="PassError"),
    Kind("shape malformed", ("'x'", "INPUT=1x3x224x224"), EXPORT + "--shape x", code=2, error="RecipeError"),
    Kind("shape with words", ("'x=1xtwo'", "INPUT=1x3x224x224"), EXPORT + "--shape x=1xtwo", code=2, error="RecipeError"),
    Kind("shape of no input", ("'z'", "the model has: x"), EXPORT + "--shape z=1x8"),
    Kind("shape of another rank", ("3 axes", "1x8"), EXPORT + "--shape x=1x1x8"),
    Kind("shape against a fixed one", ("makes axis 1", "9", "fixes it at 8"), EXPORT + "--shape x=1x9"),
    Kind("shape of size 0", ("size 0", "1 or more"), "export dynamic.onnx --target server --shape x=0x8 --out {out}"),
    Kind("shape of 64 GB", ("GB", "allowed: 2 GB"), "export dynamic.onnx --target server --shape x=2000000000x8 --out {out}"),
    Kind("shape beyond int64", ("at most 2147483647",),
         "export dynamic.onnx --target server --shape x=99999999999999999999x8 --out {out}", code=2, error="RecipeError"),
    Kind("shape with odd digits", ("INPUT=1x3x224x224",), EXPORT + "--shape x=1x\u00b2", code=2, error="RecipeError"),
    Kind("constant not finite", ("'x=nan'", "finite"), EXPORT + "--constant x=nan", code=2, error="RecipeError"),
    Kind("constant malformed", ("'x=abc'", "INPUT=NUMBER"), EXPORT + "--constant x=abc", code=2, error="RecipeError"),
    Kind("constant of no input", ("'z'", "the model has: x"), EXPORT + "--constant z=1"),
    Kind("constant of a dynamic input", ("'x'", "static shape", "batchx8"),
         "export dynamic.onnx --target server --constant x=1 --out {out}"),
    Kind("constant for the only input", ("no inputs",), EXPORT + "--constant x=1"),
    Kind("processing missing", ("none.toml", "cannot be read"), EXPORT + "--io none.toml", code=2, error="RecipeError"),
    Kind("processing of no input", ("'z'", "the model has: x"), EXPORT + "--io io.toml",
         file("io.toml", "[inputs.z]\nscale = 2.0\n")),
    Kind("processing with an unknown name", ("'zoom'", "known"), EXPORT + "--io io.toml",
         file("io.toml", "[inputs.x]\nzoom = 2.0\n"), 2, "RecipeError"),
    Kind("processing for an image that is none", ("NCHW", "4 axes"), EXPORT + "--io io.toml",
         file("io.toml", '[inputs.x]\nlayout = "NCHW"\n')),
    Kind("processing with wrong labels", ("4 classes", "2 labels"), EXPORT + "--io io.toml",
         file("io.toml", '[outputs.y]\nlabels = ["cat", "dog"]\n')),
    *(
        Kind(f"project {what}", says, "export --target raspberry-pi --out {out}", file("edgesdk.toml", text), 2, "RecipeError")
        for what, says, text in (
            ("is no TOML", ("edgesdk.toml", "not valid TOML"), "model = \n"),
            ("with an unknown name", ("edgesdk.toml", "'modle'", "known: model"), 'modle = "m.onnx"\n'),
            ("with a wrong type", ("max_drop", "expected"), 'model = "m.onnx"\nmax_drop = "little"\n'),
            ("without a model", ("no model given", "edgesdk export MODEL"), "max_drop = 1.0\n"),
            ("with an unknown task", ("task", "'sort'", "classify"), 'model = "m.onnx"\ntask = "sort"\n'),
            ("with an unknown target", ("'rapsberry-pi'", "raspberry-pi"),
             'model = "m.onnx"\n[target.rapsberry-pi]\nprecision = "fp16"\n'),
            ("with an unknown target option", ("'turbo'", "threads"),
             'model = "m.onnx"\n[target.raspberry-pi.set]\nturbo = true\n'),
        )
    ),
    Kind("neither model nor project", ("no model given", "edgesdk export MODEL"), "export --target server --out {out}", code=2,
         error="RecipeError"),
)  # fmt: skip

BIG = np.ones((200, 8), np.float32)
DATA = (
    Kind("data missing", ("none.npz", "cannot be read"), EXPORT + "--data none.npz"),
    Kind("data is a directory", ("cannot be read",), EXPORT + "--data jetson.edge"),
    *(
        Kind(f"data {what}", says, EXPORT + "--data bad.npz", make)
        for what, says, make in (
            ("is text", ("no .npz file", "numpy.savez"), file("bad.npz", "1,2,3\n")),
            ("is empty", ("no .npz file", "numpy.savez"), file("bad.npz", b"")),
            ("is one .npy", ("no .npz file", "numpy.savez"), lambda folder: file("bad.npz", npy_header((0,)))(folder)),
            ("is a cut archive", ("no .npz file", "numpy.savez"),
             lambda folder: file("bad.npz", (folder / "check.npz").read_bytes()[:700])(folder)),
            ("is damaged", ("no .npz file",), lambda folder: file("bad.npz", flip((folder / "check.npz").read_bytes()))(folder)),
            ("is a zip of other files", ("readme",), archive(readme__txt=b"hello")),
            ("holds a file as an input", ("x",), archive(x=b"hello")),
            ("declares a terabyte", ("bad.npz",), archive(x__npy=npy_header((2**38,)))),
            ("holds pickled objects", ("no .npz file of plain arrays",),
             samples(x=np.array([{"a": 1}], dtype=object))),
            ("with other names", ("bad.npz: has image", "inputs are x", "name the arrays"), samples(image=BIG)),
            ("with an array too many", ("image, x", "inputs are x"), samples(x=BIG, image=BIG)),
            ("of another shape", ("(200, 5)", "(samples, 8)"), samples(x=np.ones((200, 5), np.float32))),
            ("of another rank", ("(200,)", "(samples, 8)"), samples(x=np.ones(200, np.float32))),
            ("scalar", ("shape ()",), samples(x=np.float32(1))),
            ("of another type", ("int64", "float32"), samples(x=np.ones((200, 8), np.int64))),
            ("of text", ("<U1", "float32"), samples(x=np.full((200, 8), "a"))),
            ("with NaN", ("NaN", "sample 3"), samples(x=np.where(np.arange(1600).reshape(200, 8) == 25, np.nan, BIG))),
            ("beyond float32", ("x",), samples(x=np.full((200, 8), 1e300))),
            ("without samples", ("at least 1",), samples(x=np.ones((0, 8), np.float32))),
            ("with fewer labels", ("'labels'", "200 rows"), samples(x=BIG, labels=np.zeros(100, np.int64))),
            ("with labels out of range", ("labels", "0 to 3"), samples(x=BIG, labels=np.full(200, 4))),
            ("with negative labels", ("labels", "0 to 3"), samples(x=BIG, labels=np.full(200, -1))),
            ("with fractional labels", ("labels", "whole number"), samples(x=BIG, labels=np.zeros(200))),
            ("with one-hot labels", ("labels", "(200, 4)"), samples(x=BIG, labels=np.zeros((200, 4), np.int64))),
        )
    ),
    Kind("train missing", ("none.npz", "cannot be read"), EXPORT + "--train none.npz"),
    Kind("promise without data", ("--max-drop", "--data"), EXPORT + "--max-drop 1"),
    Kind("promise without labels", ("--max-drop needs labels", "--task classify"), EXPORT + "--data bad.npz --max-drop 1",
         samples(x=BIG)),
    Kind("too few samples", ("20 check samples", "at least 100"), EXPORT + "--data bad.npz --max-drop 1",
         samples(x=BIG[:20], labels=np.zeros(20, np.int64))),
    *(
        Kind(f"--{name} {value}", (f"--{name}", value, "0 or more"), EXPORT + f"--data check.npz --{name} {value}")
        for name in ("max-drop", "max-relative-error") for value in ("-1", "nan", "inf")
    ),
    *(
        Kind(f"metric {what}", says, EXPORT + f"--data check.npz --max-drop 1 --metric {name}",
             file("bad_metric.py", text), code, error)
        for what, says, name, text, code, error in (
            ("not importable", ("--metric", "no_such_module"), "no_such_module:score", "", 2, "RecipeError"),
            ("without a colon", ("--metric", "package.module:callable"), "score", "", 2, "RecipeError"),
            ("not in the module", ("--metric", "score"), "bad_metric:score", "", 2, "RecipeError"),
            ("not callable", ("--metric", "no callable"), "bad_metric:score", "score = 3\n", 2, "RecipeError"),
            ("that does not parse", ("--metric", "bad_metric"), "bad_metric:score", "def (:\n", 2, "RecipeError"),
            ("that raises", ("bad_metric:score", "boom"), "bad_metric:score",
             "def score(outputs, labels):\n    raise RuntimeError('boom')\n", 2, "RecipeError"),
            ("that gives NaN", ("bad_metric:score", "nan"), "bad_metric:score",
             "def score(outputs, labels):\n    return float('nan')\n", 2, "RecipeError"),
            ("that gives an array", ("bad_metric:score", "number"), "bad_metric:score",
             "def score(outputs, labels):\n    return outputs\n", 2, "RecipeError"),
            ("that gives nothing", ("bad_metric:score", "number"), "bad_metric:score",
             "def score(outputs, labels):\n    pass\n", 2, "RecipeError"),
        )
    ),
    Kind("metric without data", ("--metric needs labels", "--data"), EXPORT + "--metric math:hypot"),
    Kind("metric without labels or promise", ("--metric needs labels",), EXPORT + "--data bad.npz --metric math:hypot",
         samples(x=BIG)),
    Kind("promise of points for numbers", ("--max-drop", "numeric", "--max-relative-error"),
         "export near.onnx --target raspberry-pi --precision fp16 --data near.npz --max-drop 1 --task numeric --out {out}"),
    Kind("infinite error under a promise of points", ("relative",), EXPORT + "--precision fp16 --data bad.npz --max-drop 1",
         lambda folder: (file("m.onnx", from_nothing().SerializeToString())(folder),
                         samples(x=BIG[:, :3], labels=np.zeros(200, np.int64))(folder))[0], 3, "ContractBroken"),
    Kind("metric without labels", ("--metric needs labels",), EXPORT + "--data bad.npz --max-drop 1 --metric math:hypot",
         samples(x=BIG)),
    Kind("parity broken", ("pass half moved output 'y'", "allowed: 1e-07", "--max-relative-error"),
         EXPORT + "--precision fp16 --max-relative-error 1e-7", code=3, error="ContractBroken"),
    Kind("parity broken on data", ("relative", "1e-07"),
         EXPORT + "--precision fp16 --data check.npz --max-relative-error 1e-7", code=3, error="ContractBroken"),
    Kind("accuracy broken", ("top-1 accuracy drops", "promised at most 1", "n=200", "larger --max-drop"),
         "export near.onnx --target raspberry-pi --precision fp16 --data near.npz --max-drop 1 --out {out}", code=3,
         error="ContractBroken"),
    Kind("agreement broken", ("top-1 agreement drops", "promised at most 1"),
         "export near.onnx --target raspberry-pi --precision fp16 --data bad.npz --task classify --max-drop 1 --out {out}",
         lambda folder: np.savez(folder / "bad.npz", x=np.load(folder / "near.npz")["x"]), 3, "ContractBroken"),
)  # fmt: skip

DEVICES = (
    Kind("larger than the board", ("raspberry-pi-zero-2-w does not fit", "need", "have 386.9 MB", "more memory"),
         "export m.onnx --device raspberry-pi-zero-2-w --out {out}", model(large_weights), error="DoesNotFit",
         outs=("new.edge",)),
    Kind("dynamic on jetson", ("jetson", "'x'", "'batch'", "--shape"), "export dynamic.onnx --target jetson --out {out}",
         error="Unsupported"),
    Kind("operator jetson lacks", ("'odd'", "Det", "no such operator"), "export m.onnx --target jetson --out {out}",
         model(lambda: graph_model([node("Det", "x", "y", "odd")],
                                   inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 3])],
                                   outputs=[helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])])), error="Unsupported"),
    Kind("operator ONNX Runtime lacks", ("ONNX Runtime",), make=model(lambda: graph_model(
        [node("Det", "x", "y", "odd")], inputs=[helper.make_tensor_value_info("x", TensorProto.DOUBLE, [1, 3, 3])],
        outputs=[helper.make_tensor_value_info("y", TensorProto.DOUBLE, [1])]))),
    Kind("jetson bundle run here", ("TensorrtExecutionProvider", "CPUExecutionProvider", "--allow-fallback"),
         "run jetson.edge --inputs x.npz", error="DeviceError"),
    Kind("jetson bundle measured here", ("TensorrtExecutionProvider", "--allow-fallback"), "measure jetson.edge",
         error="DeviceError"),
    Kind("jetson bundle built here", ("TensorrtExecutionProvider",), "build jetson.edge", error="DeviceError"),
)  # fmt: skip


def place_link(to: str) -> Make:
    def make(folder: Path) -> None:
        (folder / "taken").symlink_to(to)

    return make


PLACES = (
    Kind("out is a file", ("taken exists", "not an edgesdk bundle", "--out"), "export m.onnx --target server --out taken",
         file("taken", "mine"), error="BundleError"),
    Kind("out is the model", ("m.onnx exists", "left alone"), "export m.onnx --target server --out m.onnx", error="BundleError"),
    Kind("out is a directory", ("taken exists", "not an edgesdk bundle"), "export m.onnx --target server --out taken",
         lambda folder: ((folder / "taken").mkdir(), file("taken/mine", "mine")(folder))[1], error="BundleError"),
    Kind("out is here", ("not an edgesdk bundle",), "export m.onnx --target server --out .", error="BundleError"),
    *(
        Kind(f"out is a link {what}", ("is a link", "--out"), "export m.onnx --target server --out taken", place_link(to),
             error="BundleError")
        for what, to in (("to a bundle", "older.edge"), ("to nothing", "nowhere"), ("to a file", "x.npz"))
    ),
    Kind("out without parent", ("no/where does not exist", "create it"), "export m.onnx --target server --out no/where/new.edge",
         error="BundleError"),
    Kind("out below a file", ("m.onnx is a file", "--out"), "export m.onnx --target server --out m.onnx/new.edge",
         error="BundleError"),
    Kind("out in the kernel", ("/proc", "cannot be written"), "export m.onnx --target server --out /proc/new.edge",
         error="BundleError"),
    Kind("out name too long", ("too long",), f"export m.onnx --target server --out {'n' * 300}.edge", error="BundleError"),
    Kind("out name just too long", ("too long",), f"export m.onnx --target server --out {'n' * 245}.edge", error="BundleError"),
    Kind("report is a directory", ("new.report.json", "directory"), "export m.onnx --target server --out new.edge",
         lambda folder: (folder / "new.report.json").mkdir(), error="BundleError"),
    Kind("report is a file of another kind", ("new.report.json", "left alone"), "export m.onnx --target server --out new.edge",
         file("new.report.json", '{"mine": 1}'), error="BundleError"),
    Kind("old report is a directory", ("older.report.json", "directory"), "export m.onnx --target server --out older.edge",
         lambda folder: ((folder / "older.report.json").unlink(), (folder / "older.report.json").mkdir())[1],
         error="BundleError"),
)  # fmt: skip

RUNS = (
    Kind("inputs missing", ("none.npz", "cannot be read"), "run older.edge --inputs none.npz"),
    Kind("inputs are text", ("no .npz file", "numpy.savez"), "run older.edge --inputs bad.npz", file("bad.npz", "1 2 3")),
    Kind("inputs are one .npy", ("no .npz file", "numpy.savez"), "run older.edge --inputs bad.npz",
         lambda folder: file("bad.npz", npy_header((0,)))(folder)),
    Kind("inputs declare a terabyte", ("bad.npz",), "run older.edge --inputs bad.npz", archive(x__npy=npy_header((2**38,)))),
    Kind("input of another name", ("missing 'x'", "unknown 'image'", "takes 'x'"), "run older.edge --inputs bad.npz",
         samples(image=BIG[:1])),
    Kind("input left out", ("missing 'x'", "takes 'x'"), "run older.edge --inputs bad.npz", samples()),
    Kind("input too many", ("unknown 'z'", "takes 'x'"), "run older.edge --inputs bad.npz", samples(x=BIG[:1], z=BIG)),
    Kind("input of another shape", ("'x'", "(2, 8)", "(1, 8)"), "run older.edge --inputs bad.npz", samples(x=BIG[:2])),
    Kind("input of another type", ("'x'", "float64", "float32", "astype"), "run older.edge --inputs bad.npz",
         samples(x=np.ones((1, 8)))),
    Kind("raw input of text", ("'x'",), "run older.edge --raw --inputs bad.npz", samples(x=np.full((1, 8), "a"))),
    Kind("input no array", ("'x'",), "run older.edge --inputs bad.npz", archive(x=b"hello")),
    Kind("outputs without parent", ("no/y.npz", "cannot be written"), "run older.edge --inputs x.npz --outputs no/y.npz",
         error="BundleError"),
    Kind("outputs over a directory", ("jetson.edge", "cannot be written"),
         "run older.edge --inputs x.npz --outputs jetson.edge", error="BundleError"),
    Kind("measured on nonsense", ("'the moon'", "allowed: local"), "measure older.edge --on 'the moon'", error="DeviceError"),
    Kind("measured without labels", ("no labels", "add an array"), "measure older.edge --runs 2 --data x.npz", error="EdgeError"),
    Kind("measured on other data", ("(200, 5)",), "measure older.edge --runs 2 --data bad.npz",
         samples(x=np.ones((200, 5), np.float32))),
    Kind("report of a measurement without parent", ("no/r.json", "cannot be written"),
         "measure older.edge --runs 2 --out no/r.json", error="BundleError"),
    *(
        Kind(f"layer list {what}", ("bad.json", "layer list"), "estimate bad.json --device raspberry-pi-4",
             file("bad.json", text))
        for what, text in (
            ("broken", '{"layers": [1]}'),
            ("that is a list", "[]"),
            ("of text", "layers"),
            ("nested without end", "[" * 99999),
            ("with infinite work", '{"layers": [{"name": "a", "kind": "conv", "macs": 1e999}]}'),
            ("with negative work", '{"layers": [{"name": "a", "kind": "conv", "macs": -5}]}'),
            ("without layers", '{"layers": []}'),
        )
    ),
    Kind("estimate without static shapes", ("--shape",), "estimate dynamic.onnx --device raspberry-pi-4"),
    Kind("estimate of an unknown precision", ("'int3'", "fp32, fp16"), "estimate m.onnx --device raspberry-pi-4 --precision int3",
         error="TargetError"),
    Kind("inspect nothing", ("nowhere", "does not exist"), "inspect nowhere.onnx"),
    Kind("unknown device's facts", ("'nope'", "raspberry-pi-4"), "devices nope", error="DeviceError"),
)  # fmt: skip

VERBS = ("verify {}", "run {} --inputs x.npz", "measure {} --runs 2", "build {}", "inspect {}")
DAMAGED = tuple(
    Kind(f"{verb.split()[0]} {what}", says, verb.format(name), make, error="BundleError")
    for verb in VERBS
    for what, says, name, make in (
        ("a changed payload", ("model.onnx was changed", "copy the bundle again"), "older.edge",
         damage("older.edge/model.onnx", flip)),
        ("a cut payload", ("model.onnx has", "were written"), "older.edge",
         damage("older.edge/model.onnx", lambda data: data[:-1])),
        ("a changed manifest", ("manifest.json was changed",), "older.edge",
         manifest(lambda data: data.update(device="raspberry-pi-5"))),
        ("another format", ("'edgesdk-bundle/9'", "'edgesdk-bundle/1'", "export anew"), "older.edge",
         manifest(lambda data: data.update(format="edgesdk-bundle/9"))),
        ("a missing file", ("'model.onnx' is missing",), "older.edge",
         lambda folder: (folder / "older.edge/model.onnx").unlink()),
        ("an extra file", ("'notes.txt' is not part", "remove it"), "older.edge", file("older.edge/notes.txt", "hi")),
        ("a link in it", ("link",), "older.edge", lambda folder: (folder / "older.edge/more").symlink_to("model.onnx")),
        ("an empty directory", ("manifest.json",), "new.edge", lambda folder: (folder / "new.edge").mkdir()),
        ("a text file", ("no intact zip archive",), "text.edge", file("text.edge", "hello")),
        ("a path that is not there", ("nowhere.edge does not exist",), "nowhere.edge", nothing),
        ("a cut archive", ("no intact zip archive",), "older.zip", damage("older.zip", lambda data: data[:-30])),
        ("a changed archive", ("older.zip",), "older.zip", damage("older.zip", flip)),
        ("a manifest with NaN", ("manifest.json",), "older.edge", manifest(lambda data: data.update(device=float("nan")))),
        ("a manifest nested without end", ("manifest.json",), "older.edge", file("older.edge/manifest.json", "[" * 99999)),
        ("a manifest of binary", ("manifest.json",), "older.edge", file("older.edge/manifest.json", GARBAGE)),
        ("a name too long", ("too long",), "n" * 300 + ".edge", nothing),
    )
)  # fmt: skip

KINDS = (*MODEL_FILES, *TORCH_MODELS, *CHOICES, *DATA, *DEVICES, *PLACES, *RUNS, *DAMAGED)


def check(result: Result, kind: Kind) -> None:
    assert result.code == kind.code, f"exit {result.code}:\n{result.err}{result.out}"
    error = result.error
    assert error["kind"] == kind.error, error[0]
    for word in kind.says:
        assert word in error[0], f"{word!r} is not in: {error[0]}"
    assert error["hint"] or _ALLOWED.search(error["message"]), f"neither hint nor what is allowed: {error[0]}"
    assert len(error[0]) < 700, error[0]
    assert "Warning" not in result.err, result.err
    assert result.out == "", f"stdout: {result.out}"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_bad_input_gets_one_line_and_changes_nothing(kind: Kind, folder: Path) -> None:
    kind.make(folder)
    before = tree(folder)
    for out in kind.outs if "{out}" in kind.command else ("",):
        check(run_here(kind.command.format(out=out), folder), kind)
        assert tree(folder) == before, "the folder was changed"


def test_there_are_many_kinds_and_each_has_its_own_name() -> None:
    names = [kind.name for kind in KINDS]
    assert len(names) == len(set(names))
    assert len(KINDS) > 150


APART = ("missing file", "random bytes", "no target", "accuracy broken", "out is a file", "run a changed payload",
         "module that raises", "project with an unknown name", "jetson bundle run here")  # fmt: skip


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.name in APART], ids=lambda kind: kind.name)
def test_a_process_of_its_own_answers_the_same(kind: Kind, folder: Path) -> None:
    kind.make(folder)
    before = tree(folder)
    check(run_apart(kind.command.format(out="older.edge"), folder), kind)
    assert tree(folder) == before


USAGE = {
    "no such verb": ("exprot m.onnx", "No such command 'exprot'"),
    "unknown option": ("export m.onnx --tragte jetson", "No such option '--tragte'"),
    "option without value": ("export m.onnx --target", "requires an argument"),
    "argument missing": ("verify", "Missing argument 'BUNDLE'"),
    "option missing": ("run older.edge", "Missing option '--inputs'"),
    "argument too many": ("verify older.edge other.edge", "unexpected extra argument"),
    "word for a number": ("export m.onnx --target server --max-drop little", "not a valid float"),
    "unknown task": ("export m.onnx --target server --task sort", "'classify'"),
    "no runs": ("measure older.edge --runs 0", "x>=1"),
    "negative threads": ("run older.edge --inputs x.npz --threads -1", "0<=x<=1024"),
    "threads without end": ("run older.edge --inputs x.npz --threads 100000", "0<=x<=1024"),
}


@pytest.mark.parametrize("name", USAGE)
def test_wrong_usage_is_one_message_and_exit_2(name: str, folder: Path) -> None:
    command, says = USAGE[name]
    before = tree(folder)
    result = run_here(command, folder)
    assert result.code == 2
    assert result.err.startswith(("Usage: edgesdk", "Error: "))
    assert result.err.count("Error: ") == 1
    assert says in result.err, result.err
    assert result.out == ""
    assert tree(folder) == before


def test_an_unreadable_model_says_so(folder: Path) -> None:
    (folder / "m.onnx").chmod(0)
    result = run_apart(EXPORT.format(out="new.edge"), folder, obeying=True)
    check(result, Kind("", ("m.onnx cannot be read", "Permission denied", "permissions")))
    assert not (folder / "new.edge").exists()


@pytest.mark.parametrize("command", ["export shut/m.onnx --target server", "verify shut/older.edge", "inspect shut/m.onnx",
                                     "run older.edge --inputs shut/x.npz", "export m.onnx --target server --data shut/x.npz",
                                     "export m.onnx --target server --out shut/new.edge", "verify older.edge",
                                     "export m.onnx --target server --recipe shut/r.toml"])  # fmt: skip
def test_a_directory_that_may_not_be_entered_says_so(folder: Path, command: str) -> None:
    (folder / "shut").mkdir(mode=0)
    (folder / "older.edge").chmod(0)
    result = run_apart(command, folder, obeying=True)
    (folder / "shut").chmod(0o755)
    (folder / "older.edge").chmod(0o755)
    assert result.code in (1, 2)
    assert "Permission denied" in result.error[0] or "cannot be" in result.error[0]


@pytest.mark.parametrize("out", ["older.edge", "new.edge", "new.zip"])
def test_a_directory_that_may_not_be_written_is_refused_before_any_work(folder: Path, out: str) -> None:
    folder.chmod(0o555)
    before = tree(folder)
    result = run_apart(EXPORT.format(out=out), folder, obeying=True)
    check(result, Kind("", ("cannot be written", "--out"), error="BundleError"))
    assert result.err.count("\n") == 1, "it worked first and looked later"
    assert tree(folder) == before
    folder.chmod(0o755)


@pytest.mark.parametrize("out", ["older.edge", "new.edge", "new.zip"])
def test_a_read_only_disk_is_refused(folder: Path, mounted: Callable[[str], Path], out: str) -> None:
    disk = mounted("size=10m,mode=755")
    shutil.copytree(folder / "older.edge", disk / "older.edge")
    os.system(f"mount -o remount,ro {disk}")
    before = tree(disk)
    check(run_here(EXPORT.format(out=disk / out), folder), Kind("", ("cannot be written", "--out"), error="BundleError"))
    assert tree(disk) == before


@pytest.mark.parametrize("older", [True, False], ids=["over an older bundle", "new"])
@pytest.mark.parametrize("end", [".edge", ".zip"])
def test_a_disk_that_fills_up_leaves_the_older_bundle_or_none(
    folder: Path, mounted: Callable[[str], Path], older: bool, end: str
) -> None:
    """Inodes run out before bytes do: that cannot be foreseen, so it is met at every step of writing."""
    outcomes = []
    for inodes in range(2, 24):
        disk = mounted(f"size=10m,nr_inodes={inodes}")
        out = disk / f"b{end}"
        if older:
            source = folder / f"older{end}"
            try:
                shutil.copytree(source, out) if source.is_dir() else shutil.copy(source, out)
                shutil.copy(folder / "older.report.json", disk / "b.report.json")
            except OSError:
                continue
        before = tree(disk)
        result = run_here(f"export m.onnx --target server --out {out}", folder)
        outcomes.append(result.code)
        if result.code == 0:
            assert run_here(["verify", str(out)], folder).code == 0
            assert sorted(place.name for place in disk.iterdir()) == sorted([f"b{end}", "b.report.json"])
            if outcomes.count(0) == 2:
                break
        else:
            check(result, Kind("", ("cannot be written", "free space"), error="BundleError"))
            assert tree(disk) == before
    assert {0, 1} <= set(outcomes), "both a full and a sufficient disk must have been met"


def test_a_full_disk_says_how_much_is_missing(folder: Path, mounted: Callable[[str], Path]) -> None:
    disk = mounted("size=16k")
    check(run_here(EXPORT.format(out=disk / "new.edge"), folder), Kind("", ("No space left", "MB"), error="BundleError"))
    assert tree(disk) == {}


def test_output_to_a_full_disk_is_one_line(folder: Path) -> None:
    import subprocess
    import sys

    for verb in (["devices"], ["verify", "older.edge"], ["inspect", "m.onnx", "--json"]):
        with open("/dev/full", "w") as full:
            done = subprocess.run([sys.executable, "-m", "edgesdk.cli", *verb], cwd=folder, stdout=full,
                                  stderr=subprocess.PIPE, text=True, check=False)  # fmt: skip
        assert done.returncode == 1
        assert "No space left" in Result(1, "", done.stderr).error[0]


def test_a_name_that_is_no_utf8_is_handled(folder: Path) -> None:
    name = os.fsdecode(b"m\xff.onnx")
    shutil.copy(folder / "m.onnx", folder / name)
    before = tree(folder)
    result = run_apart(["export", name, "--target", "server", "--out", "new.edge"], folder)
    if result.code == 0:
        assert run_apart(["verify", "new.edge"], folder).code == 0
    else:
        assert "UTF-8" in result.error[0]
        assert tree(folder) == before
    missing = run_apart(["export", os.fsdecode(b"no\xff.onnx"), "--target", "server"], folder)
    assert missing.code == 1
    assert missing.error["kind"] == "ModelError"


def test_fallback_runs_and_warns_in_one_line(folder: Path) -> None:
    result = run_apart(["run", "jetson.edge", "--inputs", "x.npz", "--allow-fallback"], folder)
    assert result.code == 0
    assert "ran on onnxruntime" in result.out
    warned = [line for line in result.err.splitlines() if "TensorrtExecutionProvider" in line]
    assert "CPUExecutionProvider" in warned[-1]
    assert [line.startswith("edgesdk: warning: ") for line in warned].count(True) == 1
    assert ".py" not in result.err


def test_a_bundle_without_plan_has_nothing_to_build(folder: Path) -> None:
    result = run_here(["build", "older.edge"], folder)
    assert result.code == 0
    assert "nothing to build" in result.out
