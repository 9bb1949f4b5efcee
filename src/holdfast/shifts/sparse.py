"""Sparse shift: few entries of a weight that train in place, the others left alone (SIFT)."""

import torch
from torch import Tensor

from holdfast.shifts.shift import Form, Shift, mapped, precise
from holdfast.sparse_matrix import SparseMatrix, worthwhile


class Sparse(Shift):
    """D with D[rows_k, columns_k] = values_k and 0 elsewhere (arXiv 2312.11875).

    Args:
        values: (k,), differentiable.
        rows, columns: (k,) each, where they are. No place comes twice.
        shape: (out, in).
    """

    structure = "sparse"

    def __init__(self, values: Tensor, rows: Tensor, columns: Tensor, shape: tuple[int, int]) -> None:
        self.values, self.rows, self.columns = precise(values), rows, columns
        self._shape = shape

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return (self.values,)

    def products(self, curvature: Form) -> tuple[Tensor, ...]:
        return (curvature.sparse(self.values, self.rows, self.columns),)

    def projected(self, inputs: Tensor, gradients: Tensor) -> Tensor:
        """O(n t k); of indices, with only the columns of D that they point at."""
        if not inputs.is_floating_point():
            return self._projected_indices(inputs, gradients)
        if not worthwhile(self.values, self.shape):
            return (mapped(self.matrix(), inputs) * gradients).sum(dim=(1, 2))
        delta, _ = SparseMatrix.ordered(self.values, self.rows, self.columns, self.shape)
        moved = delta.times(inputs.flatten(0, 1).T)  # D x: (out, n t)
        return (moved.T.view_as(gradients) * gradients).sum(dim=(1, 2))

    def _projected_indices(self, inputs: Tensor, gradients: Tensor) -> Tensor:
        known, places = inputs.unique(return_inverse=True)  # (m,) columns of D that inputs point at; (n, t)
        if not len(known):
            return gradients.new_zeros(inputs.shape[0]) + 0 * self.values.sum()
        at = torch.searchsorted(known, self.columns).clamp_max(len(known) - 1)
        met = known[at] == self.columns
        columns = self.values.new_zeros(len(known), self.shape[0])  # D^T's rows of those, (m, out)
        columns = columns.index_put((at[met], self.rows[met]), self.values[met])
        return (columns[places] * gradients).sum(dim=(1, 2))

    def between(self, other: Shift, gradients: Tensor, inputs: Tensor) -> Tensor:
        """sum over k of D_k G[rows_k] D' S[columns_k]^T; by way of D where k is more than its rows or columns."""
        if len(self.values) > min(self.shape):
            return other.projected(inputs[None], (self.matrix().T @ gradients)[None])[0]
        weighted = self.values[:, None] * gradients[self.rows]
        return other.projected(inputs[self.columns][None], weighted[None])[0]

    def scaled(self, factor: Tensor) -> "Sparse":
        return Sparse(factor * self.values, self.rows, self.columns, self.shape)

    def matrix(self) -> Tensor:
        return self.values.new_zeros(self.shape).index_put((self.rows, self.columns), self.values)

    @property
    def shape(self) -> tuple[int, int]:
        return self._shape
