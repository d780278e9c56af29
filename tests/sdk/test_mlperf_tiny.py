"""MLPerf Tiny's four networks compute what Keras computes from the same files, and become bundles with their labels."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime as ort
import pytest

import edgesdk

from .test_real_models import MODELS, example

# By Keras 3.15 (torch back end) from the package's .h5 files, the first of the sample inputs, first values of the softmax or output.
KERAS = {
    "resnet8": (0.03058737, 0.00341004, 0.6894462, 0.20830989),
    "ds-cnn": (0.01644448, 0.5707425, 0.0075279, 0.01934347),
    "mobilenet-vww": (0.0365418, 0.9634582),
    "autoencoder": (82.80173, 97.76755, 94.220955, 84.26486),
}
MACS = {"resnet8": 12_501_632, "ds-cnn": 2_656_768, "mobilenet-vww": 7_489_664, "autoencoder": 264_192}


@pytest.fixture(scope="module")
def real_models() -> ModuleType:
    return example("real_models")


@pytest.mark.parametrize("name", KERAS)
def test_outputs_are_those_of_keras(real_models: ModuleType, name: str) -> None:
    session = ort.InferenceSession(MODELS / f"{name}.onnx", providers=["CPUExecutionProvider"])
    (got,) = session.run(None, real_models.sample_inputs(name, 1, 0)[0])
    if name != "autoencoder":
        got = np.exp(got - got.max()) / np.exp(got - got.max()).sum()
    np.testing.assert_allclose(got.ravel()[: len(KERAS[name])], KERAS[name], rtol=1e-4)


@pytest.mark.parametrize("name", MACS)
def test_they_do_the_work_of_the_benchmarks_networks(name: str) -> None:
    assert edgesdk.inspect(MODELS / f"{name}.onnx")["costs"]["macs"] == pytest.approx(MACS[name], rel=0.01)


def test_a_raw_image_gets_a_label(real_models: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "resnet8.edge"
    edgesdk.export(MODELS / "resnet8.onnx", device="raspberry-pi-4", out=path)
    with edgesdk.load(path) as session:
        best = session.top(session.run({"input_1": real_models.photo_pixels()}, raw=True), 1)[0]
    assert best[0] in ("bird", "frog", "deer", "airplane"), "a flower is none of CIFAR-10's classes, but no car either"
    assert 0.1 < best[1] <= 1
