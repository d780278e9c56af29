"""Observe: the ranges that a model's activations take on sample inputs, and from them the ranges that integers are to cover.

Two passes at most: least and greatest value of every tensor, then a histogram between them. Neither grows with the number of
samples, and what was found is kept by digest, so that the next export of the same model on the same data need not look again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from . import graph as graphs
from .calibration import Samples
from .errors import ModelError
from .model import Model
from .reference import Reference

Array = NDArray[Any]
Ranges = dict[str, tuple[float, float]]
Method = Literal["minmax", "percentile", "entropy", "mse"]
BINS = 2048
FORMAT = 2
BUDGET_BYTES = 400_000_000
"""Of activations read out in one run."""
_FLOATS = {1, 10, 11, 16}
_PROGRESS_EVERY = 50


def _silent(message: str) -> None:
    """Progress that nobody watches."""


def observe(
    model: Model,
    samples: Samples,
    names: Sequence[str] | None = None,
    *,
    method: Method = "minmax",
    percentile: float = 99.99,
    symmetric: bool = False,
    bits: int = 8,
    progress: Callable[[str], None] = _silent,
    cache: Path | None = None,
) -> Ranges:
    """(low, high) of every float tensor of the main graph (or of those named), inputs included, with 0 between them.

    `minmax` covers all values; `percentile` all but the outer 100 - percentile per cent, half of them at each end; `entropy`
    takes the clip whose quantised histogram is nearest to the clipped one by Kullback-Leibler divergence (Migacz, 8-bit
    inference with TensorRT, GTC 2017); `mse` the clip with the least expected squared error at `bits` bits. `symmetric` ranges
    are -r to r. Values inside subgraphs (If, Loop) are not seen. Raises ModelError where an activation is NaN or infinite.
    """
    if method not in get_args(Method):
        raise ModelError(f"unknown calibration {method!r}; allowed: {', '.join(get_args(Method))}")
    chosen = _observable(model, names)
    key = _key(model, samples, method, percentile, symmetric, bits, chosen)
    found = _read(cache, key)
    if found is not None:
        return found
    whole = _extremes(model, samples, chosen, progress)
    for name, (low, high) in whole.items():
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ModelError(
                f"activation {name!r} of {model.name} is NaN or infinite on {samples.origin}: no range covers it",
                "drop such samples, or repair the model",
            )
    if method == "minmax":
        found = whole
    else:
        found = {}
        for name, counts in _histograms(model, samples, chosen, whole, progress).items():
            found[name] = _clip(counts, *whole[name], method, percentile, symmetric, bits)
    found = {name: _with_zero(*found[name], symmetric) for name in sorted(found)}
    _write(cache, key, found)
    return found


def extremes(model: Model, samples: Samples, progress: Callable[[str], None] = _silent) -> Ranges:
    """Least and greatest value of every float tensor of the main graph, inputs included; NaN or infinite where they are."""
    return _extremes(model, samples, _observable(model, None), progress)


def _extremes(model: Model, samples: Samples, names: Sequence[str], progress: Callable[[str], None]) -> Ranges:
    found: Ranges = {}
    for name, values in _values(model, samples, names, progress):
        low, high = float(values.min()), float(values.max())
        if name in found:
            low, high = float(np.minimum(low, found[name][0])), float(np.maximum(high, found[name][1]))
        found[name] = (low, high)
    return found


def channel_peaks(
    model: Model, samples: Samples, names: Sequence[str], *, axis: int = 1, progress: Callable[[str], None] = _silent
) -> dict[str, Array]:
    """max |x| of each channel (index along `axis`) of the named tensors over the samples; of graph inputs too."""
    peaks: dict[str, Array] = {}
    for name, values in _values(model, samples, list(dict.fromkeys(names)), progress):
        if values.ndim == 0:
            continue
        where = axis % values.ndim if -values.ndim <= axis < values.ndim else values.ndim - 1
        others = tuple(index for index in range(values.ndim) if index != where)
        peak = np.abs(values).max(axis=others).astype(np.float64)
        peaks[name] = np.maximum(peaks[name], peak) if name in peaks else peak
    return peaks


def outlier_channels(peaks: Array, factor: float = 8.0) -> list[int]:
    """Channels whose peak is more than `factor` times the median peak of those that are not zero."""
    alive = peaks[peaks > 0]
    if alive.size < 2:
        return []
    return [int(index) for index in np.flatnonzero(peaks > factor * float(np.median(alive)))]


def default_cache() -> Path:
    """Where ranges are kept: the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "edgesdk" / "ranges"


