"""Kronecker-factored curvature (KFAC): input directions times output directions."""

from functools import cached_property
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.curvature.curvature import Curvature, LayerSize, Statistic, accumulator_dtype

STRIPS = 16  # block rows of a symmetric sum: only [i, i:] is multiplied, 17/32 of the work
NARROWEST = {"cpu": 64}  # rows of a strip below which the products run slower than the work they save
NARROWEST_ELSEWHERE = 512


class SecondMoment(Statistic):
    """Sum over rows of x x^T: symmetric (d, d); for one-hot rows its diagonal, the counts, (d,)."""

    def zero(self, like: Tensor) -> Tensor:
        if not like.is_floating_point():
            return torch.zeros(self.width, device=like.device, dtype=torch.int64)
        return torch.zeros(self.width, self.width, device=like.device, dtype=accumulator_dtype(like))

    @property
    def width(self) -> int:
        return self.size.inn if self.reads == "inputs" else self.size.out

    def accumulate(self, total: Tensor, *rows: Tensor) -> None:
        (x,) = rows
        if not x.is_floating_point():
            total += torch.bincount(x, minlength=self.width)
            return
        for start, stop in _strips(total):
            left, block = x[:, start:stop], total[start:stop, start:]
            if x.dtype == total.dtype:
                block.addmm_(left.T, x[:, start:])
            else:  # low-precision products, summed in float32
                block += left.T @ x[:, start:]

    def result(self) -> Tensor:
        total = super().result()
        if total.dim() == 1:
            return total
        for start, stop in _strips(total):  # what was summed above the diagonal, mirrored below it
            square = total[start:stop, start:stop]
            square.copy_(square.triu() + square.triu(1).T)
            total[stop:, start:stop] = total[start:stop, stop:].T
        return total

    @cached_property
    def mean(self) -> Tensor:
        """The sum over its rows, once for all layers that share it."""
        total = self.result()
        exact = total if total.is_floating_point() else total.cpu().double()  # counts
        return exact / max(self.rows, 1)


def _strips(total: Tensor) -> list[tuple[int, int]]:
    """First and last-plus-one row of each block row of a symmetric matrix."""
    width = total.shape[0]
    step = max(-(-width // STRIPS), NARROWEST.get(total.device.type, NARROWEST_ELSEWHERE))
    return [(start, min(start + step, width)) for start in range(0, width, step)]


class InputMoment(SecondMoment):
    """Sum of x x^T over the layer's inputs."""

    reads = "inputs"


class GradientMoment(SecondMoment):
    """Sum of g g^T over the gradients of the summed loss with respect to the layer's outputs."""

    reads = "gradients"


class Kronecker(Curvature):
    """C D = G D S: KFAC of the weight shift (arXiv 1503.05671 sec. 3; arXiv 2402.12220, KFAC penalty).

    G = 1/items * sum over rows g g^T, (out, out); S = 1/rows * sum over rows x x^T, (in, in), or its exact
    diagonal (in,) for an embedding. With D = up @ down,

        <D, C D> = sum((up^T G up) * (down S down^T)),

    so D is never formed: O(r (out^2 + in^2)). Approximations: inputs independent of gradients, layers independent
    of each other, positions independent of each other ("expand", arXiv 2311.00636). Exact for a linear network
    with squared error, and for one row.
    """

    kind = "kronecker"
    paper = "KFAC, arXiv 1503.05671; Bayesian PEFT, arXiv 2402.12220"

    def __init__(self, inputs: Tensor, gradients: Tensor, ridge: Tensor | None = None) -> None:
        self.inputs = inputs  # S: (in, in) or (in,)
        self.gradients = gradients  # G: (out, out)
        # (2,): added to the diagonals of S and G. Kept apart, so that layers go on sharing one S in memory.
        self.ridge = inputs.new_zeros(2) if ridge is None else ridge
        self._raise_inputs, self._raise_gradients = (float(r) for r in self.ridge)

    @classmethod
    def statistics(cls) -> dict[str, type[Statistic]]:
        return {"inputs": InputMoment, "gradients": GradientMoment}

    @classmethod
    def from_sums(cls, size: LayerSize, sums: dict[str, Statistic], items: int) -> Self:
        inputs, gradients = sums["inputs"], sums["gradients"]
        assert isinstance(inputs, InputMoment)
        priced = gradients.result() / items
        return cls(inputs.mean.to(priced), priced)

    def apply(self, delta: Tensor) -> Tensor:
        priced = _priced(delta.T, self.gradients, self._raise_gradients)  # (G D)^T, (in, out)
        return _priced(priced.T, self.inputs, self._raise_inputs)

    def thin(self, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        priced_up = _priced(up.T, self.gradients, self._raise_gradients)  # (G up)^T, (r, out)
        priced_down = _priced(down, self.inputs, self._raise_inputs)  # down S, (r, in)
        return priced_up.T @ (priced_down @ down.T), (priced_up @ up) @ priced_down

    def damped(self, damping: float) -> "Kronecker":
        """(G + eta mean(diag G) I) and (S + eta mean(diag S) I): both factors by the same share of their trace."""
        means = torch.stack([_diagonal(self.inputs).mean(), _diagonal(self.gradients).mean()])
        return Kronecker(self.inputs, self.gradients, self.ridge + damping * means.to(self.ridge))

    def tensors(self) -> dict[str, Tensor]:
        return {"inputs": self.inputs, "gradients": self.gradients, "ridge": self.ridge}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Self:
        return cls(tensors["inputs"], tensors["gradients"], tensors["ridge"])

    @property
    def shape(self) -> tuple[int, int]:
        return self.gradients.shape[0], self.inputs.shape[0]


def _diagonal(factor: Tensor) -> Tensor:
    return factor if factor.dim() == 1 else factor.diagonal()


def _priced(rows: Tensor, factor: Tensor, ridge: float) -> Tensor:
    """Rows times a factor plus a ridge on its diagonal, (n, d) -> (n, d).

    The factor is symmetric, so either side of it would do: few rows are up to three times faster than few columns.
    """
    product = rows * factor if factor.dim() == 1 else F.linear(rows, factor)
    return product.add_(rows, alpha=ridge) if ridge else product
