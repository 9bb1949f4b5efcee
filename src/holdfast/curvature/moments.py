"""Second moments of one side of a layer: what curvatures with a factor on each side sum."""

from typing import Any

from torch import Tensor

from holdfast.curvature.statistic import LayerSize, Reading, Statistic
from holdfast.factors.amount import Amount
from holdfast.factors.factor import Factor, Storage, accumulator_dtype, multipliable


class SecondMoment(Statistic):
    """Sum over rows of x x^T, in the storage that the layer's plan gives this side."""

    def _cast(self, rows: Tensor) -> Tensor:
        """Rows of 16 bits stay so where their products are sums of more: no number is lost, and no time."""
        if self.reading.dtype is None and rows.is_floating_point():
            return multipliable(rows, accumulator_dtype(rows))
        return super()._cast(rows)

    @property
    def storage(self) -> Storage:
        """How this side is summed."""
        return self.size.inputs if self.reads == "inputs" else self.size.gradients

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return self.size.inn if self.reads == "inputs" else self.size.out

    def zero(self, like: Tensor) -> Tensor:
        return self.storage.structure.zero(self.width, self.storage.option, like)

    def accumulate(self, total: Tensor, *rows: Tensor) -> None:
        self.storage.structure.accumulate(total, rows[0], self.storage.option)

    def factor(self, scale: float) -> Factor:
        """scale times the sum."""
        return self.storage.structure.from_sum(self.result(), scale, self.storage.option)

    @classmethod
    def amount(cls, size: LayerSize, reading: Reading) -> Amount:
        held, made = super().amount(size, reading), cls(size, reading)
        used, stored = made.storage.numbers(made.width), made.storage.stored(made.width)
        return Amount(held.measured, used, stored, held.shared)


class InputMoment(SecondMoment):
    """Sum of x x^T over the layer's inputs."""

    reads = "inputs"

    def __init__(self, size: LayerSize, reading: Reading, first: Any = None) -> None:
        super().__init__(size, reading, first)
        self._mean: tuple[int, Factor] | None = None  # and the rows that it is of

    @property
    def mean(self) -> Factor:
        """The sum over its rows, made once for all layers that share it."""
        if self._mean is None or self._mean[0] != self.rows:
            self._mean = self.rows, self.factor(1 / max(self.rows, 1))
        return self._mean[1]


class GradientMoment(SecondMoment):
    """Sum of g g^T over the gradients of the summed loss with respect to the layer's outputs."""

    reads = "gradients"