def _observable(model: Model, names: Sequence[str] | None) -> list[str]:
    """Float tensors of the main graph whose type is known, in the graph's order; raises ModelError for unknown names."""
    proto = model.proto.graph
    types = graphs.value_types(proto)
    stored = {tensor.name for tensor in proto.initializer}
    known = {info.name for info in (*proto.value_info, *proto.output)}
    made = [name for node in proto.node for name in node.output if name and name in known]
    every = [info.name for info in proto.input if info.name not in stored] + made
    floats = [name for name in dict.fromkeys(every) if name in types and types[name].elem_type in _FLOATS]
    if names is None:
        return floats
    unknown = [name for name in names if name not in floats]
    if unknown:
        raise ModelError(
            f"{unknown[0]!r} is no float tensor of {model.name}; there are {len(floats)}, {', '.join(floats[:5])}, …"
        )
    return list(dict.fromkeys(names))


def _values(model: Model, samples: Samples, names: Sequence[str], progress: Callable[[str], None]) -> Iterator[tuple[str, Array]]:
    """(tensor, its values on one sample), reading out as many tensors at once as the budget allows."""
    proto = model.proto.graph
    types = graphs.value_types(proto)
    ready = {info.name for info in (*proto.output, *proto.input)}
    chunks: list[list[str]] = [[]]
    used = 0
    for name in names:
        size = types[name].nbytes or 1_000_000
        if chunks[-1] and used + size > BUDGET_BYTES:
            chunks.append([])
            used = 0
        chunks[-1].append(name)
        used += size
    for number, chunk in enumerate(chunks):
        reference = Reference(model, [name for name in chunk if name not in ready])
        for index, sample in enumerate(samples):
            if index and index % _PROGRESS_EVERY == 0:
                part = f", part {number + 1} of {len(chunks)}" if len(chunks) > 1 else ""
                progress(f"reading activation ranges: sample {index} of {len(samples)}{part}")
            found = reference.run(sample)
            for name in chunk:
                values = np.asarray(found[name] if name in found else sample[name])
                if values.size:
                    yield name, values


def _histograms(
    model: Model, samples: Samples, names: Sequence[str], whole: Ranges, progress: Callable[[str], None]
) -> dict[str, Array]:
    """Counts of values in BINS equal bins between the extremes of each tensor."""
    counts = {name: np.zeros(BINS, dtype=np.int64) for name in names if name in whole}
    for name, values in _values(model, samples, names, progress):
        low, high = whole[name]
        if high <= low:
            counts[name][0] += values.size
            continue
        places = (values.ravel().astype(np.float64) - low) * (BINS / (high - low))
        counts[name] += np.bincount(np.clip(places.astype(np.int64), 0, BINS - 1), minlength=BINS)
    return counts


def _clip(
    counts: Array, low: float, high: float, method: Method, percentile: float, symmetric: bool, bits: int
) -> tuple[float, float]:
    """The range that a method takes out of a histogram."""
    if high <= low:
        return low, high
    edges = np.linspace(low, high, BINS + 1)
    if method == "percentile":
        return _by_percentile(counts, edges, percentile)
    centres = (edges[:-1] + edges[1:]) / 2
    one_sided = low >= 0 or high <= 0
    candidates = _candidates(low, high, symmetric or one_sided or method == "entropy", symmetric)
    levels = 2**bits - 1
    if method == "entropy":
        counts = _without_spike(counts, int(np.searchsorted(edges, 0.0, side="right")) - 1)
    best, least = (low, high), math.inf
    for first, last in candidates:
        if method == "mse":
            cost = _squared_error(counts, centres, edges[1] - edges[0], first, last, levels)
        else:
            cost = _divergence(counts, centres, first, last, levels)
        if cost < least * (1 - 1e-9):
            best, least = (first, last), cost
    return best


def _by_percentile(counts: Array, edges: Array, percentile: float) -> tuple[float, float]:
    total = np.cumsum(counts) / counts.sum()
    tail = (1 - percentile / 100) / 2
    first = int(np.searchsorted(total, tail, side="right"))
    last = int(np.searchsorted(total, 1 - tail, side="left"))
    return float(edges[min(first, BINS - 1)]), float(edges[min(last + 1, BINS)])


