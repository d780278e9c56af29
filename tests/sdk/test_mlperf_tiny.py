"""MLPerf Tiny's four networks compute what Keras computes from the same files, and become bundles with their labels."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime as ort
import pytest

import edgesdk

from .test_real_models import MODELS, example

# By Keras 3 (torch back end) from the package's .h5 files, for the first of the sample inputs: first values of softmax or output.
KERAS = {
    "resnet8": (2.1128120e-08, 5.4148249e-03, 1.3773364e-05, 2.6821959e-04),
    "ds-cnn": (0.01644448, 0.5707425, 0.0075279, 0.01934347),
    "mobilenet-vww": (0.27822062, 0.7217794),
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


def test_persons_are_told_from_things_and_cats(real_models: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "vww.edge"
    edgesdk.export(MODELS / "mobilenet-vww.onnx", device="raspberry-pi-4", out=path)
    pictures = dict(zip((Path(member).stem for _, member in real_models.PHOTOS), real_models.photos(), strict=True))
    with edgesdk.load(path) as session:
        found = {name: session.top(session.run({"input_1": pixels}, raw=True), 1)[0] for name, pixels in pictures.items()}
    for name, label in {"astronaut": "person", "camera": "person", "chelsea": "no person", "coffee": "no person"}.items():
        assert found[name][0] == label and found[name][1] > 0.8
