"""Full factor: every entry, (d, d)."""

from collections.abc import Sequence
from functools import cached_property
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.factors.factor import Factor, accumulator_dtype, add_product, multipliable
from holdfast.factors.rotation import Rotation
from holdfast.sparse_matrix import SparseMatrix

STRIPS = 16  # block rows of a symmetric sum: only [i, i:] is multiplied, 17/32 of the work
NARROWEST = {"cpu": 64}  # rows of a strip below which the products run slower than the work they save
NARROWEST_ELSEWHERE = 512


class Full(Factor):
    """M itself. The running sum is kept above the diagonal only, by strips, and mirrored when it is read."""

    structure = "full"

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix  # (d, d)

    @classmethod
    def zero(cls, width: int, option: int, like: Tensor) -> Tensor:
        return torch.zeros(width, width, device=like.device, dtype=accumulator_dtype(like))

    @classmethod
    def accumulate(cls, total: Tensor, rows: Tensor, option: int) -> None:
        if not rows.is_floating_point():
            total.diagonal().add_(torch.bincount(rows, minlength=total.shape[0]))
            return
        rows = multipliable(rows, total.dtype)  # once, not strip by strip
        for start, stop in _strips(total):
            add_product(total[start:stop, start:], rows[:, start:stop], rows[:, start:])

    @classmethod
    def from_sum(cls, total: Tensor, scale: float, option: int) -> Self:
        matrix = total * scale
        for start, stop in _strips(matrix):
            square = matrix[start:stop, start:stop]
            square.copy_(square.triu() + square.triu(1).T)
            matrix[stop:, start:stop] = matrix[start:stop, stop:].T
        return cls(matrix)

    @staticmethod
    def numbers(width: int, option: int) -> int:
        return width * width

    @classmethod
    def stored(cls, width: int, option: int) -> int:
        return width * (width + 1) // 2

    @staticmethod
    def turning(width: int, option: int) -> int:
        return width * width

    def times(self, rows: Tensor) -> Tensor:
        # M is symmetric, so either side of it would do: few rows are up to three times faster than few columns.
        return F.linear(rows, self.matrix)

    def times_sparse(self, sparse: SparseMatrix, start: int, stop: int) -> Tensor:
        return sparse.times(self.matrix[:, start:stop])

    def times_at(self, left: Tensor, at: SparseMatrix) -> Tensor:
        return at.picked_product(self.matrix, left)

    def among(self, indices: Tensor) -> Tensor:
        return self.matrix[indices][:, indices]

    def diagonal(self) -> Tensor:
        return self.matrix.diagonal()

    @cached_property
    def _rotation(self) -> Rotation:
        return Rotation(torch.linalg.eigh(self.matrix).eigenvectors.contiguous())

    def rotation(self) -> Rotation:
        return self._rotation

    @classmethod
    def merged(cls, parts: Sequence[Self], shares: Sequence[float]) -> Self:
        total = torch.zeros_like(parts[0].matrix)
        for part, share in zip(parts, shares, strict=True):
            total.add_(part.matrix, alpha=share)
        return cls(total)

    def tensors(self) -> dict[str, Tensor]:
        return {"full": self.matrix}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Self:
        return cls(tensors["full"])


def _strips(total: Tensor) -> list[tuple[int, int]]:
    """First and last-plus-one row of each block row of a symmetric matrix."""
    width = total.shape[0]
    step = max(-(-width // STRIPS), NARROWEST.get(total.device.type, NARROWEST_ELSEWHERE))
    return [(start, min(start + step, width)) for start in range(0, width, step)]
