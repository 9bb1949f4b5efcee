"""Rank-one diagonal curvature: a price for each row of the weight times one for each column (Adafactor-style)."""

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor

from holdfast.curvature.statistic import LayerSize, Statistic
from holdfast.curvature.two_sided import TwoSided
from holdfast.factors.diagonal import Diagonal as DiagonalFactor
from holdfast.factors.factor import accumulator_dtype


class Margins(Statistic):
    """Row sums (out,) and column sums (in,) of the sum of squared gradients M, one after the other: (out + in,).

    Per token M is a single row's g x^T: sums of |x|^2 g^2 and |g|^2 x^2, and M is not formed. Per sequence M is the
    sum of g x^T over the sequence, formed, squared and dropped.
    """

    reads = "pairs"

    def zero(self, like: Tensor) -> Tensor:
        return torch.zeros(self.size.out + self.size.inn, device=like.device, dtype=accumulator_dtype(like))

    def accumulate(self, total: Tensor, *rows: Tensor) -> None:
        inputs, gradients = rows
        by_out, by_in = total[: self.size.out], total[self.size.out :]
        squares = gradients.to(total.dtype).square()
        if self.size.indexed:  # one-hot inputs
            by_out += squares.sum(dim=0)
            by_in.index_add_(0, inputs, squares.sum(dim=1))
            return
        inputs = inputs.to(total.dtype).square()
        by_out.addmv_(squares.T, inputs.sum(dim=1))
        by_in.addmv_(inputs.T, squares.sum(dim=1))

    def accumulate_sequences(self, total: Tensor, sequences: Sequence[tuple[Tensor, ...]]) -> None:
        for inputs, gradients in sequences:
            squares = self.size.weight_gradient(inputs, gradients).square()
            total[: self.size.out] += squares.sum(dim=1)
            total[self.size.out :] += squares.sum(dim=0)


class RankOne(TwoSided):
    """C D = F * D with F = u v^T / sum(u), u_i = sum_j F_ij and v_j = sum_i F_ij of the diagonal Fisher.

    Adafactor's second moment (arXiv 1804.04235 sec. 3), taken of the Fisher's diagonal: of all matrices of rank one
    the nearest to it in generalised Kullback-Leibler divergence, with its row sums, column sums and total. Stores
    out + in numbers instead of out * in, and never forms a weight of them per token. With D = up @ down,

        <D, C D> = sum((up^T diag(u) up) * (down diag(v) down^T)) / sum(u).

    Exact where the diagonal Fisher is of rank one: for one row, and where squared inputs and squared gradients are
    uncorrelated. What it leaves out besides is what the diagonal leaves out.
    """

    kind = "rank-one"
    paper = "Adafactor, arXiv 1804.04235 sec. 3; EWC, arXiv 1612.00796"

    @classmethod
    def statistics(cls) -> dict[str, type[Statistic]]:
        return {"margins": Margins}

    @classmethod
    def from_sums(cls, size: LayerSize, sums: Mapping[str, Statistic], items: int) -> Self:
        by_out, by_in = sums["margins"].result().split([size.out, size.inn])
        mass = by_in.sum()
        weights = by_in / mass if mass else torch.zeros_like(by_in)
        return cls(DiagonalFactor(weights), DiagonalFactor(by_out / items), mass.reshape(1))
