"""A matrix of few entries, and products of it and at its places."""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

SAMPLING = ("cpu", "cuda")  # kinds of device that torch.sparse.sampled_addmm knows
GATHERED = 2**22  # numbers gathered at a time elsewhere


@dataclass(frozen=True)
class Entries:
    """D, (n, m), 0 but for k values at distinct places, which may also stand for the places alone.

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

    def inside(self, start: int, stop: int) -> Tensor:
        """Which of the entries lie in columns from `start` up to `stop`, (k,) of bool."""
        return (self.columns >= start) & (self.columns < stop)

    def between(self, start: int, stop: int) -> "Entries":
        """D[:, start:stop]."""
        if (start, stop) == (0, self.shape[1]):
            return self
        inside = self.inside(start, stop)
        columns = self.columns[inside] - start
        return Entries(self.values[inside], self.rows[inside], columns, (self.shape[0], stop - start))

    def dense(self) -> Tensor:
        """D itself, (n, m)."""
        whole = self.values.new_zeros(self.shape)
        whole[self.rows, self.columns] = self.values
        return whole

    def of(self, matrix: Tensor) -> Tensor:
        """The numbers of a dense matrix, (n, m), at these places, (k,)."""
        return matrix[self.rows, self.columns]

    def times(self, right: Tensor) -> Tensor:
        """D B, (n, b), for a dense B, (m, b): k b products."""
        places = torch.stack([self.rows, self.columns])
        sparse = torch.sparse_coo_tensor(places, self.values, self.shape, is_coalesced=True, check_invariants=False)
        return torch.sparse.mm(sparse, right)

    def of_product(self, left: Tensor, right: Tensor) -> Tensor:
        """(A B) at these places, (k,), for dense A, (n, d), and B, (d, m): k d products."""
        if left.device.type not in SAMPLING:
            some = max(GATHERED // left.shape[1], 1)
            pieces = zip(self.rows.split(some), self.columns.split(some), strict=True)
            return torch.cat([(left[r] * right.T[c]).sum(dim=1) for r, c in pieces])
        starts = self.rows.new_zeros(self.shape[0] + 1)
        starts[1:] = torch.bincount(self.rows, minlength=self.shape[0]).cumsum(dim=0)
        nothing = left.new_zeros(len(self.rows))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            places = torch.sparse_csr_tensor(starts, self.columns, nothing, self.shape, check_invariants=False)
            return torch.sparse.sampled_addmm(places, left, right, beta=0.0).values()
