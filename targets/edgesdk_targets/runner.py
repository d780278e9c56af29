"""Runner: loads a bundle's payload into its runtime, runs it, closes it. Also the table of runners."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from edgesdk_converters import plugins
from edgesdk_converters.errors import DeviceError

if TYPE_CHECKING:
    from .bundle import Bundle

Array = NDArray[Any]

RUNNERS = {
    "onnxruntime": "edgesdk_targets.onnx_runner:OnnxRunner",
    "split": "edgesdk_targets.split_runner:SplitRunner",
}
GROUP = "edgesdk.runners"


def silent(message: str) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True)
class RunOptions:
    """What the caller may choose at load time: threads (0 = the bundle's choice), fallback, which providers, progress."""

    threads: int = 0
    allow_fallback: bool = False
    providers: tuple[str, ...] | None = None
    progress: Callable[[str], None] = silent


DEFAULTS = RunOptions()


@dataclass(frozen=True)
class RunnerFacts:
    """What really runs: runtime, version, providers in use and how many nodes each got (empty where it cannot be told)."""

    runtime: str
    version: str
    providers: tuple[str, ...]
    fallback: bool = False
    nodes: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.runtime} {self.version}, {', '.join(self.providers)}"


class Runner(Protocol):
    """One loaded model. `run` may be called from several threads at once."""

    facts: RunnerFacts

    def __init__(self, bundle: Bundle, options: RunOptions) -> None: ...

    def run(self, feed: Mapping[str, Array]) -> Sequence[Array]:
        """The outputs in the signature's order. Inputs have been checked already."""
        ...

    def run_into(self, feed: Mapping[str, Array], out: Mapping[str, Array]) -> None:
        """As `run`, writing outputs into writable contiguous arrays of the right type and shape."""
        ...

    def count_nodes(self, feed: Mapping[str, Array]) -> Mapping[str, int]:
        """How many nodes each provider runs, empty where it cannot be told; may load the model once more to find out."""
        ...

    def close(self) -> None: ...


def load(bundle: Bundle, options: RunOptions = DEFAULTS) -> Runner:
    """The runner of a bundle. Raises DeviceError for one this edgesdk does not know, MissingExtra where it is not installed."""
    cls = plugins.find(RUNNERS, GROUP, bundle.manifest.runtime.name, DeviceError)
    runner: Runner = cls(bundle, options)
    return runner
