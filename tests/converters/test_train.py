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

from edgesdk_converters import accuracy
from edgesdk_converters import train as module
from edgesdk_converters.calibration import Samples, synthetic
from edgesdk_converters.errors import PassError
from edgesdk_converters.fold import Fold
from edgesdk_converters.low_rank import LowRank
from edgesdk_converters.model import Model, Step
from edgesdk_converters.passes import Given
from edgesdk_converters.quantize import Quantize
from edgesdk_converters.reference import Reference
from edgesdk_converters.to_torch import to_torch, with_weights
from edgesdk_converters.train import Training, learned, train

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
    from edgesdk_converters.low_rank import LowRank
    from edgesdk_converters.model import Model
    from edgesdk_converters.passes import Given
    module.BETWEEN_CHECKPOINTS_S = -1.0
    folder, through = Path(sys.argv[1]), sys.argv[2]
    samples = Samples({"x": np.load(folder / "x.npy")}, "made for a test", leading_axis={"x": True})
    student, teacher = Model.load(folder / "student.onnx"), Model.load(folder / "teacher.onnx")

    def told(message):
        if message.startswith("training"):
            print("step", flush=True)
            sys.stdin.readline()

    if through == "a named checkpoint":
        how = module.Training(epochs=4, batch=8, learning_rate=5e-3)
        found = module.train(student, teacher, samples, how, checkpoint=folder / "c.safetensors", progress=told).model
    else:
        given = Given(teacher, samples.take(range(16)), told, folder / "cache", samples)
        found = LowRank(removed=0.3, finetune=16, learning_rate=5e-3)(student, given)
    print(found.digest, flush=True)
