"""Student: an encoder, the rounding of what crosses, a decoder, and the rest of the network behind the cut."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import MissingExtra
from ..to_torch import TorchModel
from .design import Rounding

try:
    import torch
    from torch import Tensor, nn
except ImportError as _error:
    raise MissingExtra("torch", "torch") from _error


class Student(nn.Module):
    """Encoder, rounding, decoder, and the rest of the network, which computes each sample alone as its graph says.

    `outputs` is how many of the rest's results are the model's own; the others are tensors inside it.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, bits: int, rest: TorchModel, later: Sequence[str]) -> None:
        super().__init__()
        self.encoder, self.decoder, self.rest = encoder, decoder, rest
        self.rounding = Rounding(bits)
        self.outputs, self.later = rest.results, tuple(later)
        self.one_by_one = False

    def coded(self, x: Tensor, channels: int | None = None) -> Tensor:
        """What crosses, rounded; channels after the first few are zero."""
        z: Tensor = self.rounding(self.encoder(x))
        if channels is None or channels == z.shape[1]:
            return z
        kept = (torch.arange(z.shape[1], device=z.device) < channels).to(z)
        return z * kept.reshape(1, -1, *[1] * (z.ndim - 2))

    def answers(self, made: Tensor, names: Sequence[str]) -> tuple[Tensor, ...]:
        """These results of the rest, for tensors at the cut; one tensor each, samples first."""
        self.rest.results = tuple(names)

        def alone(value: Tensor) -> tuple[Tensor, ...]:
            found = self.rest(value[None])
            return found if isinstance(found, tuple) else (found,)

        if not self.one_by_one:
            try:
                return tuple(torch.vmap(alone)(made))
            except RuntimeError:
                self.one_by_one = True  # some operator has no batching rule; if it is another error, it comes again
        return tuple(torch.stack(group) for group in zip(*map(alone, made), strict=True))
