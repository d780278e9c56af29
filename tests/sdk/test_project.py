"""edgesdk.toml: what it may say, what is typed over it, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgesdk import project
from edgesdk.arguments import estimate_arguments, export_arguments, parse_settings
from edgesdk.sources import parse_constants, parse_shapes
from edgesdk_converters.errors import DeviceError, RecipeError
from edgesdk_converters.signature import Preprocess

NOTHING: dict[str, Any] = dict.fromkeys(
    ("target", "device", "precision", "recipe", "io_file", "weights", "data", "train", "max_drop", "max_slice_drop",
     "max_relative_error", "task", "metric", "out", "on", "qat", "prune", "low_rank", "split", "bottleneck", "server", "link")
) | {"finetune": 0, "train_on": "cpu", "payload_bits": 32, "head_share": 0.25, "tail_target": "server",
     "settings": (), "shapes": (), "constants": ()}  # fmt: skip
FULL = """
model = "net.onnx"
data = "check.npz"
train = "data/train.npz"
recipe = "all.toml"
task = "classify"
max_drop = 1
max_relative_error = 0.5
metric = "mine:score"
shapes = {x = [1, 3, 224, 224]}
constants = {rate = 16000}

[io.inputs.x]
layout = "NCHW"
scale = 0.5

[target.jetson]
device = "jetson-orin-nx"
precision = "fp16"
recipe = "jetson.toml"
out = "out/net.edge"
set = {builder_level = 4, dla = true, "half.headroom" = 8.0}