"""


@pytest.mark.parametrize("through", ["a named checkpoint", "a pass with a cache"])
def test_a_training_killed_three_times_goes_on_to_the_same_result(
    pair: tuple[Model, Model, Samples], through: str, tmp_path: Path
) -> None:
    student, teacher, samples = pair
    student.save(tmp_path / "student.onnx")
    teacher.save(tmp_path / "teacher.onnx")
    np.save(tmp_path / "x.npy", samples.arrays["x"])
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), through]
    total = 32  # steps: 4 epochs of 8, and 16 of 2
    rng = np.random.default_rng(len(through))
    points = np.sort(rng.choice(np.arange(1, total - 1), 3, replace=False))
    for steps in np.diff(points, prepend=0):
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
            assert started.stdin is not None and started.stdout is not None
            for _ in range(steps):
                assert started.stdout.readline() == "step\n"
                started.stdin.write("go on\n")
                started.stdin.flush()
            time.sleep(rng.uniform(0, 0.03))  # it judges, writes its checkpoint, or waits within the next step
            assert started.poll() is None
            os.kill(started.pid, signal.SIGKILL)
    done = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    *lines, digest = done.stdout.splitlines()
    assert total - points[-1] - 1 <= len(lines) <= total - points[-1] + len(points), "it began anew"
    loaded = [Model.load(tmp_path / f"{name}.onnx") for name in ("student", "teacher")]
    if through == "a named checkpoint":
        assert digest == train(*loaded, samples, QUICK).model.digest
    else:
        everything = Given(loaded[1], samples.take(np.arange(16)), lessons=samples)
        assert digest == LowRank(removed=0.3, finetune=16, learning_rate=5e-3)(loaded[0], everything).digest
        kept = [path.name for path in (tmp_path / "cache" / "training").iterdir() if not path.name.startswith(".")]
        assert len(kept) == 1 and kept[0].endswith(".safetensors")


@pytest.mark.parametrize("harm", ["another training", "another goal", "cut short"])
def test_a_checkpoint_that_does_not_fit_is_refused(pair: tuple[Model, Model, Samples], harm: str, tmp_path: Path) -> None:
    student, teacher, samples = pair
    place = tmp_path / "c.safetensors"
    train(student, teacher, samples, replace(QUICK, epochs=1), checkpoint=place)
    changes: dict[str, Any] = {"another training": {"epochs": 2}, "another goal": {"stop_at_drop_points": 1.0}}
    how = replace(QUICK, epochs=1) if harm == "cut short" else replace(QUICK, **({"epochs": 1} | changes[harm]))
    if harm == "cut short":
        place.write_bytes(place.read_bytes()[:-100])
    with pytest.raises(PassError, match="cannot be read" if harm == "cut short" else "is of another training") as caught:
        train(student, teacher, samples, how, checkpoint=place)
    assert "remove that file" in caught.value.hint


# --- as good as was promised ------------------------------------------------------------------------

GOAL = Training(epochs=6, batch=32, learning_rate=3e-3, validation_share=0.4, labels_share=0.2)


@pytest.mark.parametrize("labels", [True, False])
def test_the_drop_is_taken_on_what_was_held_out(build: Any, labels: bool) -> None:
    teacher = network(build)
    samples, student = given(teacher, 300, labels), shaken(teacher, 0.5)
    found = train(student, teacher, samples, replace(GOAL, epochs=1, stop_at_drop_points=0.0))
    held_out = np.sort(np.random.default_rng(0).permutation(300)[:120])
    trained = train(student, teacher, samples, replace(GOAL, epochs=1), until=lambda _: True).model
    rows = samples.take(held_out)
    before, after = (np.concatenate([Reference(model).run(row)["y"] for row in rows]) for model in (teacher, trained))
    drop = accuracy.top1_drop(before, after, rows.labels) if rows.labels is not None else accuracy.disagreement(before, after)
    assert found.bounds_points == [pytest.approx(drop.bound_points)] and drop.bound_points > 2.5


@pytest.mark.parametrize("labels", [True, False])
def test_training_ends_once_the_drop_is_held(build: Any, labels: bool, tmp_path: Path) -> None:
    teacher = network(build)
    samples, student = given(teacher, 300, labels), shaken(teacher, 0.5)
    bounds = train(student, teacher, samples, replace(GOAL, stop_at_drop_points=0.0)).bounds_points
    assert len(bounds) == GOAL.epochs and min(bounds) > 0, "nothing seen in 120 samples is 2.5 points"
    epoch = next(index for index in range(1, len(bounds)) if bounds[index] < min(bounds[:index])) + 1
    assert epoch < GOAL.epochs, "the test needs a training that ends between"
    limit = bounds[epoch - 1]
    how, place = replace(GOAL, stop_at_drop_points=limit), tmp_path / "c.safetensors"
    found = train(student, teacher, samples, how, checkpoint=place)
    asked: list[Model] = []
    same = train(student, teacher, samples, GOAL, until=lambda model: bool(asked.append(model)) or len(asked) == epoch).model
    per_epoch = 6  # of 180 samples that are not held out, 32 at once
    assert found.bounds_points == bounds[:epoch] and found.steps == per_epoch * epoch and found.model.digest == same.digest
    what = "top-1 accuracy lost" if labels else "top-1 answers changed"
    note = found.model.history[-1].note
    assert f"; ended after epoch {epoch} of 6, with at most {bounds[epoch - 1]:.3g} points of {what} on 120 held-out" in note
    assert f"{found.losses[-1]:.4g} after" in note
    again = train(student, teacher, samples, how, checkpoint=place)
    assert again.resumed and again.steps == found.steps and again.model.digest == found.model.digest
    assert again.model.history == found.model.history


def test_the_weights_that_hold_it_are_the_result_whatever_their_loss(build: Any) -> None:
    teacher = network(build)
    found = train(teacher, teacher, given(teacher, 100), replace(GOAL, stop_at_drop_points=90.0))
    assert found.losses[0] < found.losses[1] and found.steps == 2 and found.model.digest != teacher.digest


def test_only_scores_of_classes_have_a_drop(build: Any) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="m")]
    values = {"w": np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)}
    for rows, width in ((2, 5), (1, 1)):
        stored = {"w": np.ascontiguousarray(values["w"][:, :width])}
        model = Model.from_proto(build(nodes, [("x", [rows, 6])], [("y", [rows, width])], stored), "net")
        samples = Samples({"x": np.random.default_rng(1).standard_normal((40, rows, 6)).astype(np.float32)}, "made for a test")
        said: list[str] = []
        how = replace(GOAL, stop_at_drop_points=100.0)
        found = train(shaken(model), model, samples, how, progress=said.append)
        assert len(found.losses) == 7 and not found.bounds_points
        assert "'y' is no vector of classes' scores: no drop can end it early" in said


# --- zeros ------------------------------------------------------------------------------------------


def test_zeros_stay_where_they_are_to(build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = network(build)
    values = {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in shaken(teacher).proto.graph.initializer}
    zeros = {name: np.random.default_rng(3).random(value.shape) < 0.4 for name, value in values.items()}
    for name, value in values.items():
        value[zeros[name]] = 0
    student = with_weights(teacher, values, Step("zeros"))
    samples = given(teacher)

    def after(model: Model) -> dict[str, Any]:
        return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.proto.graph.initializer}

    held = train(student, teacher, samples, replace(QUICK, zeros_stay=True))
    for name, value in after(held.model).items():
        wanted = zeros[name] if value.ndim > 1 else np.zeros_like(zeros[name])
        assert np.array_equal(value == 0, wanted), "biases learn, zeros or not"
    assert all((value != 0).all() for value in after(train(student, teacher, samples, QUICK).model).values())
    assert held.losses[-1] < held.losses[0]

    steps: list[str] = []

    def stop(message: str) -> None:
        steps.extend([message] if message.startswith("training") else [])
        if len(steps) == 11:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "BETWEEN_CHECKPOINTS_S", -1.0)
    how, place = replace(QUICK, zeros_stay=True), tmp_path / "c.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(student, teacher, samples, how, checkpoint=place, progress=stop)
    assert train(student, teacher, samples, how, checkpoint=place).model.digest == held.model.digest


# --- as passes do it --------------------------------------------------------------------------------


def everything(pair: tuple[Model, Model, Samples], **more: Any) -> Given:
    return Given(pair[1], pair[2].take(np.arange(8)), lessons=pair[2], **more)


def test_a_pass_learns_from_all_lessons_or_from_what_there_is(pair: tuple[Model, Model, Samples]) -> None:
    student, teacher, samples = pair
    wanted = train(student, teacher, samples, QUICK).model
    for what in (everything(pair), Given(teacher, samples)):
        found = learned(student, what, QUICK)
        assert found.digest == wanted.digest and found.history == wanted.history
    few = learned(student, Given(teacher, samples.take(np.arange(8))), QUICK)
    assert "steps on 7 of made for a test" in few.history[-1].note


def test_a_pass_does_not_learn_from_random_inputs(pair: tuple[Model, Model, Samples]) -> None:
    student, teacher, _ = pair
    with pytest.raises(PassError, match="pass shake: finetune learns from data, and there are only seeded random") as caught:
        learned(student, Given(teacher, synthetic(teacher, 8)), QUICK)
    assert "--train" in caught.value.hint


def test_a_pass_ends_early_where_something_was_promised(build: Any) -> None:
    teacher = network(build)
    what = Given(teacher, given(teacher, 300), max_drop_points=60.0)
    found = learned(shaken(teacher), what, GOAL)
    assert found.history[-1].options["stop_at_drop_points"] == 60.0 and "ended after epoch 1 of 6" in found.history[-1].note
    own = learned(shaken(teacher), what, replace(GOAL, epochs=1, stop_at_drop_points=0.0))
    assert own.history[-1].options["stop_at_drop_points"] == 0.0
    blind = learned(shaken(teacher), what, replace(GOAL, epochs=1, validation_share=0.0))
    assert "stop_at_drop_points" not in blind.history[-1].options


def test_zeros_of_a_sparse_model_stay_in_every_later_pass(pair: tuple[Model, Model, Samples]) -> None:
    student = pair[0]
    assert "zeros_stay" not in learned(student, everything(pair), QUICK).history[-1].options
    sparse = replace(student, history=(Step("sparsify"), Step("quantize")))
    assert learned(sparse, everything(pair), QUICK).history[-1].options["zeros_stay"] is True


def test_a_training_that_was_done_is_not_done_again(pair: tuple[Model, Model, Samples], tmp_path: Path) -> None:
    said: list[str] = []
    what = everything(pair, cache=tmp_path / "new", progress=said.append)
    first = learned(pair[0], what, QUICK)
    kept = list((tmp_path / "new" / "training").iterdir())
    assert len(kept) == 1 and sum(message.startswith("training") for message in said) == 32
    said.clear()
    again = learned(pair[0], what, QUICK)
    assert again.digest == first.digest and again.history == first.history
    assert "goes on after step 32 of 32" in said and not any(message.startswith("training") for message in said)
    learned(pair[0], what, replace(QUICK, seed=1))
    assert len(list((tmp_path / "new" / "training").iterdir())) == 2


@pytest.mark.parametrize("harm", ["one bit", "cut short", "empty"])
def test_a_damaged_checkpoint_in_the_cache_costs_time_alone(
    pair: tuple[Model, Model, Samples], harm: str, tmp_path: Path
) -> None:
    said: list[str] = []
    what = everything(pair, cache=tmp_path, progress=said.append)
    first = learned(pair[0], what, QUICK)
    (kept,) = (tmp_path / "training").iterdir()
    whole = bytearray(kept.read_bytes())
    whole[-20] ^= 1
    kept.write_bytes({"one bit": whole, "cut short": whole[:200], "empty": b""}[harm])
    said.clear()
    assert learned(pair[0], what, QUICK).digest == first.digest
    assert sum("is dropped, and training begins anew" in message for message in said) == 1
    said.clear()
    assert learned(pair[0], what, QUICK).digest == first.digest and "goes on after step 32 of 32" in said


def test_a_cache_that_cannot_be_written_costs_the_checkpoints_alone(pair: tuple[Model, Model, Samples], tmp_path: Path) -> None:
    (tmp_path / "training").write_text("in the way")
    said: list[str] = []
    found = learned(pair[0], everything(pair, cache=tmp_path, progress=said.append), QUICK)
    assert found.digest == learned(pair[0], everything(pair), QUICK).digest
    assert sum("goes on without checkpoints" in message for message in said) == 1


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
        ({"stop_at_drop_points": -0.5}, "stop_at_drop_points is -0.5; allowed: 0 to"),
        ({"stop_at_drop_points": 1.0, "validation_share": 0}, "there are no samples to take the drop on"),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(PassError, match=told):
        replace(QUICK, **change)


def test_models_and_data_that_do_not_fit_are_refused(build: Any, pair: tuple[Model, Model, Samples]) -> None:
    student, teacher, samples = pair
    with pytest.raises(PassError, match="1 sample is too few to learn from: 2 or more are needed") as caught:
        train(student, teacher, samples.take([0]), QUICK)
    assert caught.value.hint == "give more of them with --train FILE.npz"
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
    for rounding in ("half_up", "truncate"):
        with pytest.raises(PassError, match=f"qat with rounding {rounding}; only half_even"):
            Quantize(flavour="fixed", rounding=rounding, qat=1)  # type: ignore[arg-type]
    with pytest.raises(PassError, match="flavour qoperator with qat; those that can learn are u8s8, s8s8, tensorrt, fixed"):
        Quantize(flavour="qoperator", qat=1)


def test_a_module_in_training_is_the_same_function_as_its_graph(pair: tuple[Model, Model, Samples]) -> None:
    student, _, samples = pair
    row = next(iter(samples))
    with torch.no_grad():
        got = to_torch(student)(torch.as_tensor(row["x"])).numpy()
    np.testing.assert_allclose(got, Reference(student).run(row)["y"], rtol=1e-5)


@pytest.mark.parametrize("device", ["cuda", "gpu0", ""])
def test_a_device_that_is_not_there_is_one_clear_error(pair: tuple[Model, Model, Samples], device: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has it")
    student, teacher, samples = pair
    with pytest.raises(PassError, match=f"torch cannot train on {device!r}"):
        train(student, teacher, samples, replace(QUICK, device=device))
