"""Absolute curvature: every weight's mean gradient without its sign, for penalties in |D| (AEWC)."""

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor

from holdfast.curvature.curvature import Curvature
from holdfast.curvature.diagonal import Diagonal, row_products
from holdfast.curvature.statistic import LayerSize, Statistic
from holdfast.factors.factor import accumulator_dtype, add_product


class AbsoluteProducts(Statistic):
    """Sum over rows of |g| |x|^T: (out, in); per sequence, of |sum over the sequence of g x^T|."""

    reads = "pairs"

    def zero(self, like: Tensor) -> Tensor:
        return torch.zeros(self.size.out, self.size.inn, device=like.device, dtype=accumulator_dtype(like))

    def accumulate(self, total: Tensor, *rows: Tensor) -> None:
        inputs, gradients = rows
        if self.size.indexed:  # one-hot inputs: add each row to its index's column
            total.index_add_(1, inputs, gradients.abs().T.to(total.dtype))
            return
        add_product(total, gradients.abs(), inputs.abs())

    def accumulate_sequences(self, total: Tensor, sequences: Sequence[tuple[Tensor, ...]]) -> None:
        for inputs, gradients in sequences:
            total += self.size.weight_gradient(inputs, gradients).abs()


class Absolute(Curvature):
    """C D = F * D with F_ij = 1/items * sum over rows |g_i x_j|, (out, in) (AEWC, arXiv 2402.12220).

    F is in nats per unit of weight, not per unit squared: it is made for the penalty sum F |D|
    (`holdfast.penalties.absolute`), and neither that nor 1/2 <D, C D> forecasts the loss. Per sequence, the size of
    each sequence's summed gradient. Being of the first degree in gradients, it takes each item's gradient once:
    several draws, expectations over classes and shares of positions are weighted for squares, and are refused.
    """

    kind = "absolute"
    paper = "AEWC, Bayesian PEFT, arXiv 2402.12220"
    elementwise = True
    forecasts = False
    squares = False

    def __init__(self, magnitudes: Tensor) -> None:
        self.magnitudes = magnitudes  # F: (out, in)
        self._form = Diagonal(magnitudes)

    @classmethod
    def statistics(cls) -> dict[str, type[Statistic]]:
        return {"magnitudes": AbsoluteProducts}

    @classmethod
    def from_sums(cls, size: LayerSize, sums: Mapping[str, Statistic], items: int) -> Self:
        return cls(sums["magnitudes"].result() / items)

    def apply(self, delta: Tensor) -> Tensor:
        return self._form.apply(delta)

    def thin(self, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        return self._form.thin(up, down)

    def sparse(self, values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        return self._form.sparse(values, rows, columns)

    @property
    def slope(self) -> "Slope":
        """The gradient of sum F |D|."""
        return Slope(self.magnitudes)

    def damped(self, damping: float) -> "Absolute":
        return Absolute(self._form.damped(damping).fisher)

    @classmethod
    def merged(cls, parts: Sequence[Self], shares: Sequence[float]) -> Self:
        return cls(Diagonal.merged([part._form for part in parts], shares).fisher)

    def tensors(self) -> dict[str, Tensor]:
        return {"magnitudes": self.magnitudes}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Self:
        return cls(tensors["magnitudes"])

    @property
    def shape(self) -> tuple[int, int]:
        return self._form.shape


class Slope:
    """D -> F * sign(D), 0 where D is: the inner product with D is sum F |D|."""

    def __init__(self, magnitudes: Tensor) -> None:
        self.magnitudes = magnitudes  # F: (out, in)

    def apply(self, delta: Tensor) -> Tensor:
        """F * sign(D), (out, in)."""
        return self.magnitudes * delta.sign()

    def thin(self, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        """(F * sign(D)) down^T, (out, r), and up^T (F * sign(D)), (r, in), for D = up @ down."""
        return row_products(up, down, lambda delta, rows: delta.sign_().mul_(self.magnitudes[rows]))

    def sparse(self, values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """F * sign(D) at the entries of D, (k,)."""
        return self.magnitudes[rows, columns] * values.sign()
