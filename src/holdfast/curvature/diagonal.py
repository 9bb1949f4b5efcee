"""Diagonal curvature: every weight has its own price (elastic weight consolidation)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Self

import torch
from torch import Tensor

from holdfast.curvature.curvature import Curvature
from holdfast.curvature.spectrum import Spectrum
from holdfast.curvature.statistic import LayerSize, Statistic
from holdfast.factors.factor import accumulator_dtype, add_product

ROWS_AT_A_TIME = 512  # rows of D formed at once in `thin`: bounds memory at 512 * in numbers


class SquaredProducts(Statistic):
    """Sum over rows of (g g) (x x)^T, elementwise squares: (out, in).

    The square of each row's own weight gradient g x^T; per sequence, the square of its sum over the sequence; never
    the square of a batch's gradient.
    """

    reads = "pairs"

    def zero(self, like: Tensor) -> Tensor:
        return torch.zeros(self.size.out, self.size.inn, device=like.device, dtype=accumulator_dtype(like))

    def accumulate(self, total: Tensor, *rows: Tensor) -> None:
        inputs, gradients = rows
        squares = gradients.square()
        if self.size.indexed:  # one-hot inputs: add each row's squares to its index's column
            total.index_add_(1, inputs, squares.T.to(total.dtype))
            return
        add_product(total, squares, inputs.square())

    def accumulate_sequences(self, total: Tensor, sequences: Sequence[tuple[Tensor, ...]]) -> None:
        for inputs, gradients in sequences:
            total += self.size.weight_gradient(inputs, gradients).square()


class Diagonal(Curvature):
    """C D = F * D with F the diagonal Fisher, (out, in) (EWC, arXiv 1612.00796 eq. 3; arXiv 2402.12220).

    F_ij = 1/items * sum over rows (g_i x_j)^2. Per token, each position is an example of its own: exact for the
    diagonal where the layer's output at one position reaches no other position's loss (no attention follows);
    elsewhere the products between positions are left out. Per sequence, the square of (sum over positions g_i x_j),
    which is the diagonal of the Fisher itself: with sampled labels the scores of two positions are uncorrelated.
    """

    kind = "diagonal"
    paper = "EWC, arXiv 1612.00796 eq. 3; Bayesian PEFT, arXiv 2402.12220"
    elementwise = True

    def __init__(self, fisher: Tensor) -> None:
        self.fisher = fisher  # (out, in)

    @classmethod
    def statistics(cls) -> dict[str, type[Statistic]]:
        return {"squares": SquaredProducts}

    @classmethod
    def from_sums(cls, size: LayerSize, sums: Mapping[str, Statistic], items: int) -> Self:
        return cls(sums["squares"].result() / items)

    def apply(self, delta: Tensor) -> Tensor:
        return self.fisher * delta

    def thin(self, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        return row_products(up, down, lambda delta, rows: delta.mul_(self.fisher[rows]))

    def sparse(self, values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        return self.fisher[rows, columns] * values

    def spectrum(self) -> Spectrum:
        return Spectrum(self.fisher)

    def damped(self, damping: float) -> "Diagonal":
        return Diagonal(self.fisher + damping * self.fisher.mean()) if damping else self

    @classmethod
    def merged(cls, parts: Sequence[Self], shares: Sequence[float]) -> Self:
        return cls(torch.stack([share * part.fisher for part, share in zip(parts, shares, strict=True)]).sum(dim=0))

    def tensors(self) -> dict[str, Tensor]:
        return {"fisher": self.fisher}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Self:
        return cls(tensors["fisher"])

    @property
    def shape(self) -> tuple[int, int]:
        out, inn = self.fisher.shape
        return out, inn


def row_products(up: Tensor, down: Tensor, price: Callable[[Tensor, slice], Tensor]) -> tuple[Tensor, Tensor]:
    """P down^T, (out, r), and up^T P, (r, in), for P = price(D), D = up @ down, and prices that are elementwise.

    No form of size r exists for them: D is formed in blocks of rows, (rows, in), priced in place and dropped.
    """
    for_up, for_down = torch.empty_like(up), torch.zeros_like(down)
    for start in range(0, up.shape[0], ROWS_AT_A_TIME):
        rows = slice(start, start + ROWS_AT_A_TIME)
        priced = price(up[rows] @ down, rows)
        for_up[rows] = priced @ down.T
        for_down.addmm_(up[rows].T, priced)
    return for_up, for_down
