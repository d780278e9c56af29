"""Real networks, end to end, for both targets: the artefact computes what the source computes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

import edgesdk
from edgesdk.exporting import Prepared, prepare
from edgesdk_converters.errors import ContractBroken, Unsupported

from ..fashion import raw

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "build" / "models"
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "magika": {"bytes": (1, 2048)},
    "silero-vad": {"input": (1, 576), "state": (2, 1, 128)},
    "basic-pitch": {"serving_default_input_2:0": (1, 43844, 1)},
}
CONSTANTS = {"silero-vad": {"sr": 16000.0}}
QUICK = ("efficientnet-lite0", "magika", "silero-vad", "basic-pitch", "squeezenet", "shufflenet", "inception_v1",
         "inception_v2", "densenet121", "resnet50", "resnet8", "ds-cnn", "mobilenet-vww", "autoencoder")  # fmt: skip
LARGE = ("bvlc_alexnet", "zfnet512", "vgg19")
FASHION = {"cnn": 0.90, "mobilenet": 0.925, "resnet": 0.925, "vit": 0.85}


def example(name: str) -> ModuleType:
    """A script of examples/ as a module, which may import the others."""
    if str(ROOT / "examples") not in sys.path:
        sys.path.append(str(ROOT / "examples"))
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def real_models() -> ModuleType:
    return example("real_models")


def data_of(real_models: ModuleType, name: str) -> dict[str, np.ndarray]:
    """Four meaningful samples, stacked as --data takes them."""
    feeds = real_models.sample_inputs(name, 4, 0)
    data: dict[str, np.ndarray] = {}
    for key in feeds[0]:
        if key in CONSTANTS.get(name, {}):
            continue
        rows = [np.asarray(feed[key]) for feed in feeds]
        data[key] = np.stack([row[0] if row.ndim and row.shape[0] == 1 else row for row in rows])
    return data


def converted(real_models: ModuleType, name: str, device: str, precision: str) -> Prepared:
    path = MODELS / f"{name}.onnx"
    assert path.exists(), f"{path} is missing: run `make models` (or examples/real_models.py {name})"
    return prepare(
        path, device=device, precision=precision, shapes=SHAPES.get(name), constants=CONSTANTS.get(name),
        data=data_of(real_models, name),
    )  # fmt: skip


def errors(prepared: Prepared) -> tuple[float, float]:
    whole, check = prepared.report.find("relative_error"), prepared.report.find("relative_error", "check")
    assert whole is not None and check is not None and whole.value is not None and check.value is not None
    return whole.value, check.value


def stored_bytes(prepared: Prepared) -> int:
    """Of the weights alone: graphs of the same nodes hold more or fewer notes of shapes."""
    return sum(len(tensor.raw_data) for tensor in onnx.load_from_string(prepared.files["model.onnx"]).graph.initializer)


@pytest.mark.parametrize("device", ["raspberry-pi-4", "jetson-orin-nano"])
@pytest.mark.parametrize("name", QUICK)
def test_fp32_is_the_same_function(real_models: ModuleType, name: str, device: str) -> None:
    prepared = converted(real_models, name, device, "fp32")
    assert max(errors(prepared)) <= 1e-5
    assert prepared.report.contract.status == ("pending" if "jetson" in device else "passed")


@pytest.mark.parametrize("device", ["raspberry-pi-5", "jetson-agx-orin"])
@pytest.mark.parametrize("name", QUICK)
def test_fp16_stays_within_one_percent_and_halves_what_it_converts(real_models: ModuleType, name: str, device: str) -> None:
    prepared = converted(real_models, name, device, "fp16")
    assert 0 < max(errors(prepared)) <= 1e-2
    size = stored_bytes(prepared)
    full = stored_bytes(converted(real_models, name, device, "fp32"))
    assert size < (0.85 if name == "basic-pitch" else 0.55) * full  # half of basic-pitch feeds a logarithm


@pytest.mark.slow
@pytest.mark.parametrize("device", ["raspberry-pi-5", "jetson-agx-orin"])
@pytest.mark.parametrize("name", LARGE)
def test_the_large_ones_too(real_models: ModuleType, name: str, device: str) -> None:
    assert max(errors(converted(real_models, name, device, "fp32"))) <= 1e-5
    assert max(errors(converted(real_models, name, device, "fp16"))) <= 1e-2


def test_outputs_of_the_re_weighted_nets_differ_between_inputs(real_models: ModuleType) -> None:
    prepared = converted(real_models, "squeezenet", "raspberry-pi-4", "fp32")
    import io

    golden = prepared.manifest.golden
    assert golden is not None
    file = next(iter(golden.outputs.values()))
    rows = np.load(io.BytesIO(prepared.files[file])).reshape(golden.cases, -1)
    assert np.abs(rows[0] - rows[1]).max() > 0.05 * np.abs(rows).max()
    assert rows.std(axis=1).min() > 0


def test_the_recurrent_model_keeps_its_branches_where_shapes_may_vary(real_models: ModuleType) -> None:
    prepared = prepare(MODELS / "silero-vad.onnx", device="raspberry-pi-4", data=data_of_silero(real_models))
    assert max(errors(prepared)) <= 1e-5
    names = [spec.name for spec in prepared.manifest.signature.inputs]
    assert names == ["input", "state", "sr"]


def data_of_silero(real_models: ModuleType) -> dict[str, np.ndarray]:
    feeds = real_models.sample_inputs("silero-vad", 4, 0)
    rows = {key: [np.asarray(feed[key]) for feed in feeds] for key in feeds[0]}
    return {key: np.stack([row[0] for row in found] if key == "input" else found) for key, found in rows.items()}


def test_the_recurrent_model_gives_the_state_back_step_by_step(real_models: ModuleType, tmp_path: Path) -> None:
    import onnxruntime as ort

    path = tmp_path / "vad.edge"
    how = {"shapes": SHAPES["silero-vad"], "constants": CONSTANTS["silero-vad"]}
    edgesdk.export(MODELS / "silero-vad.onnx", device="raspberry-pi-4", out=path, **how)  # type: ignore[arg-type]
    reference = ort.InferenceSession(str(MODELS / "silero-vad.onnx"), providers=["CPUExecutionProvider"])
    state = wanted_state = np.zeros((2, 1, 128), np.float32)
    rng = np.random.default_rng(1)
    with edgesdk.load(path) as session:
        for _ in range(10):
            chunk = (0.1 * rng.standard_normal((1, 576))).astype(np.float32)
            got = session.run({"input": chunk, "state": state})
            wanted, wanted_state = reference.run(None, {"input": chunk, "state": wanted_state, "sr": np.array(16000)})
            state = got["stateN"]
            np.testing.assert_allclose(got["output"], wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(state, wanted_state, rtol=1e-3, atol=1e-5)


def test_a_jetson_takes_no_dynamic_shapes_and_says_which(real_models: ModuleType) -> None:
    with pytest.raises(Unsupported, match="bytes"):
        prepare(MODELS / "magika.onnx", device="jetson-orin-nano", data=data_of(real_models, "magika"))


def test_a_torch_module_gives_the_same_answers_as_its_bundle(real_models: ModuleType, tmp_path: Path) -> None:
    import torch

    path = tmp_path / "lite.edge"
    edgesdk.export("real_models:efficientnet_lite0", device="raspberry-pi-4", out=path)
    torch.manual_seed(0)
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        wanted = real_models.efficientnet_lite0()(x).numpy()
    with edgesdk.load(path) as session:
        name = session.signature.inputs[0].name
        got = next(iter(session.run({name: x.numpy()}).values()))
    assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_a_photograph_of_a_daisy_is_a_daisy(real_models: ModuleType, tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "lite.edge"
    edgesdk.export(MODELS / "efficientnet-lite0.onnx", device="raspberry-pi-5", precision="fp16", out=path)
    image = np.asarray(Image.open(real_models.photo()).convert("RGB"))
    with edgesdk.load(path) as session:
        label, probability = session.top(session.run({"image": image}, raw=True), 1)[0]
    assert label == "daisy"
    assert probability > 0.2


@pytest.fixture(scope="module")
def fashion() -> tuple[np.ndarray, np.ndarray]:
    """The 10,000 test images, height x width uint8, and their labels."""
    return raw("t10k")


@pytest.mark.parametrize("name", FASHION)
def test_the_trained_nets_reach_their_accuracy_on_raw_images_of_the_bundle(
    name: str, fashion: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / "net.edge"
    edgesdk.export(ROOT / "examples" / "fashion" / f"fashion_{name}.onnx", device="raspberry-pi-4", out=path)
    images, labels = fashion
    with edgesdk.load(path) as session:
        answers = [int(session.run({"image": image}, raw=True)["logits"].argmax()) for image in images]
    assert float((np.array(answers) == labels).mean()) >= FASHION[name]


def contract_data(fashion: tuple[np.ndarray, np.ndarray], count: int = 1000) -> dict[str, Any]:
    """The first test images as the nets take them, through a bundle's own preprocessing."""
    from edgesdk_converters.model import Model
    from edgesdk_converters.processing import to_tensor

    spec = Model.load(ROOT / "examples" / "fashion" / "fashion_cnn.onnx").signature.inputs[0]
    images, labels = fashion
    return {
        "image": np.concatenate([to_tensor(spec, image) for image in images[:count]]),
        "labels": labels[:count].astype(np.int64),
    }


@pytest.mark.parametrize(("device", "status"), [("raspberry-pi-5", "passed"), ("jetson-orin-nano", "pending")])
def test_an_accuracy_contract_is_held_on_the_artefact(device: str, status: str, fashion: tuple[np.ndarray, np.ndarray]) -> None:
    data = contract_data(fashion)
    prepared = prepare(
        ROOT / "examples" / "fashion" / "fashion_cnn.onnx", device=device, precision="fp16", data=data, max_drop=0.5
    )
    assert prepared.report.contract.status == status
    drop, accuracy = prepared.report.find("accuracy_drop"), prepared.report.find("accuracy")
    assert drop is not None and accuracy is not None and drop.n == 1000
    assert drop.value is not None and -0.5 <= drop.value <= 0.5
    assert accuracy.value is not None and accuracy.value > 0.9
    assert prepared.manifest.contract["max_drop_points"] == 0.5


def test_a_contract_that_breaks_writes_nothing_and_leaves_the_older_bundle(
    fashion: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    source = ROOT / "examples" / "fashion" / "fashion_cnn.onnx"
    path = tmp_path / "net.edge"
    older = edgesdk.export(source, device="raspberry-pi-5", out=path)
    with pytest.raises(ContractBroken, match="pass half moved output") as caught:
        edgesdk.export(
            source, device="raspberry-pi-5", precision="fp16", data=contract_data(fashion, 50), max_relative_error=1e-7, out=path
        )
    assert caught.value.exit_code == 3
    assert edgesdk.verify(path).bundle == older.digest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.edge", "net.report.json"]


def test_measure_checks_the_contract_again_on_the_same_data(fashion: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    data = contract_data(fashion)
    file = tmp_path / "check.npz"
    np.savez(file, **data)
    path = tmp_path / "net.edge"
    edgesdk.export(ROOT / "examples" / "fashion" / "fashion_cnn.onnx", device="this-machine", data=file, max_drop=0.5, out=path)
    report = edgesdk.measure(path, runs=20, data=file)
    assert report.contract.status == "passed"
    drop = report.find("accuracy_drop")
    assert drop is not None and drop.value == pytest.approx(0.0, abs=1e-3)
    other = dict(data, labels=data["labels"][::-1].copy())
    np.savez(file, **other)
    assert edgesdk.measure(path, runs=20, data=file).contract.status == "none"
