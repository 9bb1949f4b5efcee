"""Diagonal factor: (d,). Exact for one-hot rows, whose second moment is the counts."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from holdfast.factors.factor import Factor, accumulator_dtype
from holdfast.factors.rotation import Rotation
from holdfast.sparse_matrix import SparseMatrix


class Diagonal(Factor):
    """M = diag(m), m_i = scale * sum over rows of x_i^2."""

    structure = "diagonal"

    def __init__(self, entries: Tensor) -> None:
        self.entries = entries  # (d,)

    @classmethod
    def zero(cls, width: int, option: int, like: Tensor) -> Tensor:
        return torch.zeros(width, device=like.device, dtype=accumulator_dtype(like))

    @classmethod
    def accumulate(cls, total: Tensor, rows: Tensor, option: int) -> None:
        if rows.is_floating_point():
            total += rows.square().sum(dim=0, dtype=total.dtype)
        else:
            total += torch.bincount(rows, minlength=total.shape[0])

    @classmethod
    def accumulate_weighted(cls, total: Tensor, indices: Tensor, weights: Tensor) -> None:
        """Add one-hot rows, each counted with its weight, (n,) and (n,), to the running sum in place."""
        total.index_add_(0, indices, weights.to(total.dtype))

    @classmethod
    def from_sum(cls, total: Tensor, scale: float, option: int) -> Self:
        return cls(total * scale)

    @staticmethod
    def numbers(width: int, option: int) -> int:
        return width

    def times(self, rows: Tensor) -> Tensor:
        return rows * self.entries

    def times_sparse(self, sparse: SparseMatrix, start: int, stop: int) -> Tensor:
        return sparse.between(start, stop).dense() * self.entries[start:stop]

    def times_at(self, left: Tensor, at: SparseMatrix) -> Tensor:
        return at.picked(left) * self.entries[at.rows]

    def among(self, indices: Tensor) -> Tensor:
        return self.entries[indices] * (indices[:, None] == indices)

    def diagonal(self) -> Tensor:
        return self.entries

    def spectrum(self) -> tuple[Tensor, Rotation | None]:
        return self.entries, None

    @classmethod
    def merged(cls, parts: Sequence[Self], shares: Sequence[float]) -> Self:
        return cls(torch.stack([share * part.entries for part, share in zip(parts, shares, strict=True)]).sum(dim=0))

    def tensors(self) -> dict[str, Tensor]:
        return {"diagonal": self.entries}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Self:
        return cls(tensors["diagonal"])
