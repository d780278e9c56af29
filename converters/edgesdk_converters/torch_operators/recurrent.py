"""RNN, GRU and LSTM as loops over time: every option of the operators, and plain gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from .operator import Function, Operator

_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
_DEFAULT = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}


def _activation(name: str, alpha: float | None, beta: float | None) -> Callable[[Tensor], Tensor]:
    def given(value: float | None, default: float) -> float:
        return default if value is None else value

    known: dict[str, Callable[[Tensor], Tensor]] = {
        "Relu": torch.relu, "Tanh": torch.tanh, "Sigmoid": torch.sigmoid, "Softsign": F.softsign, "Softplus": F.softplus,
        "Affine": lambda x: given(alpha, 1.0) * x + given(beta, 0.0),
        "LeakyRelu": lambda x: F.leaky_relu(x, given(alpha, 0.01)),
        "ThresholdedRelu": lambda x: torch.where(x > given(alpha, 1.0), x, torch.zeros_like(x)),
        "ScaledTanh": lambda x: given(alpha, 1.0) * torch.tanh(given(beta, 1.0) * x),
        "HardSigmoid": lambda x: torch.clamp(given(alpha, 0.2) * x + given(beta, 0.5), 0, 1),
        "Elu": lambda x: F.elu(x, given(alpha, 1.0)),
    }  # fmt: skip
    return next(function for kind, function in known.items() if kind.lower() == name.lower())


def _recurrent(
    op: Operator, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Tensor | None = None,
    h0: Tensor | None = None, c0: Tensor | None = None, peepholes: Tensor | None = None,
) -> Any:  # fmt: skip
    """x: time x batch x features; w: directions x gates*hidden x features; with layout 1 the batch comes first."""
    by_batch = bool(op.get("layout", 0))
    if by_batch:
        x = x.transpose(0, 1)
        h0, c0 = (None if value is None else value.transpose(0, 1) for value in (h0, c0))
    time, batch = x.shape[:2]
    directions, hidden = w.shape[0], r.shape[-1]
    names = op.get("activations") or _DEFAULT[op.kind] * directions
    each = len(names) // directions
    alphas, betas = (list(op.get(f"activation_{kind}") or []) for kind in ("alpha", "beta"))
    outputs, lasts, cells = [], [], []
    for index in range(directions):
        own = [_activation(names[k], *(v[k] if k < len(v) else None for v in (alphas, betas)))
               for k in range(index * each, (index + 1) * each)]  # fmt: skip
        backward = op.get("direction", "forward") == "reverse" or index == 1
        h = x.new_zeros(batch, hidden) if h0 is None else h0[index]
        c = x.new_zeros(batch, hidden) if c0 is None else c0[index]
        bias = x.new_zeros(2 * _GATES[op.kind] * hidden) if b is None else b[index]
        steps: list[Tensor] = [h] * time
        for t in reversed(range(time)) if backward else range(time):
            new_h, new_c = _step(op, x[t], h, c, w[index], r[index], bias, own, None if peepholes is None else peepholes[index])
            if lengths is not None:
                alive = (t < lengths).reshape(-1, 1)
                steps[t] = torch.where(alive, new_h, torch.zeros_like(new_h))
                h, c = torch.where(alive, new_h, h), torch.where(alive, new_c, c)
            else:
                h, c = new_h, new_c
                steps[t] = h
        outputs.append(torch.stack(steps))
        lasts.append(h)
        cells.append(c)
    y, last, cell = torch.stack(outputs, 1), torch.stack(lasts), torch.stack(cells)
    if by_batch:
        y, last, cell = y.permute(2, 0, 1, 3), last.transpose(0, 1), cell.transpose(0, 1)
    every = (y, last, cell) if op.kind == "LSTM" else (y, last)
    return every[: op.outputs] if op.outputs > 1 else y


def _step(
    op: Operator, x: Tensor, h: Tensor, c: Tensor, w: Tensor, r: Tensor, bias: Tensor,
    act: list[Callable[[Tensor], Tensor]], peepholes: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    limit = op.get("clip")
    wb, rb = bias.chunk(2)

    def cut(value: Tensor) -> Tensor:
        return value if limit is None else value.clamp(-limit, limit)

    if op.kind == "RNN":
        return act[0](cut(x @ w.T + wb + h @ r.T + rb)), c
    if op.kind == "GRU":
        (wz, wr, wh), (rz, rr, rh) = w.chunk(3), r.chunk(3)
        (bz, br, bh), (cz, cr, ch) = wb.chunk(3), rb.chunk(3)
        z = act[0](cut(x @ wz.T + bz + h @ rz.T + cz))
        reset = act[0](cut(x @ wr.T + br + h @ rr.T + cr))
        if op.get("linear_before_reset", 0):
            new = act[1](cut(x @ wh.T + bh + reset * (h @ rh.T + ch)))
        else:
            new = act[1](cut(x @ wh.T + bh + (reset * h) @ rh.T + ch))
        return (1 - z) * new + z * h, c
    i, o, f, g = (x @ w.T + wb + h @ r.T + rb).chunk(4, -1)
    if peepholes is not None:
        pi, po, pf = peepholes.chunk(3)
        i, f = i + pi * c, f + pf * c
    i, g = act[0](cut(i)), act[1](cut(g))
    f = 1 - i if op.get("input_forget", 0) else act[0](cut(f))
    c = f * c + i * g
    if peepholes is not None:
        o = o + po * c
    return act[0](cut(o)) * act[2](c), c


OPERATORS: dict[str, Function] = dict.fromkeys(_GATES, _recurrent)
