"""Train: a student comes to answer as its teacher does, the same way each time, and a stop of any kind costs nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper

from edgesdk_converters import train as module
from edgesdk_converters.calibration import Samples, synthetic
from edgesdk_converters.errors import PassError
from edgesdk_converters.fold import Fold
from edgesdk_converters.model import Model, Step
from edgesdk_converters.passes import Given
from edgesdk_converters.quantize import Quantize
from edgesdk_converters.reference import Reference
from edgesdk_converters.to_torch import to_torch, with_weights
from edgesdk_converters.train import Training, train

NETS = Path(__file__).parents[2] / "examples" / "fashion"
Fashion = Callable[[str, int], tuple[Any, Any]]
QUICK = Training(epochs=4, batch=8, learning_rate=5e-3)


def network(build: Any, hidden: int = 8, seed: int = 0, classes: int = 5) -> Model:
    """x (1, 6) -> hidden -> Relu -> scores (1, classes)."""
    rng = np.random.default_rng(seed)
    shapes = {"w": (6, hidden), "b": (hidden,), "v": (hidden, classes)}
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["h"], name="relu"),
        helper.make_node("MatMul", ["h", "v"], ["y"], name="last"),
    ]
    values = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return Model.from_proto(build(nodes, [("x", [1, 6])], [("y", [1, classes])], values), "net")


def shaken(model: Model, amount: float = 0.3) -> Model:
    """The model with noise on its weights."""
    rng = np.random.default_rng(9)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.proto.graph.initializer}
    noisy = {k: (v + amount * rng.standard_normal(v.shape)).astype(np.float32) for k, v in stored.items()}
    return with_weights(model, noisy, Step("shake"))


def given(model: Model, count: int = 64, labels: bool = False) -> Samples:
    made = synthetic(model, count)
    rows = made.arrays["x"]
    answers = np.concatenate([Reference(model).run({"x": row[None]})["y"] for row in rows]) if labels else None
    return Samples({"x": rows}, "made for a test", None if answers is None else answers.argmax(1), leading_axis={"x": True})


@pytest.fixture
def pair(build: Any) -> tuple[Model, Model, Samples]:
    teacher = network(build)
    return shaken(teacher), teacher, given(teacher)


# --- learning ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [False, True])
def test_a_student_learns_its_teachers_answers(build: Any, labels: bool) -> None:
    teacher = network(build)
    samples = given(teacher, labels=labels)
    found = train(shaken(teacher), teacher, samples, replace(QUICK, epochs=20, labels_share=0.2))
    assert len(found.losses) == 21 and found.steps == 20 * 8
    assert min(found.losses) < 0.3 * found.losses[0]
    student, wanted = Reference(found.model), Reference(teacher)
    new = synthetic(teacher, 50, seed=5)
    alike = [int(student.run(row)["y"].argmax()) == int(wanted.run(row)["y"].argmax()) for row in new]
    assert np.mean(alike) > 0.85
    step = found.model.history[-1]
    assert step.name == "train" and "held-out loss" in step.note and step.options["epochs"] == 20


def test_the_least_held_out_loss_is_kept(pair: tuple[Model, Model, Samples]) -> None:
    student, teacher, samples = pair
    wild = replace(QUICK, epochs=6, learning_rate=0.3)  # so large that later epochs are worse
    found = train(student, teacher, samples, wild)
    best = int(np.argmin(found.losses))
    assert best < 6, "the test needs a training that gets worse"
    again = train(found.model, teacher, samples, replace(wild, epochs=0))
    assert again.losses[0] == pytest.approx(min(found.losses), rel=1e-5)


def test_no_epochs_change_nothing(pair: tuple[Model, Model, Samples]) -> None:
    student, teacher, samples = pair
    found = train(student, teacher, samples, replace(QUICK, epochs=0))
    assert found.model.proto.graph.SerializeToString() == student.proto.graph.SerializeToString()


def test_features_pull_an_inner_tensor_to_the_teachers(pair: tuple[Model, Model, Samples]) -> None:
    student, teacher, samples = pair
    how = replace(QUICK, epochs=20, features=("h",), features_weight=10.0)

    def inner(model: Model) -> float:
        runs = [(Reference(m, ("h",)).run(row)["h"]) for m in (model, teacher) for row in samples]
        half = len(runs) // 2
        return float(np.mean((np.stack(runs[:half]) - np.stack(runs[half:])) ** 2))

    assert inner(train(student, teacher, samples, how).model) < 0.3 * inner(student)


def test_probabilities_and_several_outputs_are_learned(build: Any) -> None:
    teacher = network(build)
    proto = teacher.copy_proto()
    proto.graph.node.append(helper.make_node("Softmax", ["y"], ["p"], name="softmax"))
    proto.graph.output.insert(0, helper.make_tensor_value_info("p", 1, [1, 5]))
    both = Model.from_proto(proto, "two")
    said: list[str] = []
    found = train(shaken(both), both, given(teacher), replace(QUICK, epochs=20), progress=said.append)
    assert "p as probabilities, y as numbers" in said[0]
    assert min(found.losses) < 0.3 * found.losses[0]


def test_each_sample_is_computed_alone_whichever_way(pair: tuple[Model, Model, Samples], monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher, samples = pair
    together = train(student, teacher, samples, QUICK)

    def refuse(*_: Any) -> Any:
        raise RuntimeError("no batching rule")

    monkeypatch.setattr(torch, "vmap", lambda function: refuse)
    alone = train(student, teacher, samples, QUICK)
    np.testing.assert_allclose(alone.losses, together.losses, rtol=1e-3)


def test_answers_that_do_not_fit_in_memory_are_asked_for_again(
    pair: tuple[Model, Model, Samples], monkeypatch: pytest.MonkeyPatch
) -> None:
    student, teacher, samples = pair
    kept = train(student, teacher, samples, QUICK)
    monkeypatch.setattr(module, "KEPT_ANSWERS_BYTES", 100)
    assert train(student, teacher, samples, QUICK).model.digest == kept.model.digest


def test_it_ends_when_it_is_good_enough_or_gets_no_better(pair: tuple[Model, Model, Samples]) -> None:
    student, teacher, samples = pair
    asked: list[Model] = []

    def until(model: Model) -> bool:
        asked.append(model)
        return len(asked) == 2

    found = train(student, teacher, samples, QUICK, until=until)
    assert found.steps == 2 * 8 and found.model.digest == asked[-1].digest
    stalled = train(student, teacher, samples, replace(QUICK, epochs=50, learning_rate=1.0, patience=2))
    assert stalled.steps < 50 * 8


# --- the same each time -----------------------------------------------------------------------------


def test_the_same_training_gives_the_same_weights(pair: tuple[Model, Model, Samples]) -> None:
    student, teacher, samples = pair
    first, again = (train(student, teacher, samples, QUICK).model.digest for _ in range(2))
    assert first == again != train(student, teacher, samples, replace(QUICK, seed=1)).model.digest


@pytest.mark.parametrize("stop_after", [1, 5, 8, 13, 31])
def test_a_stopped_training_goes_on_to_the_same_result(
    pair: tuple[Model, Model, Samples], stop_after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, teacher, samples = pair
    whole = train(student, teacher, samples, QUICK)
    monkeypatch.setattr(module, "BETWEEN_CHECKPOINTS_S", -1.0)
    steps = 0

    def stop(message: str) -> None:
        nonlocal steps
        steps += message.startswith("training")
        if steps > stop_after:
            raise KeyboardInterrupt

    place = tmp_path / "training.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(student, teacher, samples, QUICK, checkpoint=place, progress=stop)
    found = train(student, teacher, samples, QUICK, checkpoint=place)
    assert found.resumed and found.losses == whole.losses and found.model.digest == whole.model.digest
    assert [path.name for path in tmp_path.iterdir()] == [place.name]


KILLED = """
    import sys
    from pathlib import Path
    import numpy as np
    from edgesdk_converters import train as module
    from edgesdk_converters.calibration import Samples
    from edgesdk_converters.model import Model
    module.BETWEEN_CHECKPOINTS_S = -1.0
    folder = Path(sys.argv[1])
    samples = Samples({"x": np.load(folder / "x.npy")}, "made for a test", leading_axis={"x": True})
    how = module.Training(epochs=4, batch=8, learning_rate=5e-3)
    models = Model.load(folder / "student.onnx"), Model.load(folder / "teacher.onnx")
    print("begun", flush=True)
    found = module.train(*models, samples, how, checkpoint=folder / "c.safetensors")
    print(found.model.digest, found.resumed, flush=True)
