"""Session: a bundle loaded on this device, checked inputs in, outputs out."""

from __future__ import annotations

import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from edgesdk_converters import processing
from edgesdk_converters.errors import DeviceError, EdgeError, LinkError, ModelError
from edgesdk_converters.signature import Input, Signature
from edgesdk_targets import runner as runners
from edgesdk_targets.bundle import Bundle, open_bundle

if TYPE_CHECKING:
    from .moving import Prefer
    from .remote_tail import RemoteTail

Array = NDArray[Any]


class Session:
    """A loaded bundle. `run` may be called from several threads at once; use it as a context manager or call `close`."""

    def __init__(self, bundle: Bundle, runner: runners.Runner, load_ms: float) -> None:
        self.bundle = bundle
        self.load_ms = load_ms
        self.facts = runner.facts
        self.remote: RemoteTail | None = getattr(runner, "remote", None)
        self._runner: runners.Runner | None = runner
        self._run: Callable[[Mapping[str, Array]], Sequence[Array]] = runner.run
        self._output_names = tuple(output.name for output in self.signature.outputs)
        self._wanted = tuple(
            (
                spec.name,
                np.dtype(spec.dtype),
                tuple(spec.shape) if all(isinstance(d, int) for d in spec.shape) else None,
            )
            for spec in self.signature.inputs
        )

    @property
    def signature(self) -> Signature:
        """Names, types, shapes and processing of inputs and outputs."""
        return self.bundle.manifest.signature

    def run(self, inputs: Mapping[str, Array], *, out: Mapping[str, Array] | None = None, raw: bool = False) -> dict[str, Array]:
        """Outputs by name for one set of inputs.

        `raw` applies the bundle's preprocessing to the inputs (images: height x width x 3, RGB, uint8) and its softmax to
        the outputs. `out` are arrays of the outputs' types and shapes to write into, so that nothing is allocated. Raises
        ModelError for a wrong name, type or shape.
        """
        inputs = self._admitted(inputs, raw)
        if out is not None:
            return self._run_into(inputs, out, raw)
        return self._answer(self._run(inputs), raw)

    def stream(self, inputs: Iterable[Mapping[str, Array]], *, raw: bool = False, depth: int = 2) -> Iterator[dict[str, Array]]:
        """Outputs for one set of inputs after another, in their order.

        With a remote tail the head of the next runs here while up to `depth` are on the link. Raises as `run`, when it is
        that set's turn.
        """
        if depth < 1:
            raise ModelError(f"depth is {depth}; allowed: 1 (one on the link) or more")
        if self.remote is None:
            for one in inputs:
                yield self.run(one, raw=raw)
            return
        runner: Any = self._runner
        with ThreadPoolExecutor(depth, thread_name_prefix="edgesdk-stream") as pool:
            waiting: deque[Future[Sequence[Array]]] = deque()
            try:
                for one in inputs:
                    if self._runner is None:
                        _closed(one)
                    crossing = runner.crossing(self._admitted(one, raw))
                    if len(waiting) == depth:
                        yield self._answer(waiting.popleft().result(), raw)
                    waiting.append(pool.submit(runner.finish, crossing))
                while waiting:
                    yield self._answer(waiting.popleft().result(), raw)
            finally:
                for future in waiting:
                    future.cancel()

    def top(self, outputs: Mapping[str, Array], count: int = 5) -> list[tuple[str, float]]:
        """The best classes of the first output that has labels (or of the first output), with their scores."""
        specs = self.signature.outputs
        spec = next((s for s in specs if s.postprocess and s.postprocess.labels), specs[0])
        labels = spec.postprocess.labels if spec.postprocess else ()
        scores = outputs[spec.name].reshape(-1, outputs[spec.name].shape[-1])[0]
        best = np.argsort(scores)[::-1][:count]
        return [(labels[i] if labels else str(i), float(scores[i])) for i in best]

    def close(self) -> None:
        """Free the runtime's memory; running afterwards is an error."""
        if self._runner is not None:
            self._runner.close()
        self._runner = None
        self._run = _closed

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _admitted(self, inputs: Mapping[str, Array], raw: bool) -> Mapping[str, Array]:
        """The tensors for the model. Raises ModelError for a wrong name, type or shape."""
        if raw:
            inputs = {
                spec.name: processing.to_tensor(spec, inputs[spec.name]) for spec in self.signature.inputs if spec.name in inputs
            } | {name: array for name, array in inputs.items() if all(name != s.name for s in self.signature.inputs)}
        if len(inputs) != len(self._wanted):
            self._refuse_names(inputs)
        for name, dtype, shape in self._wanted:
            array = inputs.get(name)
            if array.__class__ is not np.ndarray or array.dtype != dtype or array.shape != shape:
                self._check(name, array, inputs)
        return inputs

    def _answer(self, arrays: Sequence[Array], raw: bool) -> dict[str, Array]:
        outputs = dict(zip(self._output_names, arrays, strict=True))
        if raw:
            return {spec.name: processing.to_answer(spec, outputs[spec.name]) for spec in self.signature.outputs}
        return outputs

    def _run_into(self, inputs: Mapping[str, Array], out: Mapping[str, Array], raw: bool) -> dict[str, Array]:
        if self._runner is None:
            _closed(inputs)
        if raw:
            raise ModelError("out= takes the model's own outputs; with raw=True they are processed", "leave one of them out")
        for spec in self.signature.outputs:
            array = out.get(spec.name)
            if not isinstance(array, np.ndarray) or not array.flags.c_contiguous or not array.flags.writeable:
                raise ModelError(f"out[{spec.name!r}] must be a writable contiguous numpy array")
            fits = len(array.shape) == len(spec.shape) and all(
                isinstance(d, str) or d == s for d, s in zip(spec.shape, array.shape, strict=True)
            )
            if array.dtype != np.dtype(spec.dtype) or not fits:
                raise ModelError(
                    f"out[{spec.name!r}] is {array.dtype} {array.shape}; the model gives {spec.dtype} {_show(spec.shape)}"
                )
        self._runner.run_into({name: np.ascontiguousarray(array) for name, array in inputs.items()}, out)
        return {name: out[name] for name in self._output_names}

    def _check(self, name: str, array: object, inputs: Mapping[str, Array]) -> None:
        """Raise for what is wrong with an input; return where only its dynamic dimensions kept it off the fast path."""
        if array is None:
            self._refuse_names(inputs)
        spec = next(s for s in self.signature.inputs if s.name == name)
        if not isinstance(array, np.ndarray):
            raise ModelError(f"input {name!r} is a {type(array).__name__}; a numpy array is needed", "use numpy.asarray")
        if array.dtype != np.dtype(spec.dtype):
            raise ModelError(
                f"input {name!r} has dtype {array.dtype}; the model takes {spec.dtype}",
                f"convert it: x.astype(numpy.{spec.dtype})" + (", or pass raw images with raw=True" if spec.preprocess else ""),
            )
        if len(array.shape) != len(spec.shape) or any(
            isinstance(dim, int) and dim != size for dim, size in zip(spec.shape, array.shape, strict=True)
        ):
            raise ModelError(f"input {name!r} has shape {array.shape}; the model takes {_show(spec.shape)}", _shape_hint(spec))

    def _refuse_names(self, inputs: Mapping[str, Array]) -> NoReturn:
        wanted = [name for name, _, _ in self._wanted]
        missing = [name for name in wanted if name not in inputs]
        extra = [name for name in inputs if name not in wanted]
        told = "; ".join(
            f"{kind} {', '.join(map(repr, names))}" for kind, names in (("missing", missing), ("unknown", extra)) if names
        )
        raise ModelError(f"inputs: {told}; the model takes {', '.join(map(repr, wanted))}")


