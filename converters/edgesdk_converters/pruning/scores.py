"""Scores: what each unit is worth, by its weights alone or by what its absence would do to the answers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import numpy_helper

from ..errors import PassError
from ..passes import Given
from .axes import Array
from .structure import Slot, Structure

Scores = list[NDArray[np.float64]]
"""For each family of a structure the worth of its units; comparable between families."""
TAYLOR_SAMPLES, TAYLOR_BATCH = 512, 8
CLIENTS, EXPLORED_EPOCHS = 4, 2


def magnitude(structure: Structure, given: Given) -> Scores:
    """The norm of the weights that make a unit times that of those that read it, relative to its family's mean.

    The product does not change when a channel is scaled up where it is made and down where it is read, as either norm would.
    """
    parts: dict[str, NDArray[np.float64]] = {}
    counts: dict[str, NDArray[np.float64]] = {}
    for slot in structure.slots:
        values = structure.value(slot.tensor)
        if values is None or slot.role == "along":
            continue
        energy = _over(values**2, slot.axis)
        energy = energy / (energy.mean() or 1.0)
        parts[slot.role] = parts.get(slot.role, 0) + _summed(structure, slot, energy)
        counts[slot.role] = counts.get(slot.role, 0) + _summed(structure, slot, np.ones_like(energy))
    worth = np.ones(structure.tracer.count)
    for role, energy in parts.items():
        worth *= np.where(counts[role] > 0, np.sqrt(energy / np.maximum(counts[role], 1)), 1.0)
    return [_relative(worth[family.labels]) for family in structure.families]


def taylor(structure: Structure, given: Given) -> Scores:
    """The square of the first-order change of the loss when a unit's readers get zeros, mean over small batches.

    Molchanov et al. 2019, Importance Estimation for Neural Network Pruning, arXiv 1906.10771. Without labels the loss is a random
    projection of the outputs, a new one for each batch: the expectation is the change of all outputs.
    """
    from ..train import gradients

    total = np.zeros(structure.tracer.count)
    slots = readers(structure)
    values = {slot.tensor: structure.value(slot.tensor) for slot in slots}
    count = 0
    for gradient in gradients(structure.model, given, samples=TAYLOR_SAMPLES, batch=TAYLOR_BATCH):
        change = np.zeros(structure.tracer.count)
        for slot in slots:
            found, weights = gradient.get(slot.tensor), values[slot.tensor]
            if found is not None and weights is not None:
                change += _summed(structure, slot, _over(found * weights, slot.axis))
        total += change**2
        count += 1
    worth = total / max(1, count)
    return [worth[family.labels] for family in structure.families]


def exploration(structure: Structure, given: Given) -> Scores:
    """How far the weights of a unit move when clients train on their own shards of the data, each from the same start.

    AutoFLIP (Internò et al. 2024): the squared distances are averaged over clients and brought to 0..1 in each
    tensor. Needs labels: a model that is asked for its own answers does not move.
    """
    from ..train import Training, train

    lessons = given.lessons or given.train
    if lessons.labels is None:
        raise PassError("prune", "criterion exploration learns from labels, and the data have none", "take criterion taylor")
    shards = np.array_split(np.random.default_rng(0).permutation(len(lessons)), CLIENTS)
    moved: dict[str, Array] = {}
    for index, shard in enumerate(shards):
        how = Training(epochs=EXPLORED_EPOCHS, labels_share=1.0, seed=index, validation_share=0.0)

        def told(message: str, client: int = index + 1) -> None:
            given.progress(f"client {client} of {CLIENTS}: {message}")

        client = train(structure.model, given.source, lessons.take(shard), how, progress=told).model
        stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in client.proto.graph.initializer}
        for slot in structure.slots:
            before = structure.value(slot.tensor)
            if before is not None and before.ndim >= 2 and slot.tensor in stored:
                square = (stored[slot.tensor].astype(np.float64) - before) ** 2 / CLIENTS
                moved[slot.tensor] = moved.get(slot.tensor, 0) + square / sum(s.tensor == slot.tensor for s in structure.slots)
    if not any(far.any() for far in moved.values()):
        raise PassError("prune", "no client learned anything: the labels are answered already", "take criterion taylor")
    total, count = np.zeros(structure.tracer.count), np.zeros(structure.tracer.count)
    for slot in structure.slots:
        if slot.tensor in moved:
            far = moved[slot.tensor]
            scaled = (far - far.min()) / ((far.max() - far.min()) or 1.0)
            along = _over(scaled, slot.axis) * (far.shape[slot.axis] / far.size)
            total += _summed(structure, slot, along)
            count += _summed(structure, slot, np.ones_like(along))
    worth = total / np.maximum(count, 1)
    return [_relative(worth[family.labels]) for family in structure.families]


def readers(structure: Structure) -> list[Slot]:
    """The slots that read channels; of a family that no stored weight reads, those that make them."""
    read = np.zeros(structure.tracer.count, bool)
    for slot in structure.slots:
        if slot.role == "in":
            read[slot.labels] = True
    return [slot for slot in structure.slots if slot.role == "in" or (slot.role == "out" and not read[slot.labels].all())]


def _over(values: Array, axis: int) -> NDArray[np.float64]:
    """Summed over all axes but one."""
    return np.asarray(values.sum(axis=tuple(index for index in range(values.ndim) if index != axis)), np.float64)


def _summed(structure: Structure, slot: Slot, values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.bincount(slot.labels, values, structure.tracer.count), np.float64)


def _relative(worth: NDArray[np.float64]) -> NDArray[np.float64]:
    mean = float(worth.mean())
    return worth / mean if mean > 0 else worth