"""


def test_a_killed_training_goes_on_to_the_same_result(pair: tuple[Model, Model, Samples], tmp_path: Path) -> None:
    student, teacher, samples = pair
    student.save(tmp_path / "student.onnx")
    teacher.save(tmp_path / "teacher.onnx")
    np.save(tmp_path / "x.npy", samples.arrays["x"])
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)]
    kills = 0
    for wait_s in (0.02, 0.05, 0.03, 0.04):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as started:
            assert started.stdout is not None
            started.stdout.readline()
            before = time.monotonic()
            while not (tmp_path / "c.safetensors").exists() and time.monotonic() - before < 60:
                time.sleep(0.002)
            time.sleep(wait_s)
            if started.poll() is None:
                os.kill(started.pid, signal.SIGKILL)
                kills += 1
    assert kills, "it was never killed"
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    digest, resumed = done.stdout.splitlines()[-1].split()
    loaded = [Model.load(tmp_path / f"{name}.onnx") for name in ("student", "teacher")]
    assert resumed == "True" and digest == train(*loaded, samples, QUICK).model.digest


@pytest.mark.parametrize("harm", ["another training", "cut short", "no checkpoint"])
def test_a_checkpoint_that_does_not_fit_is_refused(pair: tuple[Model, Model, Samples], harm: str, tmp_path: Path) -> None:
    student, teacher, samples = pair
    place = tmp_path / "c.safetensors"
    train(student, teacher, samples, replace(QUICK, epochs=1), checkpoint=place)
    how = replace(QUICK, epochs=2 if harm == "another training" else 1)
    if harm == "cut short":
        place.write_bytes(place.read_bytes()[:-100])
    elif harm == "no checkpoint":
        place.write_bytes(b"nothing of the kind")
    with pytest.raises(PassError, match="is of another training" if harm == "another training" else "cannot be read") as caught:
        train(student, teacher, samples, how, checkpoint=place)
    assert "remove that file" in caught.value.hint


# --- what cannot be ---------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_ends_it(pair: tuple[Model, Model, Samples]) -> None:
    student, teacher, samples = pair
    with pytest.raises(PassError, match=r"loss on held-out samples is (nan|inf)") as caught:
        train(shaken(student, 1e25), teacher, samples, QUICK)
    assert "smaller learning rate" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"epochs": -1}, "epochs is -1; allowed: 0 to"), ({"batch": 0}, "batch is 0"), ({"labels_share": 1.5}, "allowed: 0 to 1"),
        ({"validation_share": 0.95}, "validation_share is 0.95"), ({"learning_rate": float("nan")}, "learning_rate is nan"),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(PassError, match=told):
        replace(QUICK, **change)


def test_models_and_data_that_do_not_fit_are_refused(build: Any, pair: tuple[Model, Model, Samples]) -> None:
    student, teacher, samples = pair
    with pytest.raises(PassError, match="1 samples are too few"):
        train(student, teacher, samples.take([0]), QUICK)
    with pytest.raises(PassError, match="feature 'nowhere' is no tensor of net"):
        train(student, teacher, samples, replace(QUICK, features=("nowhere",)))
    with pytest.raises(PassError, match=r"'h' is \[1, 4\] in the student and \[1, 8\] in the teacher"):
        train(network(build, hidden=4), teacher, samples, replace(QUICK, features=("h",)))
    bare = Model.from_proto(build([helper.make_node("Relu", ["x"], ["y"])], [("x", [1, 6])], [("y", [1, 6])]), "bare")
    with pytest.raises(PassError, match="no weights that could learn"):
        train(bare, bare, samples, QUICK)
    other = Model.from_proto(build([helper.make_node("Relu", ["x"], ["z"])], [("x", [1, 6])], [("z", [1, 6])]), "other")
    with pytest.raises(PassError, match="outputs y are not those of the teacher"):
        train(student, other, samples, QUICK)


# --- quantisation-aware -----------------------------------------------------------------------------


def test_four_bits_learn_what_rounding_took_and_stay_four_bits(fashion: Fashion) -> None:
    source = Model.load(NETS / "fashion_mobilenet.onnx")
    images, labels = fashion("train", 600)
    lessons = Samples({"image": images}, "training images", labels, leading_axis={"image": True})
    everything = Given(source, lessons.take(np.arange(64)), lessons=lessons)
    folded = Fold()(source, everything)
    plain, learned = (Quantize(flavour="fixed", bits=4, qat=epochs)(folded, everything) for epochs in (0, 3))
    test_images, test_labels = fashion("t10k", 300)

    def accuracy(model: Model) -> float:
        reference = Reference(model)
        found = [reference.run({"image": image[None]})["logits"][0].argmax() for image in test_images]
        return float(np.mean(np.array(found) == test_labels))

    assert accuracy(learned) > accuracy(plain) + 0.05
    before, after = ({t.name: numpy_helper.to_array(t) for t in m.proto.graph.initializer} for m in (plain, learned))
    changed = [name for name in before if not np.array_equal(before[name], after[name])]
    assert changed and all(before[name].dtype.kind == "i" for name in changed), "scales stay; integers learn"
    narrow = [name for name in changed if before[name].dtype == np.int8]
    assert narrow and all(np.abs(after[name].astype(int)).max() <= 8 for name in narrow)
    assert [node.op_type for node in learned.proto.graph.node] == [node.op_type for node in plain.proto.graph.node]


def test_only_pairs_can_learn() -> None:
    with pytest.raises(PassError, match="flavour qoperator with qat; those that can learn are u8s8, s8s8, tensorrt, fixed"):
        Quantize(flavour="qoperator", qat=1)


def test_a_module_in_training_is_the_same_function_as_its_graph(pair: tuple[Model, Model, Samples]) -> None:
    student, _, samples = pair
    row = next(iter(samples))
    with torch.no_grad():
        got = to_torch(student)(torch.as_tensor(row["x"])).numpy()
    np.testing.assert_allclose(got, Reference(student).run(row)["y"], rtol=1e-5)