def load(
    path: str | os.PathLike[str],
    *,
    threads: int = 0,
    allow_fallback: bool = False,
    remote: str | None = None,
    deadline_ms: float | None = None,
    on_late: Literal["local", "error"] | None = None,
    token: str = "",
    ca: str = "",
    points: Literal["auto"] | int | None = None,
    target_ms: float | None = None,
    prefer: Prefer | None = None,
    progress: Callable[[str], None] = runners.silent,
) -> Session:
    """Open, check and load a bundle. `threads` 0 takes what the bundle was made for.

    With `remote` (http://HOST:PORT or https://) the head of a split bundle runs here and the tail on the server there, which
    must serve that very tail. What is not back `deadline_ms` after the head has ended (default 1,000), or is refused or
    garbled, runs here (`on_late` "local", the default) or raises LinkError ("error"; then no tail is loaded here). `token`
    is shown to the server; `ca` is a PEM file of certificates to trust for https. `session.remote.counts` says what ran where.

    Of a bottleneck with operating points `prefer` says which way a request goes, in time being what takes at most `target_ms`
    (default: half of the deadline). "accuracy", the default: of the ways in time the most accurate, of those as accurate the
    fastest; the tail here is as accurate as the server with all channels. "speed": the fastest. "remote": as many channels as are
    in time, and here only where none is. No policy counts energy, which a tail that runs here may cost more of; "remote" runs it
    least. With `on_late` "error" there is no tail here, and the least point is the lowest. `points` as a number is kept to.
    A split without points is sent whole, and left for the tail here only where "accuracy" or "speed" was given. To know its time
    the tail here is timed while loading, and when there have been no requests for a while.
    `session.remote.way`, `point`, `moves` and `went` say which way the next request goes, with how many channels, what changed
    that and why, and which way each of the last thousand went; `to_json()` also what is known of each way's time.

    Raises BundleError for a bundle that is not intact and DeviceError where the provider it asks for is missing, unless
    `allow_fallback`; then it runs on the CPU and warns (`session.facts.fallback`). LinkError: an address or option that is
    none, and with `on_late` "error" a server that cannot be used.
    """
    if threads < 0:
        raise DeviceError(f"threads is {threads}; allowed: 0 (the bundle's choice) or more")
    begin = time.perf_counter()
    bundle = open_bundle(path)
    if bundle.manifest.role not in ("whole", "split"):
        raise DeviceError(f"{path} is the {bundle.manifest.role} of a split model; only whole models run by themselves")
    options = runners.RunOptions(threads, allow_fallback, progress=progress)
    runner: runners.Runner
    if remote is None:
        if any(one is not None for one in (deadline_ms, on_late, points, target_ms, prefer)) or token or ca:
            raise LinkError(
                "deadline_ms, on_late, token, ca, points, target_ms and prefer are for a remote tail",
                'give --remote http://HOST:PORT (remote="http://HOST:PORT")',
            )
        runner = runners.load(bundle, options)
    else:
        from .remote import Remote
        from .remote_runner import RemoteRunner

        deadline_ms = 1000.0 if deadline_ms is None else deadline_ms
        chosen = Remote(
            remote, deadline_ms, on_late or "local", token, ca, "auto" if points is None else points, target_ms, prefer
        )  # fmt: skip
        runner = RemoteRunner(bundle, chosen, options)
    if runner.facts.fallback:
        wanted = bundle.manifest.runtime.providers[0].name
        warnings.warn(f"{wanted} is missing: running on {runner.facts}", RuntimeWarning, stacklevel=2)
    return Session(bundle, runner, (time.perf_counter() - begin) * 1e3)


def _closed(_: Mapping[str, Array]) -> NoReturn:
    raise EdgeError("the session is closed", "load the bundle again")


def _show(shape: tuple[int | str, ...]) -> str:
    return "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"


def _shape_hint(spec: Input) -> str:
    if spec.preprocess is not None and spec.preprocess.layout != "flat":
        return "pass raw images with raw=True, or preprocess them as the signature says"
    return ""
