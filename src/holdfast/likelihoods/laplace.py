"""Regression with Laplace noise: absolute errors, such as the mel losses of speech synthesis."""

import torch
from torch import Tensor

from holdfast.likelihoods.elementwise import Elementwise, check_positive


class Laplace(Elementwise):
    """p(y) = exp(-|output - y| / b) / (2 b) for each number: -log p = |output - y| / b.

    The constant log 2b is left out, since no parameter moves it. The Fisher information of an output is 1 / b^2,
    although |output - y| has no second derivative: a drawn label lies above or below with equal chance, and its
    gradient is a random sign over b. Missing targets are NaN.

    Args:
        outputs: (items, ...), or (batch, length, ...) with a mask; on the model's graph.
        targets: of the same shape; None: drawn labels alone are asked for.
        mask: (batch, length) of the positions that are items; None: every row is one.
        b: the mean absolute deviation of the noise.

    Raises:
        HoldfastError: shapes that do not fit, or a b that is not positive.
    """

    def __init__(self, outputs: Tensor, targets: Tensor | None, mask: Tensor | None = None, *, b: float = 1.0) -> None:
        check_positive("b", b)
        super().__init__(outputs, targets, mask)
        self.b = b

    @staticmethod
    def present(targets: Tensor) -> Tensor:
        """Not NaN."""
        return ~targets.isnan()

    def loss(self) -> Tensor:
        """Sum of |output - y| / b."""
        return (self.outputs - self.labels())[self.counted].abs().sum() / self.b

    def data_gradient(self) -> Tensor:
        """sign(output - y) / b."""
        return self._emptied((self._now() - self.labels()).sign() / self.b)

    def noise_gradient(self, uniform: Tensor) -> Tensor:
        """A random sign over b."""
        return torch.where(uniform < 0.5, -1, 1).to(self._now()) / self.b

    def information(self) -> Tensor:
        """1 / b^2."""
        return torch.full_like(self._now(), self.b**-2)

    def answers(self, top_k: int | None = None) -> tuple[Tensor, ...]:
        """The outputs of the scored rows."""
        return (self._now()[self.scored],)

    def divergence(self, answers: tuple[Tensor, ...]) -> Tensor:
        """Sum of d + exp(-d) - 1, with d = |teacher - now| / b."""
        moved = (self.outputs[self.scored] - answers[0])[self.counted[self.scored]].abs() / self.b
        return (moved + torch.expm1(-moved)).sum()
