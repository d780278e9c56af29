"""Encoders and decoders for a cut: small networks that make little of an input, and the tensor at the cut of that little.

BottleFit's shape (arXiv 2201.02693): strided convolutions whose last has few channels and no activation, and a wider decoder
that ends with the shape of the tensor it stands for. Its kernels of even size are of size 3 here, so that any size of image
comes out whole; what crosses is normalised, so that one quantiser fits whatever was learned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import MissingExtra, PassError

try:
    import torch
    from torch import Tensor, nn
except ImportError as _error:
    raise MissingExtra("torch", "torch") from _error

CLIPPED_AT = {2: 1.9, 3: 2.3, 4: 2.8, 5: 3.2, 6: 3.6, 7: 3.9, 8: 4.2}
"""Standard deviations on either side that a payload of so many bits holds: fewer steps are better spent near the mean."""
WIDTHS = (96, 64, 48, 40, 32, 24, 16, 12, 8, 4)
"""Channels inside an encoder, widest first."""
MANY_PIXELS = 64
"""Of the shorter side, from which on an image is made smaller by 8, else by 4."""
DENSE_UNITS = 512
DECODER_WIDTHS = (32, 192)


@dataclass(frozen=True)
class Grid:
    """How a tensor with a batch axis lies: `channels` on a grid of `size` (two sizes, one or none), which may come `last`."""

    channels: int
    size: tuple[int, ...]
    last: bool = False

    @property
    def elements(self) -> int:
        return self.channels * math.prod(self.size)


def grid(shape: Sequence[int], *, image: bool = False) -> Grid:
    """The grid of a tensor of this shape, its first axis the batch. Tensors of three axes are tokens unless `image`: of an input.

    An input whose last axis is short and whose others are long has its channels last.
    """
    inner = tuple(shape[1:])
    if len(inner) == 3:
        if image and inner[2] <= 4 < min(inner[:2]):
            return Grid(inner[2], inner[:2], last=True)
        return Grid(inner[0], inner[1:])
    if len(inner) == 2 and image:
        return Grid(inner[0], inner[1:]) if inner[0] <= inner[1] else Grid(inner[1], inner[:1], last=True)
    if len(inner) == 1 and image and inner[0] >= 16 * MANY_PIXELS:
        return Grid(1, inner)
    return Grid(math.prod(inner), ())


class Laid(nn.Module):
    """Puts channels first, on a grid, whatever the shape."""

    def __init__(self, where: Grid) -> None:
        super().__init__()
        self.channels, self.size, self.last = where.channels, where.size, where.last

    def forward(self, x: Tensor) -> Tensor:
        if self.last:
            return x.movedim(-1, 1)
        return x.reshape(-1, self.channels, *self.size) if self.size else x.flatten(1)


class Shaped(nn.Module):
    """Gives the shape back that the tensor at the cut has."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.inner = tuple(shape[1:])

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, *self.inner)


