"""Repairs of a candidate that breaks the contract: first those that cost no speed, then layers in float."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .candidate import Attempt, Candidate, Yardstick

LARGEST_FLOAT_SHARE = 0.5
"""Of the weighted layers that may stay in float in a mixed precision: with more, little of int8 is left."""


def repaired(candidate: Candidate, tried: Callable[[Candidate], Attempt], trial: Yardstick) -> list[Attempt]:
    """The repairs of a candidate in their order, until one holds the contract."""
    attempts: list[Attempt] = []

    def kept(one: Candidate) -> Attempt:
        attempts.append(tried(one))
        return attempts[-1]

    for repaired in _ladder(candidate, trial):
        if kept(repaired).prepared is not None:
            return attempts
    _mixed(attempts[-1].candidate if attempts else candidate, kept, trial)
    return attempts


def _ladder(candidate: Candidate, trial: Yardstick) -> Iterator[Candidate]:
    """Repairs that cost no speed, in order, each with those before it; then rotation, which costs some."""
    from edgesdk_converters import find

    name = candidate.name
    weights_alone = any(getattr(step, "flavour", "") in ("weights", "stored") for step in candidate.steps)
    if not candidate.needs_calibration and (not weights_alone or trial.calibrate.synthetic):
        return
    now = candidate.with_quantize(f"{name} +bias correction", bias_correction=True)
    yield now
    if weights_alone:
        return
    now = now.with_pass_before(find("equalize")(), f"{name} +equalisation +bias correction")
    yield now
    now = now.with_quantize(f"{name} +equalisation +bias correction +clip search", calibration="mse")
    yield now
    if any(node.op_type in ("LayerNormalization", "Softmax") for node in trial.source.proto.graph.node):
        yield now.with_pass_before(find("rotate")(), f"{name} +equalisation +rotation +bias correction +clip search")


def _mixed(candidate: Candidate, tried: Callable[[Candidate], Attempt], trial: Yardstick) -> None:
    """Mixed precision: the fewest of the most sensitive layers in float with which the contract holds, by bisection.

    Layers are ordered by noise per MAC: what is won for what it costs (a knapsack, filled greedily).
    """
    order = [one.layer for one in trial.most_sensitive(candidate.recipe)]
    if not order:
        return
    limit = max(1, int(LARGEST_FLOAT_SHARE * len(order)))
    low, high = 0, 1
    name = candidate.name

    def holds(count: int) -> bool:
        kept = tuple(sorted(order[:count]))
        return tried(candidate.with_quantize(f"{name} +{count} layers in float", keep=kept)).prepared is not None

    while not holds(high):
        low = high
        if high == limit:
            return
        high = min(2 * high, limit)
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle
