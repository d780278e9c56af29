"""Every flavour of integers through the whole export, on every CPU target; and every real model's integers for a Jetson."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest

from edgesdk.exporting import prepare
from edgesdk_converters.model import Model
from edgesdk_targets.jetson_quantisation import audit, violations

from ..fashion import samples
from .test_real_models import CONSTANTS, MODELS, QUICK, SHAPES, data_of, example

NETS = Path(__file__).parents[2] / "examples" / "fashion"
FLAVOURS = {
    "u8s8": ("int8", {"flavour": "u8s8"}),
    "u8s8 of 7 bits": ("int8", {"flavour": "u8s8", "reduce_range": "true"}),
    "s8s8": ("int8", {"flavour": "s8s8"}),
    "qoperator": ("int8", {"flavour": "qoperator"}),
    "fixed": ("int8", {"flavour": "fixed"}),
    "fixed of 12 bits": ("int8", {"flavour": "fixed", "bits": "12"}),
    "weights": ("w8", {"flavour": "weights"}),
    "stored": ("w8", {"flavour": "stored"}),
    "stored in 5 bits": ("w8", {"flavour": "stored", "bits": "5"}),
}


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    return {"data": samples("t10k", 0, 200), "train": samples("train", 0, 64)}


@pytest.fixture(scope="module")
def real_models() -> ModuleType:
    return example("real_models")


@pytest.mark.parametrize("target", ["server", "raspberry-pi"])
@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("net", ["cnn", "mobilenet"])
def test_every_flavour_runs_where_it_is_for(net: str, flavour: str, target: str, data: dict[str, Any]) -> None:
    if (net, flavour) == ("mobilenet", "u8s8") and target == "server":
        data = data | {"max_drop": 5.0}  # a CPU without VNNI saturates
    precision, options = FLAVOURS[flavour]
    settings = {f"quantize.{key}": value for key, value in options.items()} | {"quantize.repair": "false"}
    path = NETS / f"fashion_{net}.onnx"
    made = prepare(path, target=target, precision=precision, settings=settings, **({"max_drop": 2.0} | data))
    assert made.report.contract.status == "passed"
    assert len(made.files["model.onnx"]) < 0.62 * path.stat().st_size


@pytest.mark.parametrize("name", QUICK)
def test_the_integers_of_real_models_break_no_rule_of_tensorrt(real_models: ModuleType, name: str) -> None:
    made = prepare(
        MODELS / f"{name}.onnx", device="jetson-orin-nano", precision="int8", shapes=SHAPES.get(name),
        constants=CONSTANTS.get(name), train=data_of(real_models, name), max_relative_error=2.0,
        settings={"quantize.repair": "false"},
    )  # fmt: skip
    shipped = Model.from_proto(onnx.load_from_string(made.files["model.onnx"]), name)
    assert violations(shipped) == []
    assert audit(shipped)["int8"] > audit(shipped)["float"]
