"""Train: the one loop that all passes with gradients share. A student learns a teacher's answers, and labels if there are any.

The teacher is any ONNX model, run by ONNX Runtime. The student is a graph too: to_torch makes it learn, and its weights come
back by name. Each sample is computed alone, as the graph says, and many at once (torch.vmap): a batch size of 1 that is written
into the graph stays true. Batch normalisation keeps its statistics.

The same settings, model and data give the same weights on one machine's CPU, with or without stops in between.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import accuracy
from .calibration import Samples
from .errors import MissingExtra, PassError
from .model import Model, Step
from .passes import Given, silent
from .reference import Reference
from .to_torch import TorchModel, to_torch, with_weights

try:
    import torch
    from torch import Tensor
    from torch.nn import functional as F  # noqa: N812
except ImportError as _error:
    raise MissingExtra("torch", "torch") from _error

from .checkpoint import Cached, Named, State

Array = NDArray[Any]
KEPT_ANSWERS_BYTES = 512_000_000
"""Of the teacher's answers that are kept in memory; beyond that it is asked again in every epoch."""
BETWEEN_CHECKPOINTS_S = 30.0
WARM_UP_SHARE = 0.05
"""Of all steps, over which the learning rate grows to its full value; then it falls as a cosine."""
EDITION = 2
"""Raised where the same settings come to train differently, so that checkpoints of before are of another training."""


@dataclass(frozen=True)
class Training:
    """What decides the outcome.

    `learning_rate` is Adam's at its highest. `labels_share` (0..1) is the weight of the labels beside the teacher's answers,
    `features_weight` that of the intermediate tensors in `features` beside both. `temperature` softens the teacher's classes.
    `validation_share` of the samples is held out by seed; the weights of the epoch with the least loss there are the result.
    Training ends early after `patience` epochs without a new least, 0 for never. It ends, and the weights of that epoch are the
    result, once the student loses no more top-1 accuracy to the teacher than `stop_at_drop_points`: without labels, no more than
    that share of answers differs. What counts is the upper end of the 95 % interval, on the held-out samples, and only where the
    first output is a vector of classes' scores. With `zeros_stay`, zeros in weights of two axes or more are no values to learn:
    those that rounding to integers made zero stay zero as well. `device` is torch's name of where it runs.
    """

    epochs: int = 5
    batch: int = 32
    learning_rate: float = 1e-3
    temperature: float = 2.0
    labels_share: float = 0.5
    features: tuple[str, ...] = ()
    features_weight: float = 1.0
    validation_share: float = 0.1
    patience: int = 0
    seed: int = 0
    device: str = "cpu"
    stop_at_drop_points: float | None = None
    zeros_stay: bool = False

    def __post_init__(self) -> None:
        for name, low, high in (
            ("epochs", 0, 10**6), ("batch", 1, 10**6), ("learning_rate", 0, 1e3), ("temperature", 1e-3, 1e3),
            ("labels_share", 0, 1), ("features_weight", 0, 1e6), ("validation_share", 0, 0.9), ("patience", 0, 10**6),
            ("stop_at_drop_points", 0, 1e6),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise PassError("train", f"{name} is {value}; allowed: {low:g} to {high:g}")
        if self.stop_at_drop_points is not None and not self.validation_share:
            raise PassError(
                "train", "stop_at_drop_points with a validation_share of 0: there are no samples to take the drop on",
                "hold some out, validation_share=0.1",
            )  # fmt: skip


@dataclass
class Trained:
    """What came of a training: the model, and the losses on the held-out samples, that before the first epoch included.

    `bounds_points` are the upper ends of the drop's 95 % interval after each epoch; empty where no drop was to end it.
    """

    model: Model
    losses: list[float] = field(default_factory=list)
    bounds_points: list[float] = field(default_factory=list)
    steps: int = 0
    resumed: bool = False


def train(
    student: Model,
    teacher: Model,
    samples: Samples,
    how: Training,
    *,
    until: Callable[[Model], bool] | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[str], None] = silent,
) -> Trained:
    """The student with weights that make its answers those of the teacher on `samples` (and right, where they have labels).

    `until` is asked after every epoch whether the model is good enough. With `checkpoint`, a file, training goes on from there
    after a stop of any kind; the file stays. Raises PassError where the loss is no number, the two models do not fit together,
    there are too few samples, or the checkpoint is damaged, of another training, or cannot be written.
    """
    run = _Run(student, teacher, samples, how, progress)
    return run.go(until, None if checkpoint is None else Named(checkpoint, run.key))


