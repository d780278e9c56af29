"""What a pass is, and what it is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

from .calibration import Samples
from .model import Model


def silent(message: str) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True, eq=False)
class Given:
    """What a pass may need and must not fetch itself.

    `source` is the model as the user gave it; `train` are calibration inputs (the user's, or seeded random ones:
    `train.synthetic`); `progress` takes a short message about what is being done; `cache` is a folder for ranges already
    taken, and of trainings begun, None for no cache. `lessons` are all the samples that may be learned from, of which `train`
    are the first few. `cost` is what the target takes for a model, in a unit of its own of which less is better (latency,
    estimated or measured); None where nobody can say. `width_multiple` is of how many channels the target computes at once.
    `max_drop_points` is what the accuracy contract allows to be lost, None where nothing was promised. `training_device` is
    torch's name of where passes learn.
    """

    source: Model
    train: Samples
    progress: Callable[[str], None] = silent
    cache: Path | None = None
    lessons: Samples | None = None
    cost: Callable[[Model], float] | None = None
    width_multiple: int = 1
    max_drop_points: float | None = None
    training_device: str = "cpu"


@runtime_checkable
class Pass(Protocol):
    """A pure step from Model to Model: a frozen dataclass whose fields are its options, all with defaults."""

    name: ClassVar[str]

    def __call__(self, model: Model, given: Given) -> Model:
        """The changed model. Raises PassError, naming the node where there is one."""
        ...
