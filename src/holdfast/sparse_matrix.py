"""A matrix of few entries, and products of it and at its places."""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# On a CPU (measured at d = 1024) and, a guess, elsewhere: with more entries than 1 in so many, D dense is as fast.
DENSE = (8, 32)
SAMPLING = ("cpu", "cuda")  # kinds of device that torch.sparse.sampled_addmm knows
GATHERED = 2**22  # numbers gathered at a time elsewhere


@dataclass(frozen=True)
class SparseMatrix:
    """D, (n, m), 0 but for k values at distinct places; where only these are asked for, values don't matter.

    Attributes:
        values: (k,).
        rows: (k,), ascending: torch's sparse products rely on it and do not look.
        columns: (k,).
        shape: (n, m).
    """

    values: Tensor
    rows: Tensor
    columns: Tensor
    shape: tuple[int, int]

    @classmethod
    def ordered(
        cls, values: Tensor, rows: Tensor, columns: Tensor, shape: tuple[int, int]
    ) -> tuple["SparseMatrix", Tensor]:
        """From entries in any order; and the place that each of them came from, (k,)."""
        order = rows.argsort(stable=True)
        return cls(values[order], rows[order], columns[order], shape), order

    def inside(self, start: int, stop: int) -> Tensor:
        """Which of the entries lie in columns from `start` up to `stop`, (k,) of bool."""
        return (self.columns >= start) & (self.columns < stop)

    def between(self, start: int, stop: int) -> "SparseMatrix":
        """D[:, start:stop]."""
        if (start, stop) == (0, self.shape[1]):
            return self
        inside = self.inside(start, stop)
        columns = self.columns[inside] - start
        return SparseMatrix(self.values[inside], self.rows[inside], columns, (self.shape[0], stop - start))

    def dense(self) -> Tensor:
        """D itself, (n, m)."""
        whole = self.values.new_zeros(self.shape)
        whole[self.rows, self.columns] = self.values
        return whole

    def picked(self, matrix: Tensor) -> Tensor:
        """The numbers of a dense matrix, (n, m), at these places, (k,)."""
        return matrix[self.rows, self.columns]

    def times(self, right: Tensor) -> Tensor:
        """D B, (n, b), for a dense B, (m, b), differentiable in both: k b products, and in the backward pass too."""
        return _Times.apply(self.values, right, self)

    def picked_product(self, left: Tensor, right: Tensor) -> Tensor:
        """(A B) at these places, (k,), for dense A, (n, d), and B, (d, m): k d products."""
        turned = right.T.contiguous()  # dot products of what lies in order: up to ten times faster
        if left.device.type not in SAMPLING:
            some = max(GATHERED // left.shape[1], 1)
            pieces = zip(self.rows.split(some), self.columns.split(some), strict=True)
            return torch.cat([(left[r] * turned[c]).sum(dim=1) for r, c in pieces])
        starts = self.rows.new_zeros(self.shape[0] + 1)
        starts[1:] = torch.bincount(self.rows, minlength=self.shape[0]).cumsum(dim=0)
        nothing = left.new_zeros(len(self.rows))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            places = torch.sparse_csr_tensor(starts, self.columns, nothing, self.shape, check_invariants=False)
            return torch.sparse.sampled_addmm(places, left.contiguous(), turned.T, beta=0.0).values()


class _Times(torch.autograd.Function):
    """D B as a function of D's values and of B; torch's own gradient of it forms the dense (n, m) of D."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, right: Tensor, matrix: SparseMatrix) -> Tensor:
        ctx.matrix = matrix
        ctx.save_for_backward(values, right)
        places = torch.stack([matrix.rows, matrix.columns])
        sparse = torch.sparse_coo_tensor(places, values, matrix.shape, is_coalesced=True, check_invariants=False)
        return torch.sparse.mm(sparse, right.contiguous())  # by columns it would be up to thirty times slower

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (values, right), matrix = ctx.saved_tensors, ctx.matrix
        for_values = matrix.picked_product(upstream, right.T) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return for_values, None, None
        turned, _ = SparseMatrix.ordered(values, matrix.columns, matrix.rows, matrix.shape[::-1])
        return for_values, turned.times(upstream), None


def worthwhile(values: Tensor, shape: tuple[int, int]) -> bool:
    """Whether products with so few entries are faster than those with a dense matrix."""
    return len(values) * DENSE[values.device.type != "cpu"] <= shape[0] * shape[1]
