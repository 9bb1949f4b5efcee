"""The interface of the room: what a move of one layer's weight costs.

A curvature is a symmetric positive semi-definite map C on matrices of the layer's shape (out, in). It is the
Fisher information of the mean loss per scored item, so 1/2 <D, C D> is the rise of that loss in nats per item
that a shift D is predicted to cause (second-order expansion at the anchor, where the gradient is neglected).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

Reads = Literal["inputs", "gradients", "pairs"]


@dataclass(frozen=True)
class LayerSize:
    """What a statistic needs to know of its layer: W is (out, in); an embedding's inputs are indices."""

    out: int
    inn: int
    indexed: bool = False


class Statistic(ABC):
    """A sum over rows that a curvature needs of one layer; sums over shards add up.

    `reads` says which rows it takes: the layer's inputs (rows, in), the gradients of the summed loss with
    respect to its outputs (rows, out), or both, paired. Layers that read one and the same input tensor share
    the statistics that read inputs.
    """

    reads: ClassVar[Reads]

    def __init__(self, size: LayerSize, dtype: torch.dtype | None) -> None:
        self.size = size
        self.dtype = dtype  # of the products; sums are kept in float32 or better
        self.rows = 0
        self.sum: Tensor | None = None

    def add(self, *rows: Tensor) -> None:
        """Add the contribution of some rows."""
        self.rows += rows[0].shape[0]
        rows = tuple(self._cast(r) for r in rows)
        if self.sum is None:
            self.sum = self.zero(rows[-1])
        self.accumulate(self.sum, *rows)

    def _cast(self, rows: Tensor) -> Tensor:
        if not rows.is_floating_point():
            return rows
        if self.dtype is not None:
            return rows.to(self.dtype)
        return rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows

    @abstractmethod
    def zero(self, like: Tensor) -> Tensor:
        """The empty sum, on the rows' device."""

    @abstractmethod
    def accumulate(self, total: Tensor, *rows: Tensor) -> None:
        """Add to `total` in place."""

    def result(self) -> Tensor:
        """The finished sum; raises RuntimeError when no row was ever seen."""
        if self.sum is None:
            raise RuntimeError("no row was added")
        return self.sum


def accumulator_dtype(like: Tensor) -> torch.dtype:
    """Sums are float32, or float64 where the rows are."""
    return torch.float64 if like.dtype == torch.float64 else torch.float32


class Curvature(ABC):
    """A positive semi-definite map C on (out, in) matrices, and its products with a shift."""

    kind: ClassVar[str]
    paper: ClassVar[str]
    forecasts: ClassVar[bool] = True  # whether 1/2 <D, C D> is a forecast of the loss in nats

    @classmethod
    @abstractmethod
    def statistics(cls) -> dict[str, type[Statistic]]:
        """Name -> statistic to be collected on source data; empty when the curvature needs none."""

    @classmethod
    @abstractmethod
    def from_sums(cls, size: LayerSize, sums: dict[str, Statistic], items: int) -> Self:
        """Normalise the collected sums by the number of scored items."""

    @abstractmethod
    def apply(self, delta: Tensor) -> Tensor:
        """C D for a dense shift D, (out, in) -> (out, in)."""

    @abstractmethod
    def thin(self, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        """For D = up @ down with up (out, r) and down (r, in): (C D) down^T, (out, r), and up^T (C D), (r, in).

        These are half the gradients of <D, C D> with respect to up and down, and the inner product of either
        with its factor is <D, C D> itself.
        """

    @abstractmethod
    def damped(self, damping: float) -> "Curvature":
        """The same curvature with `damping` times its mean eigenvalue added; 0 changes nothing."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What is stored in a file."""

    @classmethod
    @abstractmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Self:
        """The inverse of `tensors`."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
