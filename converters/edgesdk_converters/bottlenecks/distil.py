"""Distil: an encoder and a decoder learn to stand for the front of a network, in two stages (BottleFit, arXiv 2201.02693).

First they mimic what the teacher makes of a sample at the cut and behind it, the rest of the network as it is. Then decoder and
rest are tuned to the teacher's answers (and the labels), with the encoder or without it; of this stage the epoch counts that has
the least loss on held-out samples, the state before it included. What crosses is rounded all the while.
Where there are several operating points, each step sees the first few channels of one of them, so that the first carry most
(nested dropout: Rippel et al. 2014, arXiv 1402.0915).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..calibration import Samples
from ..checkpoint import Cached, State
from ..errors import MissingExtra, PassError
from ..train import BETWEEN_CHECKPOINTS_S, Lesson, rate
from .student import Student
from .teacher import Features

try:
    import torch
    from torch import Tensor, nn
except ImportError as _error:
    raise MissingExtra("torch", "torch") from _error

Array = NDArray[Any]
EDITION = 2
"""Raised where the same settings come to train differently."""
HELD_OUT = (0.05, 1000)
"""Share of the samples, and how many at most, that nothing learns from."""


@dataclass(frozen=True)
class Lessons:
    """What decides the outcome. `points` are the numbers of channels that may cross, least first."""

    mimic: int
    tune: int
    points: tuple[int, ...]
    batch: int
    learning_rate: float
    tune_learning_rate: float
    freeze_encoder: bool
    seed: int
    device: str


@dataclass
class Distilled:
    """What came of it: the share of held-out samples on which each operating point is right, or answers as the teacher does."""

    kept: dict[int, float] = field(default_factory=dict)
    teacher: float = 1.0
    held_out: int = 0
    learned_from: int = 0
    steps: int = 0


def distil(
    student: Student,
    features: Features,
    lesson: Lesson,
    samples: Samples,
    how: Lessons,
    *,
    takes_features: bool,
    distinct: int,
    key: Sequence[str],
    cache: Path | None,
    progress: Callable[[str], None],
) -> Distilled:
    """Trains the student in place. `features` are the teacher's, the tensor at the cut first; `key` says what trains.

    `distinct` samples come first, and others of the same after them in the same order. With `takes_features` the encoder reads
    the tensor at the cut, else the model's input. With `cache` it goes on where it was stopped. Raises PassError where the loss
    is no number.
    """
    run = _Run(student, features, lesson, samples, how, takes_features, distinct, progress)
    parts = [*key, samples.digest(), json.dumps(asdict(how), sort_keys=True), str(EDITION), torch.__version__]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return run.go(None if cache is None else Cached(cache / "training", digest, progress))


class _Run:
    def __init__(
        self,
        student: Student,
        features: Features,
        lesson: Lesson,
        samples: Samples,
        how: Lessons,
        takes_features: bool,
        distinct: int,
        progress: Callable[[str], None],
    ) -> None:
        self.student, self.features, self.lesson = student.to(how.device), features, lesson
        self.how, self.progress = how, progress
        self.input = None
        if not takes_features:
            (rows,) = samples.arrays.values()
            flat = next(iter(samples.leading_axis.values()), False)
            self.input = rows if flat else rows.reshape(rows.shape[0], *rows.shape[2:])
        order = np.random.default_rng(how.seed).permutation(distinct)
        held_out = max(1, min(HELD_OUT[1], round(HELD_OUT[0] * distinct)))
        self.held_out = np.sort(order[:held_out])
        self.learned_from = np.sort(np.concatenate([order[held_out:] + first for first in range(0, len(samples), distinct)]))
        if len(self.learned_from) < 2:
            told = "1 sample is" if distinct == 1 else f"{distinct} samples are"
            least = 1 + math.ceil(2 / (len(samples) // distinct))
            raise PassError(
                "bottleneck", f"{told} too few to learn from: {least} or more are needed, one of which is held out",
                "give more of them with --train FILE.npz",
            )  # fmt: skip
        self.batch = min(how.batch, len(self.learned_from))
        self.per_epoch = len(self.learned_from) // self.batch
        self.stages = [(epochs, stage) for epochs, stage in ((how.mimic, "mimic"), (how.tune, "tune")) if epochs]
        self.total = sum(epochs for epochs, _ in self.stages) * self.per_epoch
        self.step = 0
        self.least = math.inf
        self.best: dict[str, Tensor] = {}
        """The student with the least loss on the held-out samples, from the end of the first stage on."""

    def go(self, checkpoint: Cached | None) -> Distilled:
        self.stage = ""
        found = None if checkpoint is None else checkpoint.load()
        if found is not None:
            self._resume(found)
        begin, first, saved = time.monotonic(), self.step, time.monotonic()
        while self.step < self.total:
            stage, within, length = self._where(self.step)
            if stage != self.stage:
                self._enter(stage)
            epoch, place = divmod(within, self.per_epoch)
            number = ("mimic", "tune").index(stage) + 1
            order = np.random.default_rng((self.how.seed, number, epoch)).permutation(self.learned_from)
            rows = order[place * self.batch : (place + 1) * self.batch]
            self._learn(rows, number, within, length)
            self.step += 1
            left = (time.monotonic() - begin) / (self.step - first) * (self.total - self.step)
            self.progress(
                f"bottleneck: stage {number} ({stage}), epoch {epoch + 1} of {length // self.per_epoch}, loss {self.loss:.4g}, "
                f"{left / 60:.0f} min left"
            )
            ended = place == self.per_epoch - 1
            if ended and stage == "tune":
                self._weigh()
            if checkpoint is not None and (ended or time.monotonic() - saved > BETWEEN_CHECKPOINTS_S):
                checkpoint.save(self._state())
                saved = time.monotonic()
        return self._judged()

    def _where(self, step: int) -> tuple[str, int, int]:
        """The stage of a step, which of its steps that is, and how many it has."""
        for epochs, stage in self.stages:
            if step < epochs * self.per_epoch:
                return stage, step, epochs * self.per_epoch
            step -= epochs * self.per_epoch
        raise ValueError("there is no such step")

    def _enter(self, stage: str) -> None:
        """What learns in a stage: encoder and decoder, or decoder and rest, with the encoder unless it is frozen."""
        self.stage, student = stage, self.student
        learns = {
            "encoder": stage == "mimic" or not self.how.freeze_encoder, "decoder": True, "rest": stage == "tune",
        }  # fmt: skip
        for name, part in (("encoder", student.encoder), ("decoder", student.decoder), ("rest", student.rest)):
            part.requires_grad_(learns[name])
            part.train(learns[name] and name != "rest")  # its statistics stay
        parameters = {name: value for name, value in student.named_parameters() if value.requires_grad}
        own = [value for name, value in parameters.items() if not name.startswith("rest.")]
        rest = [value for name, value in parameters.items() if name.startswith("rest.")]
        self.parameters = parameters
        top = self.how.learning_rate if stage == "mimic" else self.how.tune_learning_rate
        self.tops = [top, top]
        self.optimiser = torch.optim.Adam([{"params": own}, {"params": rest}] if rest else [{"params": own}], lr=top)
        if stage == "tune" and not self.best:
            self._weigh()

    def _learn(self, rows: Array, stage: int, within: int, length: int) -> None:
        for group, top in zip(self.optimiser.param_groups, self.tops, strict=False):
            group["lr"] = top * rate(within, length)
        rng = np.random.default_rng((self.how.seed, stage, within, 7))
        channels = int(rng.choice(self.how.points))
        loss = self._mimicked(rows, channels) if self.stage == "mimic" else self._tuned(rows, channels)
        self.optimiser.zero_grad()
        torch.autograd.backward([loss])
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), 10.0)
        self.optimiser.step()
        self.loss = float(loss.detach())
        if not math.isfinite(self.loss):
            raise PassError("bottleneck", f"the loss is {self.loss} after {self.step + 1} steps", "take a smaller learning rate")

    def _mimicked(self, rows: Array, channels: int) -> Tensor:
        """Mean square distances from the teacher's features, each relative to its variance there."""
        targets = [torch.as_tensor(values).to(self.how.device) for values in self.features.of(rows)]
        targets = [value.reshape(len(rows), *value.shape[1:]) for value in targets]
        made = self.student.decoder(self.student.coded(self._input(rows, targets), channels))
        found = [made]
        if self.student.later:
            found += self.student.answers(made, self.student.later)
        loss = torch.zeros((), device=self.how.device)
        for value, target, spread in zip(found, targets, self.features.spreads, strict=True):
            loss = loss + (value.reshape(target.shape) - target).square().mean() / spread
        return loss

    def _tuned(self, rows: Array, channels: int) -> Tensor:
        return self.lesson.loss(self._answers(rows, channels), rows)

    def _weigh(self) -> None:
        """The loss on the held-out samples over all operating points; the student is kept where it is the least so far."""
        learning = [part for part in self.student.modules() if part.training]
        self.student.eval()
        total = 0.0
        with torch.no_grad():
            for first in range(0, len(self.held_out), self.batch):
                rows = self.held_out[first : first + self.batch]
                total += len(rows) * sum(float(self._tuned(rows, channels)) for channels in self.how.points)
        for part in learning:
            part.training = True
        if total < self.least:
            self.least = total
            self.best = {name: value.detach().clone() for name, value in self.student.state_dict().items()}

    def _answers(self, rows: Array, channels: int) -> tuple[Tensor, ...]:
        made = self.student.decoder(self.student.coded(self._input(rows, None), channels))
        return self.student.answers(made, self.student.outputs)

    def _input(self, rows: Array, targets: Sequence[Tensor] | None) -> Tensor:
        if self.input is not None:
            return torch.as_tensor(np.ascontiguousarray(self.input[rows])).to(self.how.device)
        first = targets[0] if targets is not None else torch.as_tensor(self.features.of(rows)[0]).to(self.how.device)
        return first.reshape(len(rows), *first.shape[2:])

    def _judged(self) -> Distilled:
        """Of classes' scores, how many answers on the held-out samples are right, or (without labels) the teacher's."""
        self.student.eval()
        if self.best:
            self.student.load_state_dict(self.best)
        made = Distilled(held_out=len(self.held_out), learned_from=len(self.learned_from), steps=self.step)
        if not self.lesson.classes:
            return made
        wanted = np.array([int(self.lesson.teach(int(row))[0].argmax()) for row in self.held_out])
        labels = self.lesson.samples.labels
        right = wanted if labels is None else labels[self.held_out]
        made.teacher = float((wanted == right).mean())
        for channels in self.how.points:
            answers = []
            with torch.no_grad():
                for first in range(0, len(self.held_out), self.batch):
                    scores = self._answers(self.held_out[first : first + self.batch], channels)[0]
                    answers.append(scores.flatten(1).argmax(1).cpu().numpy())
            made.kept[channels] = float((np.concatenate(answers) == right).mean())
        return made

    def _state(self) -> State:
        tensors = {f"now/{name}": value.detach().contiguous().clone() for name, value in self.student.state_dict().items()}
        tensors |= {f"best/{name}": value.contiguous() for name, value in self.best.items()}
        for name, value in self.parameters.items():
            for moment, tensor in self.optimiser.state.get(value, {}).items():
                tensors[f"{moment}/{name}"] = torch.as_tensor(tensor).contiguous().clone()
        return State(tensors, {"step": str(self.step), "least": repr(self.least)})

    def _resume(self, found: State) -> None:
        now = {name[4:]: value for name, value in found.tensors.items() if name.startswith("now/")}
        self.student.load_state_dict({name: value.to(self.how.device) for name, value in now.items()})
        self.best = {n[5:]: value.to(self.how.device) for n, value in found.tensors.items() if n.startswith("best/")}
        self.step, self.least = int(found.facts["step"]), float(found.facts["least"])
        self.progress(f"the bottleneck's training goes on after step {self.step} of {self.total}")
        if self.step >= self.total:
            return
        stage, within, _ = self._where(self.step)
        self._enter(stage)
        if not within:  # the stage before has ended: its moments are of other parameters
            return
        for name, value in self.parameters.items():
            moments = {key.partition("/")[0]: t for key, t in found.tensors.items() if key.partition("/")[2] == name}
            state = {m: t if m == "step" else t.to(value.device) for m, t in moments.items() if m not in ("now", "best")}
            if state:
                self.optimiser.state[value] = state


def key_of(modules: Sequence[nn.Module]) -> list[str]:
    """What tells untrained networks apart: their layers and first weights."""
    digest = hashlib.sha256()
    for name, value in itertools.chain.from_iterable(module.state_dict().items() for module in modules):
        digest.update(f"{name} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return [digest.hexdigest(), *(str(module) for module in modules)]
