"""Session: a bundle loaded on this device, checked inputs in, outputs out."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from edgesdk_converters import processing
from edgesdk_converters.errors import DeviceError, EdgeError, ModelError
from edgesdk_converters.signature import Input, Signature
from edgesdk_targets import runner as runners
from edgesdk_targets.bundle import Bundle, open_bundle

Array = NDArray[Any]


class Session:
    """A loaded bundle. `run` may be called from several threads at once; use it as a context manager or call `close`."""

    def __init__(self, bundle: Bundle, runner: runners.Runner, load_ms: float) -> None:
        self.bundle = bundle
        self.load_ms = load_ms
        self.facts = runner.facts
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
        if out is not None:
            return self._run_into(inputs, out, raw)
        outputs = dict(zip(self._output_names, self._run(inputs), strict=True))
        if raw:
            return {spec.name: processing.to_answer(spec, outputs[spec.name]) for spec in self.signature.outputs}
        return outputs

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
    progress: Callable[[str], None] = runners.silent,
) -> Session:
    """Open, check and load a bundle. `threads` 0 takes what the bundle was made for.

    Raises BundleError for a bundle that is not intact and DeviceError where the provider it asks for is missing, unless
    `allow_fallback`; then it runs on the CPU and warns (`session.facts.fallback`).
    """
    if threads < 0:
        raise DeviceError(f"threads is {threads}; allowed: 0 (the bundle's choice) or more")
    begin = time.perf_counter()
    bundle = open_bundle(path)
    if bundle.manifest.role not in ("whole", "split"):
        raise DeviceError(f"{path} is the {bundle.manifest.role} of a split model; only whole models run by themselves")
    runner = runners.load(bundle, runners.RunOptions(threads, allow_fallback, progress=progress))
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