def learned(made: Model, given: Given, how: Training) -> Model:
    """What a pass made, after learning the source model's answers to `given.lessons`; how passes train.

    It ends early once the drop that was promised is held. Zeros that the pass `sparsify` made stay. With `given.cache` it goes
    on where it was stopped. Raises PassError, in the name of the pass that was last, where there are no data but random ones.
    """
    samples = given.lessons or given.train
    if samples.synthetic:
        name = made.history[-1].name if made.history else "train"
        raise PassError(name, f"finetune learns from data, and there are only {samples.origin}", "give --train FILE.npz")
    how = replace(how, device=given.training_device)
    if how.stop_at_drop_points is None and how.validation_share:
        how = replace(how, stop_at_drop_points=given.max_drop_points)
    if any(step.name == "sparsify" for step in made.history):
        how = replace(how, zeros_stay=True)
    run = _Run(made, given.source, samples, how, given.progress)
    return run.go(None, None if given.cache is None else Cached(given.cache / "training", run.key, given.progress)).model


class _Run:
    def __init__(self, student: Model, teacher: Model, samples: Samples, how: Training, progress: Callable[[str], None]) -> None:
        if len(samples) < 2:
            told = "1 sample is" if len(samples) == 1 else f"{len(samples)} samples are"
            raise PassError(
                "train", f"{told} too few to learn from: 2 or more are needed", "give more of them with --train FILE.npz"
            )
        self.student, self.how, self.progress = student, how, progress
        self.lesson = Lesson(student, teacher, samples, how, progress)
        try:
            torch.zeros(1, device=how.device)
        except (RuntimeError, AssertionError) as error:  # torch has no one error for what is not there
            told = " ".join(str(error).split()).split(". ")[0]
            raise PassError("train", f"torch cannot train on {how.device!r}: {told}", "train on cpu") from error
        self.module = to_torch(student).to(how.device)
        self.module.results = (*self.module.results, *how.features)
        self.answer = Answers(self.module, samples)
        self.parameters = dict(self.module.named_parameters())
        if not self.parameters:
            raise PassError("train", f"{student.name} has no weights that could learn")
        self.optimiser = torch.optim.Adam(self.parameters.values(), lr=how.learning_rate)
        order = np.random.default_rng(how.seed).permutation(len(samples))
        held_out = min(len(samples) - 1, max(1, round(how.validation_share * len(samples)))) if how.validation_share else 0
        self.held_out, self.learned_from = np.sort(order[:held_out]), np.sort(order[held_out:])
        self.per_epoch = math.ceil(len(self.learned_from) / how.batch)
        zeros = {name: value.detach() == 0 for name, value in self.parameters.items() if how.zeros_stay and value.ndim > 1}
        self.zeros = {name: zero for name, zero in zeros.items() if bool(zero.any())}
        self.takes_drop = how.stop_at_drop_points is not None and self.lesson.classes
        if how.stop_at_drop_points is not None and not self.takes_drop:
            progress(f"{self.lesson.names[0]!r} is no vector of classes' scores: no drop can end it early")
        self.step = 0
        self.losses: list[float] = []
        self.bounds_points: list[float] = []
        self.best: dict[str, Tensor] = {}
        self.resumed = False
        parts = [student.digest, teacher.digest, samples.digest(), json.dumps(asdict(how), sort_keys=True)]
        parts += [str(EDITION), torch.__version__]
        self.key = hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def go(self, until: Callable[[Model], bool] | None, checkpoint: Named | Cached | None) -> Trained:
        found = None if checkpoint is None else checkpoint.load()
        total = self.how.epochs * self.per_epoch
        if found is not None:
            self._resume(found)
            self.progress(f"goes on after step {self.step} of {total}")
        begin, first, saved = time.monotonic(), self.step, time.monotonic()
        if not self.losses:
            self._judge()
        while (good_enough := self._good_enough(until)) is None and self.step < total and not self._stalled():
            epoch, place = divmod(self.step, self.per_epoch)
            order = np.random.default_rng((self.how.seed, epoch + 1)).permutation(self.learned_from)
            loss = self._learn(order[place * self.how.batch : (place + 1) * self.how.batch], total)
            self.step += 1
            left = (time.monotonic() - begin) / (self.step - first) * (total - self.step)
            self.progress(f"training: epoch {epoch + 1} of {self.how.epochs}, loss {loss:.4g}, {_duration(left)} left")
            ended = self.step % self.per_epoch == 0
            if ended:
                self._judge()
            if checkpoint is not None and (ended or time.monotonic() - saved > BETWEEN_CHECKPOINTS_S):
                checkpoint.save(self._state())
                saved = time.monotonic()
        model = self._model(self.best, min(self.losses)) if good_enough is None else good_enough
        return Trained(model, self.losses, self.bounds_points, self.step, self.resumed)

    def _learn(self, rows: Array, total: int) -> float:
        for group in self.optimiser.param_groups:
            group["lr"] = self.how.learning_rate * rate(self.step, total)
        loss = self.lesson.loss(self.answer(rows), rows)
        self.optimiser.zero_grad()
        torch.autograd.backward([loss])
        for name, zero in self.zeros.items():
            if (gradient := self.parameters[name].grad) is not None:
                gradient.masked_fill_(zero, 0.0)  # they would count in the norm
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), 10.0)
        self.optimiser.step()
        self._hold_zeros()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise PassError("train", f"the loss is {value} after {self.step + 1} steps", "take a smaller learning rate")
        return value

    def _judge(self) -> None:
        """The loss on the held-out samples (on all, where none is), and the drop; the weights of the least loss are kept."""
        rows = self.held_out if len(self.held_out) else self.learned_from
        total, first = 0.0, []
        with torch.no_grad():
            for part in _parts(rows, self.how.batch):
                answers = self.answer(part)
                total += float(self.lesson.loss(answers, part)) * len(part)
                first.append(answers[0].cpu().numpy())
        self.losses.append(total / len(rows))
        if self.takes_drop and self.step:
            self.bounds_points.append(self.lesson.drop(np.concatenate(first), rows).bound_points)
        if not math.isfinite(self.losses[-1]):
            raise PassError("train", f"the loss on held-out samples is {self.losses[-1]}", "take a smaller learning rate")
        if self.losses[-1] == min(self.losses):
            self.best = self._now()

    def _good_enough(self, until: Callable[[Model], bool] | None) -> Model | None:
        """The model as it is after this epoch, where no more is asked of it; None elsewhere, and within epochs."""
        if not self.step or self.step % self.per_epoch:
            return None
        limit = self.how.stop_at_drop_points
        if self.takes_drop and limit is not None and self.bounds_points[-1] <= limit:
            what = "top-1 accuracy lost" if self.lesson.labels is not None else "top-1 answers changed"
            told = f"; ended after epoch {self.step // self.per_epoch} of {self.how.epochs}, with at most "
            told += f"{self.bounds_points[-1]:.3g} points of {what} on {len(self.held_out)} held-out samples (95 %)"
            return self._model(self._now(), self.losses[-1], told)
        if until is None:
            return None
        model = self._model(self._now(), self.losses[-1])
        return model if until(model) else None

    def _stalled(self) -> bool:
        since = len(self.losses) - 1 - int(np.argmin(self.losses))
        return 0 < self.how.patience <= since

    def _now(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.parameters.items()}

    def _model(self, weights: Mapping[str, Tensor], loss: float, told: str = "") -> Model:
        before = self._now()
        self._put(weights)
        found = self.module.weights()
        self._put(before)
        usual = asdict(Training())
        asked = {key: value for key, value in asdict(self.how).items() if value != usual[key]}
        options = {key: list(value) if isinstance(value, tuple) else value for key, value in asked.items()}
        note = f"{self.step} steps on {len(self.learned_from)} of {self.lesson.origin}; held-out loss {self.losses[0]:.4g}"
        return with_weights(self.student, found, Step("train", options, f"{note} before, {loss:.4g} after{told}"))

    def _put(self, weights: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in weights.items():
                self.parameters[name].copy_(value)

    def _hold_zeros(self) -> None:
        with torch.no_grad():
            for name, zero in self.zeros.items():
                self.parameters[name].masked_fill_(zero, 0.0)

    def _state(self) -> State:
        tensors = {f"now/{name}": value.detach().contiguous() for name, value in self.parameters.items()}
        tensors |= {f"best/{name}": value.contiguous() for name, value in self.best.items()}
        for name, value in self.parameters.items():
            for moment, tensor in self.optimiser.state.get(value, {}).items():
                tensors[f"{moment}/{name}"] = torch.as_tensor(tensor).contiguous().clone()
        lists = {"losses": json.dumps(self.losses), "bounds_points": json.dumps(self.bounds_points)}
        return State(tensors, {"step": str(self.step), **lists})

    def _resume(self, found: State) -> None:
        tensors, facts = found.tensors, found.facts
        self.step, self.losses = int(facts["step"]), json.loads(facts["losses"])
        self.bounds_points = json.loads(facts["bounds_points"])
        self._put({name: tensors[f"now/{name}"] for name in self.parameters})
        self.best = {name: tensors[f"best/{name}"].to(self.how.device) for name in self.parameters}
        for name, value in self.parameters.items():
            moments = {key.partition("/")[0]: tensor for key, tensor in tensors.items() if key.partition("/")[2] == name}
            state = {
                moment: tensor if moment == "step" else tensor.to(value.device)  # where torch's Adam wants them
                for moment, tensor in moments.items()
                if moment not in ("now", "best")
            }
            if state:
                self.optimiser.state[value] = state
        self._hold_zeros()
        self.resumed = True


class Answers:
    """The module's answers to rows of samples, each computed alone: all at once where torch.vmap can, else one by one."""

    def __init__(self, module: TorchModel, samples: Samples) -> None:
        self.module = module
        device = next(module.parameters(), torch.zeros(0)).device
        self.inputs = [torch.as_tensor(np.ascontiguousarray(samples.arrays[name])).to(device) for name in module.names]
        self.leading = [bool(samples.leading_axis.get(name)) for name in module.names]
        self.one_by_one = False

    def __call__(self, rows: Array, replaced: Mapping[str, Tensor] | None = None) -> tuple[Tensor, ...]:
        """One tensor an output, rows first. `replaced` are parameters to take instead of the module's own."""

        def alone(*row: Tensor) -> tuple[Tensor, ...]:
            given = tuple(value[None] if lead else value for value, lead in zip(row, self.leading, strict=True))
            found = torch.func.functional_call(self.module, dict(replaced), given) if replaced else self.module(*given)
            return found if isinstance(found, tuple) else (found,)

        chosen = torch.as_tensor(rows)
        picked = [value[chosen] for value in self.inputs]
        if not self.one_by_one:
            try:
                return torch.vmap(alone)(*picked)
            except RuntimeError:
                self.one_by_one = True  # some operator has no batching rule; if it is another error, it comes again
        answers = [alone(*(value[index] for value in picked)) for index in range(len(rows))]
        return tuple(torch.stack(group) for group in zip(*answers, strict=True))


class Lesson:
    """What the student is to answer, and how far it is from that."""

    def __init__(self, student: Model, teacher: Model, samples: Samples, how: Training, progress: Callable[[str], None]) -> None:
        self.how, self.samples, self.origin = how, samples, samples.origin
        names = [spec.name for spec in student.signature.outputs]
        if names != [spec.name for spec in teacher.signature.outputs]:
            raise PassError("train", f"outputs {', '.join(names)} are not those of the teacher, {teacher.name}")
        for name in how.features:
            for model in (student, teacher):
                if name not in {value for node in model.proto.graph.node for value in node.output}:
                    raise PassError("train", f"feature {name!r} is no tensor of {model.name}", "edgesdk inspect MODEL lists them")
        self.reference = Reference(teacher, how.features)
        self.names = [*names, *how.features]
        self.labels = None if samples.labels is None else torch.as_tensor(samples.labels).to(how.device)
        self.kept: list[list[Array] | None] = [None] * len(samples)
        self.bytes = 0
        first = self.teach(0)
        self.kinds = [self._kind(index, value) for index, value in enumerate(first)]
        self.spreads = [1.0] * len(self.names)
        probe = [self.teach(int(row)) for row in np.linspace(0, len(samples) - 1, min(32, len(samples)))]
        for index, kind in enumerate(self.kinds):
            if kind == "numbers":
                self.spreads[index] = max(1e-12, float(np.stack([one[index] for one in probe]).astype(np.float64).var()))
        self.classes = bool(first[0].dtype.kind == "f" and 1 < first[0].size == max(first[0].shape, default=1))
        progress(f"teacher: {teacher.name}; {', '.join(f'{n} as {k}' for n, k in zip(self.names, self.kinds, strict=True))}")

    def _kind(self, index: int, value: Array) -> str:
        """How an output is compared: as classes' scores or probabilities, as numbers, or (of whole numbers) not at all."""
        if value.dtype.kind != "f":
            return "nothing"
        if index == 0 and value.size > 1:
            if bool((value >= 0).all()) and abs(float(value.sum()) - 1) < 1e-3:
                return "probabilities"
            if self.labels is not None:
                return "scores"
        return "numbers"

    def teach(self, row: int) -> list[Array]:
        """The teacher's answers and features for a row, kept in memory as far as there is room."""
        found = self.kept[row]
        if found is None:
            answers = self.reference.run(next(iter(self.samples.take([row]))))
            found = [answers[name] for name in self.names]
            size = sum(value.nbytes for value in found)
            if self.bytes + size <= KEPT_ANSWERS_BYTES:
                self.kept[row], self.bytes = found, self.bytes + size
        return found

    def drop(self, scores: Array, rows: Array) -> accuracy.Drop:
        """Top-1 accuracy that these scores lose to the teacher's; without labels, how many answers differ."""
        wanted = np.stack([self.teach(int(row))[0] for row in rows])
        if self.samples.labels is None:
            return accuracy.disagreement(wanted, scores)
        return accuracy.top1_drop(wanted, scores, self.samples.labels[rows])

    def loss(self, answers: Sequence[Tensor], rows: Array) -> Tensor:
        wanted = [self.teach(int(row)) for row in rows]
        total = torch.zeros((), device=self.how.device)
        for index, (answer, kind) in enumerate(zip(answers, self.kinds, strict=True)):
            if kind == "nothing":
                continue
            target = torch.as_tensor(np.stack([one[index] for one in wanted])).to(answer)
            if target.shape != answer.shape:
                told = f"{list(answer.shape[1:])} in the student and {list(target.shape[1:])} in the teacher"
                raise PassError("train", f"{self.names[index]!r} is {told}")
            weight = self.how.features_weight if self.names[index] in self.how.features else 1.0
            if kind == "numbers":
                total = total + weight * (answer - target).square().mean() / self.spreads[index]
            else:
                total = total + weight * self._classes(answer.flatten(1), target.flatten(1), kind, rows)
        return total

    def _classes(self, answer: Tensor, target: Tensor, kind: str, rows: Array) -> Tensor:
        t = self.how.temperature
        if kind == "scores":
            log, wanted = F.log_softmax(answer / t, 1), F.softmax(target / t, 1)
            hard, scale = F.log_softmax(answer, 1), t * t
        else:
            log = hard = torch.log(answer.clamp_min(1e-7))
            wanted, scale = target, 1.0
        soft = F.kl_div(log, wanted, reduction="batchmean") * scale
        share = self.how.labels_share if self.labels is not None else 0.0
        if not share:
            return soft
        assert self.labels is not None
        return (1 - share) * soft + share * F.nll_loss(hard, self.labels[torch.as_tensor(rows)])


def rate(step: int, total: int) -> float:
    """Of the full learning rate: a linear start, then half a cosine to nothing."""
    start = max(1, round(WARM_UP_SHARE * total))
    if step < start:
        return (step + 1) / start
    return 0.5 * (1 + math.cos(math.pi * (step - start) / max(1, total - start)))


def _parts(rows: Array, size: int) -> Iterator[Array]:
    for first in range(0, len(rows), size):
        yield rows[first : first + size]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def gradients(model: Model, given: Given, *, samples: int, batch: int, seed: int = 0) -> Iterator[dict[str, Array]]:
    """Of a loss by the stored tensors of the model, for one small batch of `given.lessons` after another.

    With labels the loss is that of the labels; else a random projection of the outputs, each scaled by its spread.
    """
    lessons = given.lessons or given.train
    lesson = Lesson(model, given.source, lessons, Training(labels_share=1.0), given.progress)
    module = to_torch(model)
    answer = Answers(module, lessons)
    parameters = dict(module.named_parameters())
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(lessons))[:samples]
    for count, rows in enumerate(_parts(order, batch)):
        given.progress(f"taking gradients: {count * batch} of {len(order)} samples")
        answers = answer(rows)
        if lesson.labels is not None and lesson.kinds[0] != "numbers":
            loss = lesson.loss(answers, rows)
        else:
            loss = torch.zeros(())
            for value, kind, spread in zip(answers, lesson.kinds, lesson.spreads, strict=True):
                if kind != "nothing":
                    signs = torch.as_tensor(rng.choice([-1.0, 1.0], size=value.shape)).to(value)
                    loss = loss + (value * signs).sum() / math.sqrt(spread)
        if not loss.requires_grad:
            raise PassError("train", f"no gradient reaches the weights of {model.name}", "take a criterion that needs none")
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        by_path = {path: None if g is None else g.numpy() for path, g in zip(parameters, found, strict=True)}
        yield {
            name: gradient.T if held.turned else gradient
            for name, held in module.held.items()
            if (gradient := by_path.get(held.path)) is not None
        }
