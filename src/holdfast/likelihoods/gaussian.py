"""Regression with normal noise: squared errors."""

import math

import torch
from torch import Tensor

from holdfast.likelihoods.elementwise import Elementwise, check_positive

STEP = 2.0**-24  # of float32's uniform numbers; half of it moves them from [0, 1) into (0, 1)


class Gaussian(Elementwise):
    """y ~ N(output, sigma^2) for each number: -log p = (output - y)^2 / (2 sigma^2).

    The constant log sigma + log(2 pi) / 2 is left out, since no parameter moves it. The Fisher information of an
    output is 1 / sigma^2, whatever the data. sigma decides what a nat is: with the default of 1, in the unit of the
    targets, the loss is half the squared error. Missing targets are NaN.

    Args:
        outputs: (items, ...), or (batch, length, ...) with a mask; on the model's graph.
        targets: of the same shape; None: drawn labels alone are asked for.
        mask: (batch, length) of the positions that are items; None: every row is one.
        sigma: the standard deviation of the noise.

    Raises:
        HoldfastError: shapes that do not fit, or a sigma that is not positive.
    """

    def __init__(
        self, outputs: Tensor, targets: Tensor | None, mask: Tensor | None = None, *, sigma: float = 1.0
    ) -> None:
        check_positive("sigma", sigma)
        super().__init__(outputs, targets, mask)
        self.sigma = sigma

    @staticmethod
    def present(targets: Tensor) -> Tensor:
        """Not NaN."""
        return ~targets.isnan()

    def loss(self) -> Tensor:
        """Sum of (output - y)^2 / (2 sigma^2)."""
        return (self.outputs - self.labels())[self.counted].square().sum() / (2 * self.sigma**2)

    def data_gradient(self) -> Tensor:
        """(output - y) / sigma^2."""
        return self._emptied((self._now() - self.labels()) / self.sigma**2)

    def noise_gradient(self, uniform: Tensor) -> Tensor:
        """-epsilon / sigma, epsilon ~ N(0, 1); finite for every float32 number in [0, 1)."""
        # 2 (u + half a step) - 1 in this order: u + half a step rounds to 1 in float32, and these are exact.
        inner = (2 * uniform.to(self._now()) - 1) + STEP
        return torch.erfinv(inner) * (-math.sqrt(2) / self.sigma)

    def information(self) -> Tensor:
        """1 / sigma^2."""
        return torch.full_like(self._now(), self.sigma**-2)

    def answers(self, top_k: int | None = None) -> tuple[Tensor, ...]:
        """The outputs of the scored rows."""
        return (self._now()[self.scored],)

    def divergence(self, answers: tuple[Tensor, ...]) -> Tensor:
        """Sum of (teacher - now)^2 / (2 sigma^2)."""
        moved = (self.outputs[self.scored] - answers[0])[self.counted[self.scored]]
        return moved.square().sum() / (2 * self.sigma**2)