def encoder(shape: Sequence[int], channels: int, *, stride: int = 0, width: int = 32, image: bool = True) -> nn.Sequential:
    """From a tensor of this shape to `channels` on a grid smaller by `stride` (a power of two; 0: by the size), each normalised.

    Of tensors without a grid, `channels` numbers. Raises PassError for a stride that leaves nothing.
    """
    where = grid(shape, image=image)
    if not where.size:
        inside = max(width, 2 * channels)
        return nn.Sequential(
            Laid(where), nn.Linear(where.elements, inside), nn.BatchNorm1d(inside), nn.ReLU(), nn.Linear(inside, channels),
            nn.BatchNorm1d(channels),
        )  # fmt: skip
    short = min(where.size)
    stride = stride or (1 if not image else 8 if short >= MANY_PIXELS else 4)
    halvings = stride.bit_length() - 1
    if stride != 1 << halvings or stride > short:
        raise PassError("bottleneck", f"stride is {stride}; allowed: a power of two, up to the shorter side of {short}")
    conv, norm = _layers(len(where.size))
    # Where little is to be halved there is time for a look at full size; large inputs are halved at once.
    strides = [1, *[2] * halvings] if halvings <= 2 else [2] * halvings
    outs = [max(4, width // 2), *[width] * (len(strides) - 1)]
    parts: list[nn.Module] = [Laid(where)]
    now = where.channels
    for step, out in zip(strides, outs, strict=True):
        parts += [conv(now, out, 3, step, 1, bias=False), norm(out), nn.ReLU()]
        now = out
    parts += [conv(now, channels, 1, bias=False), norm(channels)]
    return nn.Sequential(*parts)


def crossing(shape: Sequence[int], module: nn.Module) -> tuple[int, ...]:
    """The shape of what an encoder gives for a tensor of this shape, batch axis included."""
    module.eval()
    with torch.no_grad():
        return tuple(module(torch.zeros(1, *shape[1:])).shape)


def macs(shape: Sequence[int], module: nn.Module) -> int:
    """Multiply-accumulates of a module's convolutions and dense layers for one tensor of this shape."""
    counted: list[int] = []

    def count(layer: nn.Module, _: object, made: Tensor) -> None:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        counted.append(weight.numel() * math.prod(made.shape[2:]))

    layers = [part for part in module.modules() if isinstance(part, nn.Conv1d | nn.Conv2d | nn.Linear)]
    hooks = [part.register_forward_hook(count) for part in layers]
    crossing(shape, module)
    for hook in hooks:
        hook.remove()
    return sum(counted)


def decoder(coded: Sequence[int], shape: Sequence[int], *, width: int = 0, positive: bool = False) -> nn.Sequential:
    """From what crosses to a tensor of the shape of the one at the cut; never below zero if that is `positive`.

    A grid of two or one sizes is brought to the cut's own; tokens and vectors are made from the whole grid.
    """
    inner, size = tuple(shape[1:]), tuple(coded[2:])
    end: list[nn.Module] = [nn.ReLU()] if positive else []
    if size and len(inner) == len(size) + 1:
        width = width or _between(2 * inner[0], DECODER_WIDTHS)
        conv, norm = _layers(len(size))
        parts: list[nn.Module] = [conv(coded[1], width, 3, 1, 1, bias=False), norm(width), nn.ReLU()]
        parts += [Residual(conv, norm, width), *_resized(size, inner[1:], width)]
        parts += [conv(width, width, 3, 1, 1, bias=False), norm(width), nn.ReLU(), conv(width, inner[0], 3, 1, 1), *end]
        return nn.Sequential(*parts)
    if size and len(inner) == 2:
        tokens, features = inner
        width = width or _between(2 * features, DECODER_WIDTHS)
        conv, norm = _layers(len(size))
        return nn.Sequential(
            conv(coded[1], width, 3, 1, 1, bias=False), norm(width), nn.ReLU(), Residual(conv, norm, width), nn.Flatten(2),
            nn.Linear(math.prod(size), tokens), Turned(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, features), *end,
        )  # fmt: skip
    inside = width or DENSE_UNITS
    return nn.Sequential(
        nn.Flatten(1),
        nn.Linear(math.prod(coded[1:]), inside),
        nn.ReLU(),
        nn.Linear(inside, math.prod(inner)),
        Shaped(shape),
        *end,
    )


class Residual(nn.Module):
    """Two convolutions beside what they change."""

    def __init__(self, conv: type[nn.Module], norm: type[nn.Module], width: int) -> None:
        super().__init__()
        self.inside = nn.Sequential(
            conv(width, width, 3, 1, 1, bias=False), norm(width), nn.ReLU(), conv(width, width, 3, 1, 1, bias=False), norm(width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.inside(x))


class Turned(nn.Module):
    """Exchanges the last two axes."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class Rounding(nn.Module):
    """Rounds what crosses to `bits`, as the payload will; gradients pass where it does not clip. 32 bits round nothing."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        if bits < 32:
            self.scale, self.zero = steps(bits)

    def forward(self, z: Tensor) -> Tensor:
        if self.bits == 32:
            return z
        low, high = -self.zero * self.scale, (2**self.bits - 1 - self.zero) * self.scale
        inside = z.clamp(low, high)
        return inside + (torch.round(inside / self.scale) * self.scale - inside).detach()


def steps(bits: int) -> tuple[float, int]:
    """Scale and zero point of a payload of so many bits, for values of unit variance."""
    return 2 * CLIPPED_AT[bits] / (2**bits - 1), 1 << bits - 1


def fused(module: nn.Sequential) -> nn.Sequential:
    """The same function in evaluation, its normalisations inside the weights of the layers before them."""
    parts: list[nn.Module] = []
    for part in module.eval():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d) and parts:
            before = parts[-1]
            if isinstance(before, nn.Linear):
                parts[-1] = nn.utils.fusion.fuse_linear_bn_eval(before, part)
                continue
            if isinstance(before, nn.Conv1d | nn.Conv2d):
                parts[-1] = nn.utils.fusion.fuse_conv_bn_eval(before, part)
                continue
        if isinstance(part, Residual):
            made = Residual.__new__(Residual)
            nn.Module.__init__(made)
            made.inside = fused(part.inside)
            part = made
        parts.append(part)
    return nn.Sequential(*parts).eval()


def _layers(axes: int) -> tuple[type[nn.Module], type[nn.Module]]:
    return (nn.Conv2d, nn.BatchNorm2d) if axes == 2 else (nn.Conv1d, nn.BatchNorm1d)


def _resized(have: tuple[int, ...], want: tuple[int, ...], width: int) -> list[nn.Module]:
    """What brings a grid to another size: convolutions with strides where sizes are multiples, else the nearest values."""
    if have == want:
        return []
    conv, _ = _layers(len(have))
    turned: type[nn.Module] = nn.ConvTranspose2d if len(have) == 2 else nn.ConvTranspose1d
    larger = [b // a for a, b in zip(have, want, strict=True) if b % a == 0]
    if len(larger) == len(have):
        return [turned(width, width, tuple(larger), tuple(larger)), nn.ReLU()]
    smaller = [math.ceil(a / b) for a, b in zip(have, want, strict=True)]
    if all(math.ceil(a / s) == b for a, b, s in zip(have, want, smaller, strict=True)):
        return [conv(width, width, 3, tuple(smaller), 1), nn.ReLU()]
    return [nn.Upsample(size=want, mode="nearest")]


def _between(value: int, limits: tuple[int, int]) -> int:
    return max(limits[0], min(limits[1], value))