def _candidates(low: float, high: float, together: bool, symmetric: bool) -> list[tuple[float, float]]:
    """Ranges to try, the whole one first: both ends shrunk by one share, or each by its own."""
    shares = [1.0, *(0.98 - 0.02 * step for step in range(44))]
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        peak = max(-low, high)
        return [(-peak * share, peak * share) for share in shares]
    if together or low == 0 or high == 0:
        return [(low * share, high * share) for share in shares]
    coarse = shares[::3]
    return [(low * a, high * b) for a in coarse for b in coarse]


def _squared_error(counts: Array, centres: Array, width: float, low: float, high: float, levels: int) -> float:
    """Expected squared error of rounding to `levels` steps from low to high, and of clipping beyond."""
    step = (high - low) / levels
    inside = (centres >= low) & (centres <= high)
    beyond = np.where(centres > high, centres - high, np.where(centres < low, low - centres, 0.0))
    rounding = step * step / 12 if step > width else min(step * step / 12, width * width / 12)
    at_zero = (centres > -width) & (centres < width)  # zero is exact: it is on the grid
    return float((counts[inside & ~at_zero] * rounding).sum() + (counts * beyond * beyond).sum())


def _without_spike(counts: Array, place: int) -> Array:
    """A bin brought down to its neighbours: a value that has a code of its own (zero, or an end of the range) is never rounded.

    Half of what a ReLU gives is zero; spread over the bins of one code it would pass for the largest error there is.
    """
    if not 0 <= place < len(counts):
        return counts
    around = [counts[index] for index in (place - 1, place + 1) if 0 <= index < len(counts)]
    made: Array = counts.copy()
    made[place] = min(counts[place], max(around))
    return made


def _divergence(counts: Array, centres: Array, low: float, high: float, levels: int) -> float:
    """Kullback-Leibler divergence of the quantised histogram from the clipped one."""
    inside = np.flatnonzero((centres >= low) & (centres <= high))
    if inside.size < 2:
        return math.inf
    first, last = int(inside[0]), int(inside[-1])
    if first == 0 and last == len(counts) - 1:
        counts = _without_spike(_without_spike(counts, 0), last)
    clipped = counts[first : last + 1].astype(np.float64)
    steps = min(levels, 128)
    if clipped.size < steps:
        return math.inf
    original = clipped.copy()
    original[0] += counts[:first].sum()
    original[-1] += counts[last + 1 :].sum()
    group = np.minimum((np.arange(clipped.size) * steps) // clipped.size, steps - 1)
    occupied = original > 0
    if not occupied.any():
        return math.inf
    sums = np.bincount(group, weights=clipped, minlength=steps)
    shares = np.bincount(group, weights=occupied.astype(np.float64), minlength=steps)
    quantised = np.where(occupied, (sums / np.maximum(shares, 1))[group], 0.0)
    p, q = original / original.sum(), quantised / max(quantised.sum(), 1e-300)
    used = p > 0
    return float((p[used] * np.log(p[used] / np.maximum(q[used], 1e-12))).sum())


def _with_zero(low: float, high: float, symmetric: bool) -> tuple[float, float]:
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        peak = max(-low, high)
        return -peak, peak
    return low, high


def _key(model: Model, samples: Samples, method: str, percentile: float, symmetric: bool, bits: int, names: Sequence[str]) -> str:
    """What the ranges depend on, as one digest."""
    about: Mapping[str, Any] = {
        "format": FORMAT,
        "model": model.digest,
        "samples": samples.digest(),
        "method": method,
        "percentile": percentile if method == "percentile" else None,
        "symmetric": symmetric,
        "bits": bits if method == "mse" else None,
        "names": list(names),
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _read(cache: Path | None, key: str) -> Ranges | None:
    """What the cache has; a file that is damaged counts as not there."""
    if cache is None:
        return None
    try:
        data = json.loads((cache / f"{key}.json").read_text(encoding="utf-8"))
        ranges = {str(name): (float(low), float(high)) for name, (low, high) in data["ranges"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return ranges if all(low <= 0 <= high and math.isfinite(high - low) for low, high in ranges.values()) else None


def _write(cache: Path | None, key: str, ranges: Ranges) -> None:
    """Keeps the ranges; a cache that cannot be written is no reason to fail."""
    if cache is None:
        return
    with contextlib.suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
        beside = cache / f".{key}.{secrets.token_hex(4)}"
        try:
            beside.write_text(json.dumps({"ranges": ranges}), encoding="utf-8")
            os.replace(beside, cache / f"{key}.json")
        finally:
            beside.unlink(missing_ok=True)
