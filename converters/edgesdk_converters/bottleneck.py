"""Bottleneck: a learned encoder and decoder in a network, with few bytes between them. Split there, and those cross."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from .calibration import Samples
from .cost import layers
from .errors import ModelError, PassError
from .model import Model, Step
from .passes import Given
from .payload import packed_bytes
from .split import Cut, cuts, split

if TYPE_CHECKING:
    from .bottlenecks.distil import Distilled
    from .bottlenecks.student import Student

ENDING = "/bottleneck"
"""How the name of the tensor that the encoder gives ends."""
SHARE = (0.15, 0.6)
"""Of the MACs, between which a cut lies that is chosen: BottleFit replaces the first two of four stages."""


@dataclass(frozen=True)
class Bottleneck:
    """An encoder takes the place of all before the tensor `at` (BottleFit, arXiv 2201.02693), and a decoder gives that tensor.

    `at` "" chooses: of the cuts behind 15 to 60 % of the MACs that with the fewest bytes. With `placement` cut the network stays
    as it is up to there, and the encoder reads the tensor itself (an autoencoder, the baseline).
    `channels` cross, each a grid smaller than the input by `stride` (a power of two; 0: 4, or 8 from 64 pixels on), at `bits` a
    value (2 to 8; 32 sends floats). Several numbers are operating points of one training: fewer cross, the same encoder runs.
    `width` is that inside the encoder (0: the widest with at most `head_share` of the network's MACs, and so few parameters that
    the network has `smaller` times as many). `modules` names a function (package.module:callable) of input shape, shape at the
    cut, and channels, that returns an encoder and a decoder of its own, torch modules.

    Both learn for `mimic` epochs what the model that comes in has at the cut and in `features` behind it (none given: `later`
    tensors on the way to the output), then for `tune` epochs the source model's answers, and the labels by `labels_share` where
    there are some; then the network behind them learns too, and the encoder unless `freeze_encoder`. `augment` adds mirror images
    to the samples.
    The tensor that crosses is named `at`/bottleneck, packed `at`/bottleneck/payload: split there.
    """

    name: ClassVar[str] = "bottleneck"
    at: str = ""
    channels: tuple[int, ...] = (4,)
    bits: int = 8
    placement: Literal["input", "cut"] = "input"
    stride: int = 0
    width: int = 0
    head_share: float = 0.1
    smaller: float = 16.0
    decoder_width: int = 0
    modules: str = ""
    mimic: int = 5
    tune: int = 5
    features: tuple[str, ...] = ()
    later: int = 2
    freeze_encoder: bool = False
    labels_share: float = 0.5
    temperature: float = 2.0
    learning_rate: float = 2e-3
    tune_learning_rate: float = 1e-3
    batch: int = 64
    augment: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.channels or any(count < 1 for count in self.channels) or len(set(self.channels)) < len(self.channels):
            raise PassError(self.name, f"channels is {list(self.channels)}; allowed: different numbers of 1 or more")
        if self.bits != 32 and not 2 <= self.bits <= 8:
            raise PassError(self.name, f"bits is {self.bits}; allowed: 2 to 8, or 32")
        for name, low, high in (
            ("stride", 0, 4096), ("width", 0, 4096), ("decoder_width", 0, 4096), ("mimic", 0, 10**6), ("tune", 0, 10**6),
            ("later", 0, 100), ("batch", 2, 10**6), ("head_share", 1e-6, 1), ("smaller", 0, 1e9),
        ):  # fmt: skip
            value = getattr(self, name)
            if not low <= value <= high:
                raise PassError(self.name, f"{name} is {value}; allowed: {low:g} to {high:g}")
        if not self.mimic and not self.tune:
            raise PassError(self.name, "mimic and tune are both 0: nothing would be learned", "give mimic=5, tune=5")

    @property
    def points(self) -> tuple[int, ...]:
        """The operating points, least first."""
        return tuple(sorted(self.channels))

    def __call__(self, model: Model, given: Given) -> Model:
        from .bottlenecks.insert import raised
        from .from_torch import OPSET

        samples = given.lessons or given.train
        if samples.synthetic:
            told = f"encoder and decoder learn from data, and there are only {samples.origin}"
            raise PassError(self.name, told, "give --train FILE.npz")
        if any(ENDING in value for node in model.proto.graph.node for value in node.output):
            raise PassError(self.name, f"{model.name} has a bottleneck already", "one is all that crosses")
        model = raised(model, OPSET, model.name)
        return _Made(self, model, given, _mirrored(model, samples) if self.augment else samples).finished()


class _Made:
    """One application of the pass: what is designed, trained and put together."""

    def __init__(self, how: Bottleneck, model: Model, given: Given, samples: Samples) -> None:
        self.how, self.model, self.given, self.samples = how, model, given, samples
        found = cuts(model)
        self.cut = _chosen(how.at, model, found)
        self.at = self.cut.tensors[0]
        self.later = how.features or _behind(found, self.cut, how.later if how.mimic else 0)
        self.macs = self.cut.head_macs + self.cut.tail_macs
        self.front, self.rest = split(model, self.at)
        inputs = model.signature.inputs
        self.shape = self.cut.shapes[0]
        self.source_shape = self.shape if how.placement == "cut" else tuple(int(dim) for dim in inputs[0].shape)
        for what, shape in (("the input", self.source_shape), (f"{self.at!r}", self.shape)):
            if len(shape) < 2 or shape[0] != 1:
                raise PassError(how.name, f"{what} has shape {list(shape)}; a batch axis of 1 is needed", "give --shape")
        if how.placement == "input" and (len(inputs) != 1 or inputs[0].dtype != "float32"):
            got = ", ".join(f"{spec.name} ({spec.dtype})" for spec in inputs)
            raise PassError(how.name, f"the encoder reads one float32 input; {model.name} has {got}", "take placement=cut")

    def finished(self) -> Model:
        import torch

        from .bottlenecks.distil import Lessons, distil, key_of
        from .bottlenecks.student import Student
        from .bottlenecks.teacher import Features
        from .to_torch import to_torch
        from .train import Lesson, Training

        how, given, samples = self.how, self.given, self.samples
        names = (self.at, *self.later) if how.mimic or how.placement == "cut" else ()
        features = Features(self.model, names, samples, given.cache, given.progress)
        torch.manual_seed(how.seed)
        encoder, decoder = self._designed(bool(features.positive and features.positive[0]))
        student = Student(encoder, decoder, how.bits, to_torch(self.rest), self.later)
        training = Training(
            batch=how.batch, temperature=how.temperature, labels_share=how.labels_share, seed=how.seed,
            device=given.training_device,
        )  # fmt: skip
        lesson = Lesson(given.source, given.source, samples, training, given.progress)
        lessons = Lessons(
            how.mimic, how.tune, how.points, how.batch, how.learning_rate, how.tune_learning_rate, how.freeze_encoder, how.seed,
            given.training_device,
        )  # fmt: skip
        parts = [given.source.digest, self.model.digest, self.rest.digest, *names, how.placement, str(how.bits)]
        parts += [str(how.labels_share), str(how.temperature), *key_of((encoder, decoder))]
        done = distil(
            student, features, lesson, samples, lessons, takes_features=how.placement == "cut",
            distinct=len(samples) // (2 if how.augment else 1), key=parts, cache=given.cache, progress=given.progress,
        )  # fmt: skip
        return self._joined(student.cpu(), done)

    def _designed(self, positive: bool) -> tuple[Any, Any]:
        from .bottlenecks import design

        how, most = self.how, self.how.points[-1]
        if how.modules:
            return self._of_user(most)
        image = how.placement == "input"
        allowed = self.macs * how.head_share
        held = sum(layer.params for layer in layers(self.model))
        widths = (how.width,) if how.width else design.WIDTHS
        for width in widths:
            encoder = design.encoder(self.source_shape, most, stride=how.stride, width=width, image=image)
            coded = design.crossing(self.source_shape, encoder)
            own = sum(value.numel() for value in encoder.parameters())
            if own * how.smaller <= held and design.macs(self.source_shape, encoder) <= allowed:
                break
        return encoder, design.decoder(coded, self.shape, width=how.decoder_width, positive=positive)

    def _of_user(self, channels: int) -> tuple[Any, Any]:
        import torch

        from .from_torch import call

        made = call(self.how.modules, self.source_shape, self.shape, channels)
        if not isinstance(made, tuple) or len(made) != 2 or not all(isinstance(part, torch.nn.Module) for part in made):
            raise PassError(
                self.how.name, f"{self.how.modules} returned {type(made).__name__}; a pair of torch modules is needed"
            )
        encoder, decoder = made
        try:
            with torch.no_grad():
                coded = encoder.eval()(torch.zeros(self.source_shape))
                back = decoder.eval()(coded)
        except (RuntimeError, TypeError, ValueError) as error:
            told = f"the modules of {self.how.modules} do not run: {' '.join(str(error).split())[:200]}"
            raise PassError(self.how.name, told) from error
        if coded.ndim < 2 or coded.shape[1] != channels or tuple(back.shape) != self.shape:
            told = f"{self.how.modules}: encoder gives {list(coded.shape)}, decoder {list(back.shape)}"
            raise PassError(self.how.name, f"{told}; wanted: {channels} on the second axis, and {list(self.shape)}")
        return encoder, decoder

    def _joined(self, student: Student, done: Distilled) -> Model:
        import torch

        from .bottlenecks.design import crossing, fused
        from .bottlenecks.insert import Parts, joined, raised
        from .from_torch import from_module
        from .to_torch import with_weights

        how, given = self.how, self.given
        given.progress("putting the bottleneck into the graph")
        coded = crossing(self.source_shape, student.encoder)
        made = []
        for part, shape in ((student.encoder, self.source_shape), (student.decoder, coded)):
            plain = fused(part) if isinstance(part, torch.nn.Sequential) else part.eval()
            made.append(raised(from_module(plain, [torch.zeros(shape)], how.name), self.model.opset, "the bottleneck"))
        rest = with_weights(self.rest, student.rest.weights(), Step(how.name)) if how.tune else self.rest
        front = self.front if how.placement == "cut" else None
        proto, crosses = joined(self.model, Parts(front, made[0], made[1], rest), self.at, how.bits)
        count = math.prod(coded)
        size = packed_bytes(count, how.bits) if how.bits < 32 else 4 * count
        kind = "a distilled bottleneck" if how.placement == "input" else "an autoencoder at the cut"
        note = f"{kind} for {self.at}: {list(coded)} at {how.bits} bits are {size:,} bytes (the tensor has {self.cut.bytes:,})"
        note += f"; {done.steps:,} steps on {done.learned_from:,} of {self.samples.origin}"
        if done.kept:
            told = ", ".join(f"{100 * share:.2f} % with {channels}" for channels, share in done.kept.items())
            note += f"; right on {done.held_out:,} held-out samples: {told} channels, the source {100 * done.teacher:.2f} %"
        options: dict[str, Any] = {
            "at": self.at, "crosses": crosses, "channels": list(how.points), "bits": how.bits, "placement": how.placement,
            "coded": list(coded),
        }  # fmt: skip
        try:
            return self.model.changed(proto, Step(how.name, options, note))
        except ModelError as error:
            raise PassError(how.name, f"the model with a bottleneck is not valid: {error.message}") from error


def _chosen(at: str, model: Model, found: Sequence[Cut]) -> Cut:
    """The cut of that name, or the one to take. Raises ModelError where there is none, PassError where it is no float tensor."""
    if at:
        for cut in found:
            if cut.tensors == (at,):
                if cut.dtypes != ("float32",):
                    raise PassError("bottleneck", f"{at!r} is {cut.dtypes[0]}; the decoder gives float32", "cut elsewhere")
                return cut
        split(model, at)  # says why it is none
    fitting = [cut for cut in found if cut.dtypes == ("float32",) and len(cut.shapes[0]) > 1]
    if not fitting:
        raise PassError(
            "bottleneck", f"{model.name} has no cut at one float32 tensor", "edgesdk cuts MODEL --fold lists its cuts"
        )
    whole = max(1, fitting[0].head_macs + fitting[0].tail_macs)
    within = [cut for cut in fitting if SHARE[0] <= cut.head_macs / whole <= SHARE[1]]
    if not within:
        return min(fitting, key=lambda cut: abs(cut.head_macs / whole - sum(SHARE) / 2))
    return min(within, key=lambda cut: (cut.bytes, cut.head_macs, -cut.head_nodes))


def _behind(found: Sequence[Cut], cut: Cut, count: int) -> tuple[str, ...]:
    """So many cuts on the way from one to the output, at even steps of the MACs between."""
    behind = [other for other in found if other.head_nodes > cut.head_nodes and other.dtypes == ("float32",)]
    names: list[str] = []
    for part in range(1, count + 1):
        limit = cut.head_macs + cut.tail_macs * part / count
        reached = [other.tensors[0] for other in behind if other.head_macs <= limit]
        if reached and reached[-1] not in names:
            names.append(reached[-1])
    return tuple(names)


def _mirrored(model: Model, samples: Samples) -> Samples:
    """The samples, and their mirror images behind them."""
    from .bottlenecks.design import grid

    arrays = {}
    for spec in model.signature.inputs:
        rows = samples.arrays[spec.name]
        where = grid([int(dim) for dim in spec.shape], image=True)
        if len(where.size) != 2:
            raise PassError("bottleneck", f"augment mirrors images; {spec.name!r} has shape {list(spec.shape)}")
        arrays[spec.name] = np.concatenate([rows, np.flip(rows, -2 if where.last else -1)])
    double = None if samples.labels is None else np.concatenate([samples.labels, samples.labels])
    slices = None if samples.slices is None else np.concatenate([samples.slices, samples.slices])
    return Samples(arrays, f"{samples.origin}, mirrored too", double, slices, samples.leading_axis, samples.synthetic)
