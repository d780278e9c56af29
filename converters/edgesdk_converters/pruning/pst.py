"""PST: scores that are learned together with a low-rank change of the weights, while more and more units are masked.

Parameter-efficient Sparse Training (Li et al. 2022), on units instead of single weights: the data-free part of a unit's score is
the magnitude of its weights where it is made and read, the data-driven part a low-rank term A B over its weights and one number
for the rows and columns that go with it. The weights W stay frozen but for a low-rank U V.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..errors import MissingExtra, PassError
from ..model import Model, Step
from ..passes import Given
from ..to_torch import to_torch, with_weights
from .scores import Scores, magnitude, readers
from .structure import Slot, Structure

try:
    import torch
    from torch import Tensor
except ImportError as _error:
    raise MissingExtra("torch", "torch") from _error

from ..train import Answers, Lesson, Training, rate

RANK = 8
EPOCHS, LEARNING_RATE = 2, 2e-3
WARM_UP, SETTLED = 0.1, 0.3
"""Shares of all steps before masking grows, and after it has grown."""


@dataclass
class _Weight:
    """A stored weight, how it is read as a matrix, and what is learned of it."""

    name: str
    path: str
    turned: bool
    slots: list[Slot]
    frozen: Tensor
    u: Tensor
    v: Tensor
    a: Tensor
    b: Tensor

    def now(self) -> Tensor:
        return self.frozen + (self.u @ self.v).reshape(self.frozen.shape)


def pst(structure: Structure, given: Given, removed: float, each: bool) -> tuple[Scores, Model]:
    """Scores of the units, and the model with the weights that were learned beside them.

    `removed` is the share of units masked at the end, of each family where `each`, else of all.
    """
    run = _Run(structure, given, removed, each)
    lessons = given.lessons or given.train
    how = Training(epochs=EPOCHS)
    steps = EPOCHS * math.ceil(len(lessons) / how.batch)
    for step in range(steps):
        epoch, place = divmod(step * how.batch, len(lessons))
        order = np.random.default_rng((how.seed, epoch)).permutation(len(lessons))
        rows = order[place : place + how.batch]
        if not len(rows):
            continue
        loss = run.step(rows, step, steps)
        given.progress(f"learning scores: step {step + 1} of {steps}, loss {loss:.4g}")
        if not math.isfinite(loss):
            raise PassError("prune", f"the loss is {loss} after {step + 1} steps of learning scores", "take criterion taylor")
    return run.scores(), run.model()


class _Run:
    def __init__(self, structure: Structure, given: Given, removed: float, each: bool) -> None:
        self.structure, self.removed, self.each = structure, removed, each
        lessons = given.lessons or given.train
        self.lesson = Lesson(structure.model, given.source, lessons, Training(), given.progress)
        self.module = to_torch(structure.model)
        self.module.requires_grad_(False)
        self.answer = Answers(self.module, lessons)
        self.masked = {(slot.tensor, slot.axis) for slot in readers(structure)}
        self.weights = list(self._weights())
        self.free = torch.as_tensor(np.concatenate([family.labels for family in structure.families]))
        plain = np.zeros(structure.tracer.count, np.float32)
        for family, worth in zip(structure.families, magnitude(structure, given), strict=True):
            plain[family.labels] = worth
        self.plain = torch.as_tensor(plain)
        self.rows = torch.zeros(structure.tracer.count, requires_grad=True)
        learned = [self.rows, *(value for one in self.weights for value in (one.u, one.v, one.a, one.b))]
        self.optimiser = torch.optim.Adam(learned, lr=LEARNING_RATE)

    def _weights(self) -> list[_Weight]:
        parameters = dict(self.module.named_parameters())
        generator = torch.Generator().manual_seed(0)
        found = []
        for name, held in self.module.held.items():
            slots = [slot for slot in self.structure.slots if slot.tensor == name]
            if not slots or held.rounding is not None or held.path not in parameters or parameters[held.path].ndim < 2:
                continue
            frozen = parameters[held.path].detach()
            frozen = frozen.T.contiguous() if held.turned else frozen.clone()
            height, width = frozen.shape[0], math.prod(frozen.shape[1:])
            rank = min(RANK, height, width)

            def thin(rows: int, columns: int, scale: float) -> Tensor:
                return (scale * torch.randn(rows, columns, generator=generator)).requires_grad_(True)

            spread = 1 / math.sqrt(width)
            found.append(
                _Weight(
                    name, held.path, held.turned, slots, frozen, thin(height, rank, 1.0), thin(rank, width, 0.0),
                    thin(height, rank, spread), thin(rank, width, 0.0),
                )
            )  # fmt: skip
        return found

    def worth(self) -> Tensor:
        """The score of each group of atoms, with gradients."""
        total, count = torch.zeros_like(self.rows), torch.zeros_like(self.rows)
        for one in self.weights:
            scores = (one.a @ one.b).reshape(one.frozen.shape)
            for slot in one.slots:
                labels = torch.as_tensor(slot.labels)
                other = [axis for axis in range(scores.ndim) if axis != slot.axis]
                along = scores.mean(dim=other) if other else scores
                total = total.index_add(0, labels, along)
                count = count.index_add(0, labels, torch.ones_like(along))
        return self.plain + total / count.clamp_min(1) + self.rows

    def step(self, rows: np.ndarray, step: int, steps: int) -> float:
        for group in self.optimiser.param_groups:
            group["lr"] = LEARNING_RATE * rate(step, steps)
        worth = self.worth()
        hard = torch.ones_like(worth)
        hard[self._least(worth.detach(), self._share(step, steps))] = 0
        mask = hard + worth - worth.detach()  # straight through
        replaced = {}
        for one in self.weights:
            now = one.now()
            for slot in one.slots:
                if (slot.tensor, slot.axis) in self.masked:
                    shape = [-1 if axis == slot.axis else 1 for axis in range(now.ndim)]
                    now = now * mask[torch.as_tensor(slot.labels)].reshape(shape)
            replaced[one.path] = now.T if one.turned else now
        loss = self.lesson.loss(self.answer(rows, replaced), rows)
        self.optimiser.zero_grad()
        torch.autograd.backward([loss])
        self.optimiser.step()
        return float(loss.detach())

    def _share(self, step: int, steps: int) -> float:
        """Of the units that is masked: nothing, then growing as a cubic, then all that shall go."""
        grown = (step / steps - WARM_UP) / (1 - WARM_UP - SETTLED)
        return self.removed * (1 - (1 - min(1.0, max(0.0, grown))) ** 3)

    def _least(self, worth: Tensor, share: float) -> Tensor:
        if not self.each:
            return self.free[torch.argsort(worth[self.free], stable=True)[: int(share * len(self.free))]]
        found = []
        for family in self.structure.families:
            labels = torch.as_tensor(family.labels)
            found.append(labels[torch.argsort(worth[labels], stable=True)[: int(share * len(labels))]])
        return torch.cat(found)

    def scores(self) -> Scores:
        worth = self.worth().detach().numpy().astype(np.float64)
        return [worth[family.labels] for family in self.structure.families]

    def model(self) -> Model:
        weights = {one.name: one.now().detach().numpy().astype(np.float32) for one in self.weights}
        return with_weights(self.structure.model, weights, Step("pst", note="weights moved by a low-rank term"))
