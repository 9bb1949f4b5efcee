"""Trace-restricted Kronecker curvature (TKFAC): each side weighted by the other's length, the trace exact."""

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from holdfast.curvature.moments import SecondMoment
from holdfast.curvature.statistic import LayerSize, Statistic
from holdfast.curvature.two_sided import TwoSided
from holdfast.factors.diagonal import Diagonal as DiagonalFactor
from holdfast.factors.factor import Storage


class WeightedInputs(SecondMoment):
    """Sum over rows of |g|^2 x x^T, in the storage of the inputs' side."""

    reads = "pairs"

    @property
    def storage(self) -> Storage:
        return self.size.inputs

    @property
    def width(self) -> int:
        return self.size.inn

    def accumulate(self, total: Tensor, *rows: Tensor) -> None:
        inputs, gradients = rows
        if self.size.indexed:  # one-hot inputs
            DiagonalFactor.accumulate_weighted(total, inputs, gradients.square().sum(dim=1))
        else:
            super().accumulate(total, inputs * _lengths(gradients))


class WeightedGradients(SecondMoment):
    """Sum over rows of |x|^2 g g^T, in the storage of the gradients' side."""

    reads = "pairs"

    def accumulate(self, total: Tensor, *rows: Tensor) -> None:
        inputs, gradients = rows  # one-hot inputs are of length 1
        super().accumulate(total, gradients if self.size.indexed else gradients * _lengths(inputs))


class TraceKron(TwoSided):
    """C D = G D S with G = 1/items * sum over rows |x|^2 g g^T and S = sum |g|^2 x x^T / sum |x|^2 |g|^2.

    TKFAC (arXiv 2011.10741; arXiv 2402.12220): C = delta * Psi kron Phi with delta = E[|x|^2 |g|^2],
    Phi = E[|g|^2 x x^T] / delta, (in, in), and Psi = E[|x|^2 g g^T] / delta, (out, out), both of trace 1. Here
    G = delta * Psi and S = Phi, an expectation over rows, whatever batches they come in. Unlike Kronecker's, its trace
    is that of the layer's own Fisher, so a correlation between long inputs and long gradients is priced; the price is
    that layers with one input can't share S.

    Approximations: directions of inputs independent of those of gradients; layers and positions independent of each
    other; per sequence, x is the sequence's mean input and g its summed gradient. Exact for one row, and where inputs
    and gradients are independent, as in Kronecker, which it then equals.
    """

    kind = "tracekron"
    paper = "TKFAC, arXiv 2011.10741; Bayesian PEFT, arXiv 2402.12220"

    @classmethod
    def statistics(cls) -> dict[str, type[Statistic]]:
        return {"inputs": WeightedInputs, "gradients": WeightedGradients}

    @classmethod
    def from_sums(cls, size: LayerSize, sums: Mapping[str, Statistic], items: int) -> Self:
        inputs, gradients = sums["inputs"], sums["gradients"]
        assert isinstance(inputs, WeightedInputs)
        assert isinstance(gradients, WeightedGradients)
        priced = gradients.factor(1 / items)
        mass = items * float(priced.diagonal().sum())  # sum of |x|^2 |g|^2: what S is the mean over
        return cls(inputs.factor(1 / mass if mass else 0.0), priced, priced.diagonal().new_full((1,), mass))


def _lengths(rows: Tensor) -> Tensor:
    """|row| of each row, (n, d) -> (n, 1)."""
    return torch.linalg.vector_norm(rows, dim=1, keepdim=True)
