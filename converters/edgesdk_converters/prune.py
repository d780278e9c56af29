"""Prune: whole channels, neurons and attention heads go, and what is left is a smaller dense graph."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from .errors import ModelError, PassError
from .model import Model, Step
from .passes import Given
from .pruning.scores import Scores, exploration, magnitude, taylor
from .pruning.structure import Family, Structure

Budget = Literal["params", "macs", "channels", "cost"]
Criterion = Literal["auto", "magnitude", "taylor", "pst", "exploration"]


@dataclass(frozen=True)
class Prune:
    """Removes channels until `removed` (0..1) of the `budget` is gone: of stored weights, MACs, channels, or of `given.cost`.

    `criterion` says which go first: `magnitude` needs no data; `taylor` (first-order change of the loss), `pst` (learned scores)
    and `exploration` (how far training moves a weight) learn from `given.lessons`; `auto` is taylor where there are such data,
    else magnitude. With `scope` layer every layer loses the same share, with global the least worth go wherever they are.
    At least the share `least` of every layer stays, in multiples of `multiple` channels (0: of what the target computes at once).

    Attention loses whole heads, or without `heads` an equal part of each. With `normalised`, channels that LayerNormalization
    sees may go too: it then normalises what is left, another function until it is trained again. `finetune` is how many epochs of
    learning the source model's answers follow, at `learning_rate`; with `rounds` above 1 the channels go in so many steps, each
    followed by its part of those epochs. `taken` are counts found before, one a round, of the units of least worth that may go
    whatever the budget: a time that was measured may come out differently the next day. Raises PassError where nothing can go, or
    not as much.
    """

    name: ClassVar[str] = "prune"
    removed: float = 0.3
    budget: Budget = "params"
    criterion: Criterion = "auto"
    scope: Literal["global", "layer"] = "global"
    least: float = 0.1
    multiple: int = 0
    heads: bool = True
    normalised: bool = False
    rounds: int = 1
    finetune: int = 0
    learning_rate: float = 1e-3
    taken: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for option, low, high in (("removed", 0, 1), ("least", 0, 1)):
            if not low < getattr(self, option) < high:
                raise PassError(self.name, f"{option} is {getattr(self, option)}; allowed: above {low}, below {high}")
        if self.rounds < 1 or self.multiple < 0 or self.finetune < 0:
            raise PassError(
                self.name, f"rounds {self.rounds}, multiple {self.multiple}, finetune {self.finetune}; allowed: 1, 0, 0 or more"
            )
        if self.taken and (len(self.taken) != self.rounds or min(self.taken) < 0):
            raise PassError(self.name, f"taken is {self.taken}; allowed: one count from 0 on for each of {self.rounds} rounds")
        if self.rounds > max(1, self.finetune):
            raise PassError(self.name, f"{self.rounds} rounds with {self.finetune} epochs; allowed: no more rounds than epochs")

    def __call__(self, model: Model, given: Given) -> Model:
        given.progress("finding what goes together")
        whole = _Sizes.of(model, given, self)
        now = model
        for turn in range(1, self.rounds + 1):
            left = 1 - self.removed * turn / self.rounds
            now = self._once(now, given, whole, left, self.taken[turn - 1] if self.taken else None)
            epochs = self.finetune * turn // self.rounds - self.finetune * (turn - 1) // self.rounds
            if epochs:
                now = self._learned(now, given, epochs)
        return now

    def _once(self, model: Model, given: Given, whole: _Sizes, left: float, taken: int | None) -> Model:
        structure = Structure(model, heads=self.heads, normalised=self.normalised)
        if not structure.families:
            raise PassError(self.name, f"{model.name} has no channels that could go", "take it out of the recipe")
        criterion = self._criterion(given)
        given.progress(f"ranking {sum(map(len, structure.families)):,} units by {criterion}")
        scores, structure = self._scores(criterion, structure, given, 1 - left)
        if self.scope == "global":
            scores = [worth / share for worth, share in zip(scores, whole.shares(structure), strict=True)]
        choice = _Choice(structure, scores, self, given.width_multiple)
        if taken is None:
            taken = choice.smallest(lambda gone: whole.left(structure, gone, given) <= left + 1e-9)
        if taken is None or taken > choice.steps:
            most = 1 - whole.left(structure, choice.gone(choice.steps), given)
            raise PassError(
                self.name, f"{1 - left:.0%} of {self.budget} cannot go; all that may go is {most:.1%}",
                f"give removed={max(0.01, math.floor(most * 100) / 100):g} or less, or a smaller least than {self.least:g}",
            )  # fmt: skip
        gone = choice.gone(taken)
        note = whole.told(structure, gone, given)
        options = {"removed": self.removed, "budget": self.budget, "criterion": criterion, "taken": taken}
        try:
            return structure.model.changed(structure.without(gone), Step(self.name, options, note))
        except ModelError as error:
            raise PassError(self.name, f"the pruned model is not valid: {error.message}") from error

    def _scores(self, criterion: str, structure: Structure, given: Given, removed: float) -> tuple[Scores, Structure]:
        """Worth of the units, and the structure again where weights were learned along with it."""
        if criterion == "pst":
            from .pruning.pst import pst

            scores, model = pst(structure, given, removed, self.scope == "layer")
            return scores, Structure(model, heads=self.heads, normalised=self.normalised)
        return {"magnitude": magnitude, "taylor": taylor, "exploration": exploration}[criterion](structure, given), structure

    def _criterion(self, given: Given) -> str:
        learns = not given.train.synthetic
        if self.criterion == "auto":
            return "taylor" if learns else "magnitude"
        if self.criterion != "magnitude" and not learns:
            told = f"criterion {self.criterion} learns from data, and there are only {given.train.origin}"
            raise PassError(self.name, told, "give --train FILE.npz, or --set prune.criterion=magnitude")
        return self.criterion

    def _learned(self, made: Model, given: Given, epochs: int) -> Model:
        from .train import Training, learned

        return learned(made, given, Training(epochs=epochs, learning_rate=self.learning_rate))


@dataclass(frozen=True)
class _Sizes:
    """What the whole network has, as the yardstick for what is left of it."""

    budget: Budget
    params: int
    macs: float
    channels: int
    cost: float

    @classmethod
    def of(cls, model: Model, given: Given, how: Prune) -> _Sizes:
        structure = Structure(model, heads=how.heads, normalised=how.normalised)
        kept = structure.kept(np.array([], np.int64))
        cost = 1.0
        if how.budget == "cost":
            if given.cost is None:
                raise PassError(
                    how.name, "budget cost needs a target that tells what a model costs", "take budget macs or params"
                )
            cost = given.cost(model)
        channels = sum(len(family) for family in structure.families)
        return cls(how.budget, structure.params(kept), structure.macs(kept), max(1, channels), cost)

    def left(self, structure: Structure, gone: NDArray[np.int64], given: Given) -> float:
        """The share of the budget that is left."""
        if self.budget == "channels":
            return (sum(len(family) for family in structure.families) - len(gone)) / self.channels
        if self.budget == "cost":
            assert given.cost is not None
            return given.cost(structure.model.changed(structure.without(gone))) / self.cost
        kept = structure.kept(gone)
        return structure.params(kept) / self.params if self.budget == "params" else structure.macs(kept) / (self.macs or 1)

    def shares(self, structure: Structure) -> list[float]:
        """Of each family, what one unit takes of the budget: a unit goes first when little is lost for much that is saved."""
        if self.budget == "channels":
            return [1.0] * len(structure.families)

        def size(gone: NDArray[np.int64]) -> float:
            kept = structure.kept(gone)
            return float(structure.params(kept) if self.budget == "params" else structure.macs(kept))

        full = size(np.array([], np.int64))
        return [max(1.0, full - size(family.labels[:1])) for family in structure.families]

    def told(self, structure: Structure, gone: NDArray[np.int64], given: Given) -> str:
        kept = structure.kept(gone)
        params, macs = structure.params(kept), structure.macs(kept)
        units = sum(len(family) for family in structure.families)
        text = f"{len(gone):,} of {units:,} channels and heads gone, of {len(structure.families)} groups of layers: "
        text += f"{1 - params / self.params:.1%} of {self.params:,} weights, "
        text += f"{1 - macs / (self.macs or 1):.1%} of {self.macs:,.0f} MACs"
        if self.budget == "cost":
            text += f", {1 - self.left(structure, gone, given):.1%} of what the target takes"
        return text


class _Choice:
    """Which units go when so many of the least worth may."""

    def __init__(self, structure: Structure, scores: Scores, how: Prune, target_multiple: int) -> None:
        self.families = structure.families
        if how.scope == "layer":
            scores = [(np.argsort(np.argsort(worth, kind="stable")) + 1) / len(worth) for worth in scores]
        order = np.argsort(np.concatenate(scores), kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        self.ranks = np.split(rank, np.cumsum([len(worth) for worth in scores])[:-1])
        self.steps = len(order)
        multiple = how.multiple or target_multiple
        self.allowed = [_allowed(family, how.least, multiple) for family in self.families]

    def gone(self, step: int) -> NDArray[np.int64]:
        """Labels of the units that go when so many of the least worth may."""
        found = []
        for family, ranks, allowed in zip(self.families, self.ranks, self.allowed, strict=True):
            below = int((ranks < step).sum())
            count = int(allowed[np.searchsorted(allowed, below, side="right") - 1])
            found.append(family.labels[np.argsort(ranks, kind="stable")[:count]])
        return np.concatenate(found)

    def smallest(self, enough: Callable[[NDArray[np.int64]], bool]) -> int | None:
        """The least step that is enough, by bisection; None where none is."""
        low, high = 0, self.steps
        if not enough(self.gone(high)):
            return None
        while low < high:
            middle = (low + high) // 2
            if enough(self.gone(middle)):
                high = middle
            else:
                low = middle + 1
        return high


def _allowed(family: Family, least: float, multiple: int) -> NDArray[np.int64]:
    """How many units of a family may go, in ascending order: 0, and what leaves a multiple of channels."""
    step = multiple // math.gcd(multiple, family.length) if multiple > 1 else 1
    floor = max(1, math.ceil(least * len(family)))
    kept = [count for count in range(floor, len(family)) if count % step == 0]
    return np.array([0, *(len(family) - count for count in reversed(kept))], np.int64)