[target.raspberry-pi]
precision = "fp16"
"""


def _write(folder: Path, text: str) -> Path:
    (folder / project.NAME).write_text(text)
    return folder


def test_a_folder_without_the_file_says_nothing(tmp_path: Path) -> None:
    assert project.load(tmp_path) == project.Project()


def test_a_directory_of_that_name_says_nothing(tmp_path: Path) -> None:
    (tmp_path / project.NAME).mkdir()
    assert project.load(tmp_path) == project.Project()


def test_every_field_is_read(tmp_path: Path) -> None:
    said = project.load(_write(tmp_path, FULL))
    assert said.max_drop == 1.0
    assert said.shapes == {"x": (1, 3, 224, 224)}
    assert said.constants == {"rate": 16000.0}
    assert said.io.inputs["x"] == Preprocess(layout="NCHW", scale=0.5)
    assert said.target["jetson"].set == {"builder_level": 4, "dla": True, "half.headroom": 8.0}


def test_the_section_of_the_target_that_was_typed_counts(tmp_path: Path) -> None:
    model, arguments, out = export_arguments(None, NOTHING | {"target": "jetson"}, _write(tmp_path, FULL))
    assert model == str(tmp_path / "net.onnx")
    assert out == tmp_path / "out/net.edge"
    assert arguments["device"] == "jetson-orin-nx"
    assert arguments["precision"] == "fp16"
    assert arguments["recipe"] == tmp_path / "jetson.toml"
    assert arguments["data"] == tmp_path / "check.npz"
    assert arguments["settings"] == {"builder_level": "4", "dla": "true", "half.headroom": "8.0"}
    assert (arguments["max_drop"], arguments["task"], arguments["metric"]) == (1.0, "classify", "mine:score")


def test_the_section_of_another_target_does_not_count(tmp_path: Path) -> None:
    _, arguments, out = export_arguments(None, NOTHING | {"target": "server"}, _write(tmp_path, FULL))
    assert (arguments["device"], arguments["precision"], arguments["settings"], out) == (None, "", {}, None)
    assert arguments["recipe"] == tmp_path / "all.toml"


def test_a_device_that_was_typed_finds_its_targets_section(tmp_path: Path) -> None:
    _, arguments, _ = export_arguments(None, NOTHING | {"device": "raspberry-pi-5"}, _write(tmp_path, FULL))
    assert (arguments["device"], arguments["precision"]) == ("raspberry-pi-5", "fp16")


def test_what_is_typed_wins_one_by_one(tmp_path: Path) -> None:
    typed = NOTHING | {
        "target": "jetson", "device": "jetson-orin-nano", "precision": "fp32", "recipe": Path("r.toml"), "data": Path("d.npz"),
        "train": Path("t.npz"), "max_drop": 0.0, "max_relative_error": 0.0, "task": "auto", "metric": "other:score",
        "out": Path("o.edge"), "settings": ("builder_level=1",), "shapes": ("y=1x2",), "constants": ("rate=8000",),
    }  # fmt: skip
    model, arguments, out = export_arguments("other.onnx", typed, _write(tmp_path, FULL))
    assert (model, out) == ("other.onnx", Path("o.edge"))
    for name in ("device", "precision", "recipe", "data", "train", "max_drop", "max_relative_error", "task", "metric"):
        assert arguments[name] == typed[name], name
    assert arguments["settings"] == {"builder_level": "1", "dla": "true", "half.headroom": "8.0"}
    assert arguments["shapes"] == {"x": (1, 3, 224, 224), "y": (1, 2)}
    assert arguments["constants"] == {"rate": 8000.0}


def test_processing_that_was_typed_wins(tmp_path: Path) -> None:
    (tmp_path / "io.toml").write_text("[inputs.x]\nscale = 2.0\n")
    typed = NOTHING | {"target": "server", "io_file": tmp_path / "io.toml"}
    _, arguments, _ = export_arguments(None, typed, _write(tmp_path, FULL))
    assert arguments["processing"].inputs["x"].scale == 2.0


def test_weights_belong_to_the_model_of_the_file(tmp_path: Path) -> None:
    _write(tmp_path, 'model = "package.module:make"\nweights = "w.safetensors"\n')
    model, arguments, _ = export_arguments(None, NOTHING | {"target": "server"}, tmp_path)
    assert (model, arguments["weights"]) == ("package.module:make", tmp_path / "w.safetensors")
    _, arguments, _ = export_arguments("other.onnx", NOTHING | {"target": "server"}, tmp_path)
    assert arguments["weights"] is None


def test_an_estimate_leaves_out_what_is_said_of_passes(tmp_path: Path) -> None:
    model, arguments = estimate_arguments(
        None, NOTHING | {"target": "jetson", "threads": 2, "runtime": "", "fit": None}, _write(tmp_path, FULL)
    )
    assert model == str(tmp_path / "net.onnx")
    assert arguments == {
        "target": "jetson", "device": "jetson-orin-nx", "precision": "fp16", "settings": {"builder_level": "4", "dla": "true"},
        "shapes": {"x": (1, 3, 224, 224)}, "threads": 2, "runtime": "", "fit": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model = ", "not valid TOML"),
        ('modle = "a"', "'modle'"),
        ("model = 3", "text"),
        ('max_drop = "1"', "max_drop"),
        ("max_drop = true", "max_drop"),
        ('shapes = {x = "1x3"}', "shapes"),
        ('task = "sort"', "classify"),
        ('[io.inputs.x]\nlayout = "CHW"', "NCHW"),
        ("[target]\njetson = 1", "table"),
        ('[target.jetson]\nprecison = "fp16"', "'precison'"),
        ("[target.jetson.set]\ndla = [1]", "dla"),
        ('[target.jetsn]\nprecision = "fp16"', "known: raspberry-pi, jetson, fpga, server"),
    ],
)
def test_what_it_does_not_know_is_refused_by_name(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        project.load(_write(tmp_path, text))
    assert project.NAME in caught.value.message
    assert says in caught.value.message


def test_no_model_at_all_says_how_to_give_one(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no model given, and no edgesdk\.toml here names one"):
        export_arguments(None, NOTHING | {"target": "server"}, tmp_path)


def test_an_unknown_device_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="unknown device"):
        export_arguments("m.onnx", NOTHING | {"device": "toaster"}, tmp_path)


def test_typed_pairs_keep_equals_signs_where_they_belong() -> None:
    assert parse_settings(["a=b=c", "p.q="]) == {"a": "b=c", "p.q": ""}
    assert parse_shapes(["a=b=1x2", "s=7", "t=1X2"]) == {"a=b": (1, 2), "s": (7,), "t": (1, 2)}
    assert parse_constants(["a=b=1e3", "c=-2"]) == {"a=b": 1000.0, "c": -2.0}


@pytest.mark.parametrize("text", ["", "=", "x", "x=", "=1x2", "x=1x", "x=-1x2", "x=1.5", "x=1x²"])
def test_a_malformed_shape_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="INPUT=1x3x224x224"):
        parse_shapes([text])


@pytest.mark.parametrize("text", ["", "=", "x", "x=", "=1", "x=one", "x=nan", "x=inf"])
def test_a_malformed_constant_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="INPUT=NUMBER"):
        parse_constants([text])


@pytest.mark.parametrize("text", ["", "=", "x", "=1"])
def test_a_malformed_setting_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="NAME=VALUE"):
        parse_settings([text])
