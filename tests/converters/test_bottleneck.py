"""Bottleneck: what crosses is as small as told, what was learned is what the graph computes, and a stop costs nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper

from edgesdk_converters import bottleneck, find
from edgesdk_converters.bottleneck import Bottleneck
from edgesdk_converters.bottlenecks import distil
from edgesdk_converters.bottlenecks.design import crossing, decoder, encoder, fused, macs, steps
from edgesdk_converters.bottlenecks.leakage import leakage, psnr_db, ssim
from edgesdk_converters.bottlenecks.points import narrowed
from edgesdk_converters.bottlenecks.student import Student
from edgesdk_converters.calibration import Samples, synthetic
from edgesdk_converters.cost import layers
from edgesdk_converters.errors import ModelError, PassError
from edgesdk_converters.model import Model
from edgesdk_converters.passes import Given
from edgesdk_converters.reference import Reference
from edgesdk_converters.split import cuts, split

from ..fashion import samples as fashion_samples

NETS = Path(__file__).parents[2] / "examples" / "fashion"
FEW = {"mimic": 1, "tune": 1, "batch": 16}


def network(name: str) -> Model:
    source = Model.load(NETS / f"fashion_{name}.onnx")
    return find("fold")()(source, Given(source, synthetic(source, 2)))


def given(model: Model, count: int = 48, progress: Callable[[str], None] | None = None, cache: Path | None = None) -> Given:
    lessons = Samples.from_arrays(fashion_samples("train", 0, count), model.signature, "training images")
    return Given(model, lessons.take(np.arange(min(8, count))), progress or (lambda _: None), lessons=lessons, cache=cache)


@pytest.fixture(scope="module")
def cnn() -> Model:
    return network("cnn")


@pytest.fixture(scope="module")
def learned(cnn: Model) -> Model:
    """Three bits, so that a byte holds bits of two channels where 49 values are a channel."""
    return Bottleneck(channels=(1, 2, 4), bits=3, mimic=3, tune=2, width=16)(cnn, given(cnn, 1500))


def answers(model: Model, images: Any) -> Any:
    reference, name = Reference(model), model.signature.inputs[0].name
    return np.stack([next(iter(reference.run({name: image[None]}).values()))[0] for image in images])


def told(model: Model) -> Any:
    return next(step.options for step in model.history if step.name == "bottleneck")


def test_it_learns_to_answer_from_few_bytes(cnn: Model, learned: Model) -> None:
    head, tail = split(learned, told(learned)["crosses"])
    assert told(learned)["coded"] == [1, 4, 7, 7]
    (crossing_spec,) = head.signature.outputs
    assert crossing_spec.dtype == "uint8" and int(np.prod(crossing_spec.shape)) == 74  # 196 values of 3 bits
    check = fashion_samples("t10k", 0, 500)
    right = {
        name: float((answers(m, check["image"]).argmax(1) == check["labels"]).mean()) for name, m in (("s", cnn), ("b", learned))
    }
    assert right["s"] > 0.9 and right["b"] > 0.7, right
    assert sum(layer.macs for layer in layers(head)) <= 0.1 * sum(layer.macs for layer in layers(cnn))
    assert tail.signature.outputs == cnn.signature.outputs


def test_head_and_tail_are_the_whole_to_the_bit(learned: Model) -> None:
    head, tail = split(learned, told(learned)["crosses"])
    whole, first, second = Reference(learned), Reference(head), Reference(tail)
    for sample in given(learned).train:
        wanted, got = whole.run(sample), second.run(first.run(sample))
        assert all(np.array_equal(got[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("point", [1, 2, 4])
def test_an_operating_point_is_the_whole_with_its_other_channels_at_zero(learned: Model, point: int) -> None:
    crosses, coded = told(learned)["crosses"], told(learned)["coded"]
    restored = crosses.removesuffix("/payload") + "/restored"
    head, tail = split(learned, crosses)
    small = narrowed(tail, point, coded, told(learned)["bits"])
    _, rest = split(learned, restored)
    width = small.signature.inputs[0].shape[1]
    assert width == -(-point * 49 * 3 // 8)
    coder = Reference(split(learned, restored)[0])
    for sample in given(learned).train:
        packed = Reference(head).run(sample)[crosses]
        got = Reference(small).run({crosses: np.ascontiguousarray(packed[:, :width])})
        z = coder.run(sample)[restored].copy()
        z[:, point:] = 0
        wanted = Reference(rest).run({restored: z})
        assert all(np.array_equal(got[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("bits", [2, 4, 8, 32])
def test_narrow_tails_of_every_kind_of_payload(cnn: Model, bits: int) -> None:
    made = Bottleneck(channels=(1, 3), bits=bits, width=4, decoder_width=8, **FEW)(cnn, given(cnn))
    crosses = told(made)["crosses"]
    head, tail = split(made, crosses)
    small = narrowed(tail, 1, told(made)["coded"], bits)
    whole = narrowed(tail, 3, told(made)["coded"], bits)
    sample = next(iter(given(made).train))
    packed = Reference(head).run(sample)[crosses]
    width = int(small.signature.inputs[0].shape[1])
    assert whole.signature.inputs[0].shape == packed.shape
    same = Reference(whole).run({crosses: packed})
    assert all(np.array_equal(same[name], value) for name, value in Reference(tail).run({crosses: packed}).items())
    few = Reference(small).run({crosses: np.ascontiguousarray(packed[:, :width])})
    assert all(np.isfinite(value).all() for value in few.values())
    with pytest.raises(ModelError, match="4 channels; the bottleneck has 3"):
        narrowed(tail, 4, told(made)["coded"], bits)


def test_the_graph_computes_what_the_student_computed(cnn: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Student] = []
    original = distil.distil

    def watched(student: Student, *rest: Any, **named: Any) -> Any:
        kept.append(student)
        return original(student, *rest, **named)

    monkeypatch.setattr(distil, "distil", watched)
    made = Bottleneck(channels=(2,), bits=4, width=8, decoder_width=16, **FEW)(cnn, given(cnn))
    (student,) = kept
    images = fashion_samples("t10k", 0, 32)["image"]
    with torch.no_grad():
        (wanted,) = student.answers(student.decoder(student.coded(torch.as_tensor(images))), student.outputs)
    got = answers(made, images)
    apart = np.abs(got - wanted.numpy().reshape(got.shape)).max(axis=1) / np.abs(got).max()
    assert np.sort(apart)[-3] < 1e-4, apart  # a value on the edge between two codes may fall to the other side


def test_training_that_was_stopped_goes_on_to_the_same_model(cnn: Model, tmp_path: Path) -> None:
    how = Bottleneck(channels=(1, 2), bits=4, width=4, decoder_width=8, **{**FEW, "mimic": 2, "tune": 2})
    unbroken = how(cnn, given(cnn, 200))
    for stopped_at in (3, 9, 21, 30):
        calls = 0

        def stopping(message: str, limit: int = stopped_at) -> None:
            nonlocal calls
            calls += message.startswith("bottleneck: stage")
            if calls == limit:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            how(cnn, given(cnn, 200, stopping, tmp_path))
    seen: list[str] = []
    assert how(cnn, given(cnn, 200, seen.append, tmp_path)).digest == unbroken.digest
    assert any("goes on after step" in message for message in seen)
    steps_left = sum(message.startswith("bottleneck: stage") for message in seen)
    assert 0 < steps_left < 4 * (190 // 16)


def test_features_of_the_teacher_are_kept_on_disk_and_give_the_same(
    cnn: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgesdk_converters.bottlenecks import teacher

    how = Bottleneck(channels=(1,), bits=8, width=4, decoder_width=8, **FEW)
    kept = how(cnn, given(cnn))
    in_memory = kept.digest
    monkeypatch.setattr(teacher, "IN_MEMORY_BYTES", 0)
    assert how(cnn, given(cnn, cache=tmp_path / "a")).digest == in_memory
    assert len(list((tmp_path / "a" / "features").iterdir())) == 1
    monkeypatch.setattr(teacher, "KEPT_BYTES", 0)
    seen: list[str] = []
    computed = how(cnn, given(cnn, progress=seen.append))
    assert any("computed anew in every epoch" in message for message in seen)
    images = fashion_samples("t10k", 0, 20)["image"]
    got, wanted = answers(computed, images), answers(kept, images)
    assert computed.digest != in_memory and np.abs(got - wanted).max() < 0.1 * np.abs(wanted).max()  # these are in float16


def test_stage_one_leaves_the_rest_as_it_was_and_a_frozen_encoder_stays_so(cnn: Model) -> None:
    def stored(model: Model) -> dict[str, Any]:
        return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.proto.graph.initializer}

    small = {"channels": (1,), "width": 4, "decoder_width": 8, "batch": 16}
    mimicked = Bottleneck(mimic=1, tune=0, **small)(cnn, given(cnn))
    tuned = Bottleneck(mimic=1, tune=1, freeze_encoder=True, **small)(cnn, given(cnn))
    whole = Bottleneck(mimic=1, tune=1, **small)(cnn, given(cnn))
    first, second, third, source = stored(mimicked), stored(tuned), stored(whole), stored(cnn)
    rest = [name for name in source if name in first]
    assert rest and all(np.array_equal(first[name], source[name]) for name in rest)
    assert any(not np.array_equal(second[name], source[name]) for name in rest)
    encoders = [name for name in first if "/encoder/" in name and first[name].dtype == np.float32]
    assert encoders and all(np.array_equal(first[name], second[name]) for name in encoders)
    assert any(not np.array_equal(first[name], third[name]) for name in encoders)


def test_placed_at_the_cut_the_network_before_it_stays(cnn: Model) -> None:
    at = cuts(cnn)[1].tensors[0]
    made = Bottleneck(at=at, placement="cut", channels=(2,), width=8, decoder_width=8, **FEW)(cnn, given(cnn))
    head, _ = split(made, told(made)["crosses"])
    before = {tensor.name: tensor.raw_data for tensor in split(cnn, at)[0].proto.graph.initializer}
    after = {tensor.name: tensor.raw_data for tensor in head.proto.graph.initializer}
    assert before and before.items() <= after.items()
    assert "an autoencoder at the cut" in made.history[-1].note


@pytest.mark.parametrize("net", ["vit", "resnet", "mobilenet"])
def test_every_kind_of_network(net: str) -> None:
    model = network(net)
    made = Bottleneck(channels=(2,), width=8, decoder_width=8, **FEW)(model, given(model, 32))
    head, tail = split(made, told(made)["crosses"])
    assert head.signature.outputs[0].shape[:2] == (1, 2) and tail.signature.outputs == model.signature.outputs


@pytest.mark.parametrize(
    ("shape", "cut", "coded"),
    [
        ((1, 3, 224, 224), (1, 64, 28, 28), (1, 4, 28, 28)),
        ((1, 3, 224, 224), (1, 256, 14, 14), (1, 4, 28, 28)),
        ((1, 3, 225, 190), (1, 40, 13, 11), (1, 4, 29, 24)),
        ((1, 49, 10, 1), (1, 64, 25, 5), (1, 4, 13, 3)),
        ((1, 32, 32, 3), (1, 16, 32, 32), (1, 4, 8, 8)),
        ((1, 8, 500), (1, 64, 40), (1, 4, 63)),
        ((1, 16000), (1, 20, 30), (1, 4, 2000)),
        ((1, 12), (1, 30), (1, 4)),
        ((1, 3, 32, 32), (1, 17, 24), (1, 4, 8, 8)),
    ],
)
def test_designs_fit_any_input_and_any_cut(shape: tuple[int, ...], cut: tuple[int, ...], coded: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    code = encoder(shape, 4, width=8)
    assert crossing(shape, code) == coded
    back = decoder(coded, cut, width=8, positive=True).eval()
    with torch.no_grad():
        made = back(code.eval()(torch.randn(3, *shape[1:])))
        assert tuple(made.shape[1:]) == cut[1:] and bool((made >= 0).all())
        x = torch.randn(2, *shape[1:])
        assert torch.allclose(fused(code)(x), code(x), atol=1e-5)
    assert macs(shape, code) > 0


def test_the_quantiser_spends_its_steps_on_values_of_unit_variance() -> None:
    for bits in range(2, 9):
        scale, zero = steps(bits)
        low, high = -zero * scale, (2**bits - 1 - zero) * scale
        assert low < -1.2 and high > 0.6 and zero * scale + low == 0


def test_modules_of_ones_own(cnn: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    own = ModuleType("own_bottleneck")

    def pair(shape: tuple[int, ...], cut: tuple[int, ...], channels: int) -> Any:
        assert (shape, channels) == ((1, 1, 28, 28), 3)
        nn = torch.nn
        return nn.Sequential(nn.Conv2d(1, 3, 4, 4), nn.BatchNorm2d(3)), decoder((1, 3, 7, 7), cut, width=8)

    own.pair, own.wrong = pair, lambda *_: 3  # type: ignore[attr-defined]
    own.narrow = lambda shape, cut, channels: (pair(shape, cut, 3)[0], torch.nn.Flatten())  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_bottleneck", own)
    made = Bottleneck(channels=(3,), modules="own_bottleneck:pair", **FEW)(cnn, given(cnn))
    head, _ = split(made, told(made)["crosses"])
    assert [node.op_type for node in head.proto.graph.node if node.op_type == "Conv"] == ["Conv"]
    with pytest.raises(PassError, match="returned int; a pair of torch modules is needed"):
        Bottleneck(channels=(3,), modules="own_bottleneck:wrong", **FEW)(cnn, given(cnn))
    with pytest.raises(PassError, match="decoder \\[1, 147\\]; wanted"):
        Bottleneck(channels=(3,), modules="own_bottleneck:narrow", **FEW)(cnn, given(cnn))


def test_what_it_refuses(cnn: Model, build: Any) -> None:
    for options, told_so in (
        ({"channels": ()}, "channels is"), ({"channels": (0,)}, "channels is"), ({"channels": (2, 2)}, "channels is"),
        ({"bits": 9}, "bits is 9; allowed: 2 to 8, or 32"), ({"mimic": 0, "tune": 0}, "nothing would be learned"),
        ({"batch": 1}, "batch is 1; allowed: 2"), ({"head_share": 0}, "head_share is 0"),
    ):  # fmt: skip
        with pytest.raises(PassError, match=told_so):
            Bottleneck(**options)  # type: ignore[arg-type]
    with pytest.raises(PassError, match="there are only"):
        Bottleneck()(cnn, Given(cnn, synthetic(cnn, 8)))
    with pytest.raises(ModelError, match="'nowhere' is no place to cut"):
        Bottleneck(at="nowhere")(cnn, given(cnn))
    with pytest.raises(PassError, match="stride is 3; allowed: a power of two"):
        Bottleneck(stride=3, **FEW)(cnn, given(cnn))
    for count, options, told_so in (
        (2, {}, "2 samples are too few to learn from: 3 or more are needed, one of which is held out"),
        (1, {}, "1 sample is too few to learn from: 3 or more are needed, one of which is held out"),
        (1, {"augment": True}, "1 sample is too few to learn from: 2 or more are needed, one of which is held out"),
    ):  # fmt: skip
        with pytest.raises(PassError, match=told_so) as caught:
            Bottleneck(**FEW, **options)(cnn, given(cnn, count))  # type: ignore[arg-type]
        assert caught.value.hint == "give more of them with --train FILE.npz"
    for count, options in ((3, {}), (2, {"augment": True})):
        assert Bottleneck(**FEW, **options)(cnn, given(cnn, count)).history[-1].name == "bottleneck"  # type: ignore[arg-type]
    with pytest.raises(PassError, match="has a bottleneck already"):
        Bottleneck(**FEW)(Bottleneck(width=4, decoder_width=4, **FEW)(cnn, given(cnn)), given(cnn))
    two = Model.from_proto(
        build(
            [
                helper.make_node("Add", ["a", "b"], ["s"]), helper.make_node("Relu", ["s"], ["r"]),
                helper.make_node("Abs", ["r"], ["y"]),
            ],
            [("a", [1, 4]), ("b", [1, 4])], [("y", [1, 4])], {},
        ),
        "two",
    )  # fmt: skip
    samples = replace(synthetic(two, 16), synthetic=False, origin="made for a test")
    with pytest.raises(PassError, match="reads one float32 input; two has a \\(float32\\), b \\(float32\\)"):
        Bottleneck(**FEW)(two, Given(two, samples))


def test_a_cut_is_chosen_where_the_least_crosses_behind_some_of_the_work() -> None:
    model = network("resnet")
    found = cuts(model)
    cut = bottleneck._chosen("", model, found)
    whole = cut.head_macs + cut.tail_macs
    assert bottleneck.SHARE[0] <= cut.head_macs / whole <= bottleneck.SHARE[1]
    later = bottleneck._behind(found, cut, 2)
    places = {other.tensors[0]: other.head_macs for other in found}
    assert len(later) == 2 and cut.head_macs < places[later[0]] < places[later[1]]


def test_mirror_images_double_the_samples_and_none_of_those_held_out_is_learned_from(cnn: Model) -> None:
    made = Bottleneck(channels=(1,), width=4, decoder_width=8, augment=True, **FEW)(cnn, given(cnn, 40))
    assert "mirrored too" in made.history[-1].note and "right on 2 held-out" in made.history[-1].note
    assert "8 steps on 76 of" in made.history[-1].note  # two of 40 are held out, and their mirror images with them


def test_ssim_and_psnr_by_hand() -> None:
    rng = np.random.default_rng(0)
    x = torch.as_tensor(rng.random((2, 1, 16, 16)).astype(np.float32))
    assert ssim(x, x) == pytest.approx(1.0) and psnr_db(x, x) == 100
    assert psnr_db(x, (x + 0.1)) == pytest.approx(20, abs=1e-3)
    # of constant images all variances are 0: what is left is the comparison of means
    a, b = torch.full((1, 1, 16, 16), 0.2), torch.full((1, 1, 16, 16), 0.7)
    assert ssim(a, b) == pytest.approx((2 * 0.14 + 1e-4) / (0.04 + 0.49 + 1e-4), rel=1e-3)


def test_what_tells_more_of_the_input_leaks_more(cnn: Model) -> None:
    names = [cut.tensors[0] for cut in cuts(cnn)]
    samples = given(cnn, 200).lessons
    assert samples is not None
    early = leakage(cnn, names[0], samples, lambda _: None)
    late = leakage(cnn, names[-1], samples, lambda _: None)
    assert early.psnr_db > late.psnr_db > early.mean_psnr_db - 1
    assert early.ssim is not None and late.ssim is not None and early.ssim > late.ssim
    assert early.n == 40


def test_tuning_that_makes_it_worse_is_not_taken(cnn: Model) -> None:
    small = {"channels": (1, 2), "width": 4, "decoder_width": 8, "batch": 16, "mimic": 2}
    mimicked = Bottleneck(tune=0, **small)(cnn, given(cnn, 200))
    spoilt = Bottleneck(tune=2, tune_learning_rate=0.5, **small)(cnn, given(cnn, 200))
    images = fashion_samples("t10k", 0, 20)["image"]
    assert np.allclose(answers(spoilt, images), answers(mimicked, images), atol=1e-5)
