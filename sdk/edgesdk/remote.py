"""Remote: where the tail of a split model runs, and what is to happen when it does not answer in time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from edgesdk_converters.errors import LinkError

from .moving import Mover, Prefer


@dataclass(frozen=True)
class Remote:
    """Where the tail runs. `deadline_ms` counts from the end of the head until the outputs are here.

    When it passes, or the server fails: `local` runs the tail here, `error` raises LinkError. `points` are the channels of a
    bottleneck that are sent; auto: as `prefer` says (see `moving`; None: accuracy, and remote where there are no points), in time
    being what takes at most `target_ms` (None: half of the deadline).
    """

    url: str
    deadline_ms: float = 1000.0
    on_late: Literal["local", "error"] = "local"
    token: str = ""
    ca: str = ""
    points: Literal["auto"] | int = "auto"
    target_ms: float | None = None
    prefer: Prefer | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.deadline_ms) and 0 < self.deadline_ms <= 86_400_000):
            raise LinkError(
                f"deadline_ms is {self.deadline_ms}; allowed: above 0, up to a day", "edgesdk plan says what a link needs"
            )
        if self.on_late not in ("local", "error"):
            raise LinkError(f"on_late is {self.on_late!r}; allowed: local (run the tail here), error (raise LinkError)")
        if self.points != "auto" and (not isinstance(self.points, int) or isinstance(self.points, bool)):
            raise LinkError(f"points is {self.points!r}; allowed: auto, or a number of channels")
        if self.prefer not in (None, *get_args(Prefer)):
            raise LinkError(f"prefer is {self.prefer!r}; allowed: {', '.join(get_args(Prefer))}")
        if self.target_ms is not None and not 0 < self.target_ms <= self.deadline_ms:
            raise LinkError(
                f"target_ms is {self.target_ms}; allowed: above 0, up to deadline_ms ({self.deadline_ms:g})",
                "leave it out for half of the deadline",
            )

    def mover(self, sizes: Mapping[int, int]) -> Mover | None:
        """What chooses between ways of these sizes of a request, in bytes by channels; None where there is nothing to choose.

        A single one is never left for the tail here unless `prefer` was given: who names a server means it.
        """
        local = self.on_late == "local"
        if len(sizes) < 2 and (self.prefer in (None, "remote") or self.points != "auto" or not local):
            return None
        return Mover(sizes, self.target_ms or self.deadline_ms / 2, local=local, prefer=self.prefer or "accuracy")
