"""What the likelihoods share whose rows are vectors of independent numbers."""

from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from holdfast.errors import HoldfastError
from holdfast.likelihoods.likelihood import Uniforms, precise
from holdfast.likelihoods.rowwise import Rowwise


class Elementwise(Rowwise):
    """Rows of numbers that are independent of each other given the input.

    An item is one vector: a row of outputs (items, ...), or, with a mask, one of its true positions, such as a frame
    of a spectrogram. Of an item's numbers, those whose target is missing count for nothing.

    Args:
        outputs: (items, ...), or (batch, length, ...) with a mask; on the model's graph.
        targets: of the same shape; None: drawn labels alone are asked for.
        mask: (batch, length) of the positions that are items; None: every row is one.

    Raises:
        HoldfastError: targets or a mask of another shape.
    """

    def __init__(self, outputs: Tensor, targets: Tensor | None, mask: Tensor | None = None) -> None:
        _check_shapes(outputs, targets, mask)
        leading = 1 if mask is None else mask.dim()
        together = (-1, outputs[(0,) * leading].numel()) if outputs.numel() else (0, 1)
        rows = outputs.reshape(together)
        targets = None if targets is None else targets.detach().reshape(together).to(precise(rows).dtype)
        counted = torch.ones_like(rows, dtype=torch.bool) if targets is None else self.present(targets)
        if mask is not None:
            counted = counted & (mask.reshape(-1, 1) != 0)
        places = torch.arange(outputs.shape[0], device=outputs.device)
        sequence = places.repeat_interleave(len(rows) // max(len(places), 1))
        super().__init__(rows, targets, counted.any(dim=1), sequence)
        self.counted = counted

    @staticmethod
    @abstractmethod
    def present(targets: Tensor) -> Tensor:
        """Which numbers of the targets are not missing."""

    @abstractmethod
    def noise_gradient(self, uniform: Tensor) -> Tensor:
        """(rows, columns) gradient of labels drawn from the model, from as many uniform numbers."""

    @abstractmethod
    def information(self) -> Tensor:
        """(rows, columns) Fisher information of each number about its output."""

    def drawn_gradients(self, uniforms: Uniforms, draws: int) -> Iterator[Tensor]:
        """One label for every number of every row, so many times."""
        for uniform in self._choices(uniforms, draws, self.outputs.shape[1]):
            yield self._emptied(self.noise_gradient(uniform) / draws**0.5)

    def column_gradient(self, column: int) -> Tensor:
        """The root of the information of one number in each row."""
        only = torch.zeros_like(precise(self.outputs.detach()))
        only[:, column] = self.information()[:, column].sqrt()
        return only.masked_fill_(~self.counted, 0)

    def _now(self) -> Tensor:
        return precise(self.outputs.detach())

    def _emptied(self, gradient: Tensor) -> Tensor:
        return gradient.masked_fill(~self.counted, 0).to(self.outputs.dtype)


def _check_shapes(outputs: Tensor, targets: Tensor | None, mask: Tensor | None) -> None:
    if targets is not None and targets.shape != outputs.shape:
        raise HoldfastError(
            f"outputs of shape {tuple(outputs.shape)} and targets of shape {tuple(targets.shape)}",
            wanted="one target for every output",
        )
    if mask is not None and mask.shape != outputs.shape[: mask.dim()]:
        raise HoldfastError(
            f"outputs of shape {tuple(outputs.shape)} and a mask of shape {tuple(mask.shape)}",
            wanted="a mask over the leading dimensions of the outputs: (batch, length)",
        )


def check_positive(name: str, value: float) -> None:
    """Raise HoldfastError for a scale that is none."""
    if not 0 < value < float("inf"):
        raise HoldfastError(f"{name}={value}", wanted="a finite scale above 0, in the unit of the targets")
