"""edgesdk inspect --sensitivity and --against."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import edgesdk
from edgesdk.cli import cli
from edgesdk_converters.errors import ModelError
from edgesdk_converters.model import Model
from edgesdk_converters.quantize import weighted

from ..fashion import samples

NETS = Path(__file__).parents[2] / "examples" / "fashion"
CNN = NETS / "fashion_cnn.onnx"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "check.npz"
    np.savez(path, **samples("t10k", 0, 48))
    return path


def test_every_weighted_layer_is_told_with_its_rank_noise_and_accuracy(data: Path) -> None:
    found = edgesdk.inspect(CNN, sensitivity=True, data=data)["sensitivity"]
    names = [row["layer"] for row in found["layers"]]
    assert len(names) == len(weighted(Model.load(CNN))) > 2
    assert sorted(row["rank"] for row in found["layers"]) == list(range(1, len(names) + 1))
    assert (found["flavour"], found["samples"], found["synthetic"]) == ("u8s8", 48, False)
    for row in found["layers"]:
        assert 10 < row["output_sqnr_db"] < 80
        assert row["accuracy"] > 0.8 and row["agreement"] > 0.9
        assert row["weight_range"][0] < 0 < row["weight_range"][1]


def test_a_target_brings_its_own_integers() -> None:
    found = edgesdk.inspect(CNN, sensitivity=True, device="jetson-orin-nano")["sensitivity"]
    assert found["flavour"] == "tensorrt"
    assert found["synthetic"] and "random" in found["origin"]
    assert all(row["accuracy"] is None for row in found["layers"])


def test_a_bundle_is_held_against_its_source(tmp_path: Path) -> None:
    same, half = tmp_path / "same.edge", tmp_path / "half.edge"
    edgesdk.export(CNN, device="raspberry-pi-4", out=same)
    edgesdk.export(CNN, device="jetson-orin-nano", precision="fp16", out=half)
    found = edgesdk.inspect(CNN, against=same)["against"]
    assert found["first"] is None and max(row["relative_error"] for row in found["tensors"]) <= 1e-5
    found = edgesdk.inspect(CNN, against=half)["against"]
    assert 1e-5 < max(row["relative_error"] for row in found["tensors"]) < 1e-2


def test_the_first_tensor_that_parts_is_named(tmp_path: Path) -> None:
    import onnx
    from onnx import numpy_helper

    proto = onnx.load(CNN)
    broken = weighted(Model.load(CNN))[1]
    node = next(n for n in proto.graph.node if n.name == broken)
    tensor = next(t for t in proto.graph.initializer if t.name == node.input[1])
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.5), tensor.name))
    onnx.save(proto, tmp_path / "other.onnx")
    found = edgesdk.inspect(CNN, against=tmp_path / "other.onnx")["against"]
    assert found["first"] == node.output[0]


def test_the_command_prints_a_table_and_json(data: Path) -> None:
    plain = CliRunner().invoke(cli, ["inspect", str(CNN), "--sensitivity", "--data", str(data)])
    assert plain.exit_code == 0, plain.output
    assert "rank 1 costs most" in plain.output and "dB at end" in plain.output and "accuracy" in plain.output
    told = CliRunner().invoke(cli, ["inspect", str(CNN), "--sensitivity", "--data", str(data), "--json"])
    found: dict[str, Any] = json.loads(told.stdout)
    assert [row["rank"] for row in found["sensitivity"]["layers"]]


def test_a_bundle_has_no_layers_to_quantise(tmp_path: Path) -> None:
    path = tmp_path / "a.edge"
    edgesdk.export(CNN, device="raspberry-pi-4", out=path)
    with pytest.raises(ModelError, match="bundle"):
        edgesdk.inspect(path, sensitivity=True)
