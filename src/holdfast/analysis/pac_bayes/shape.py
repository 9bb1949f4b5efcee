"""The covariance that prior and posterior share up to their scales: the identity, or that of a Laplace prior.

A shape is a positive definite M on the trained tensors, block-diagonal over tensors; Gaussians are N(mu, s^2 M).
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from holdfast.curvature.curvature import Curvature
from holdfast.curvature.spectrum import Spectrum
from holdfast.errors import HoldfastError
from holdfast.shifts.shift import precise

Tensors = Mapping[str, Tensor]
DAMPING = 0.1  # of a Laplace prior, in mean eigenvalues: flat directions get 1 / DAMPING of the isotropic variance


class Shape(Protocol):
    """M, as what a certificate needs of it."""

    def noise(self, name: str, like: Tensor, generator: torch.Generator) -> Tensor:
        """M^(1/2) e with e standard normal, of the tensor's own shape."""
        ...

    def distance(self, name: str, shift: Tensor) -> float:
        """shift^T M^-1 shift."""
        ...


class Isotropic:
    """M = I."""

    def noise(self, name: str, like: Tensor, generator: torch.Generator) -> Tensor:
        """Standard normal."""
        drawn = torch.randn(like.shape, generator=generator, dtype=torch.float32)
        return drawn.to(device=like.device, dtype=like.dtype)

    def distance(self, name: str, shift: Tensor) -> float:
        """The squared length."""
        return float(shift.double().square().sum())


class Laplace:
    """M = (C / c + rho I)^-1: the covariance of a Laplace approximation at the anchor, up to its scale.

    C is the curvature of the mean loss per item (an anchor's), c its mean eigenvalue over all tensors together, rho
    the damping. With the scale s, the precision is n' C + lambda I with n' = 1 / (s^2 c) and lambda = rho / s^2: what
    n' items of Gaussian likelihood and a weight decay of lambda would leave. KL(Q || P) of equal scales is then
    1/2 [n' <D, C D> + lambda |D|^2]: the penalty of an anchor itself. Curvature that is Kronecker-factored or diagonal
    is used in its eigenbasis, exactly; tensors without a curvature have M = I / (1 + rho).

    Args:
        curvatures: name of a tensor -> its curvature.
        matrices: name -> the view of such a tensor as the curvature's matrix (out, in).
        damping: rho.

    Raises:
        HoldfastError: a structure without an eigenbasis smaller than C itself, or C = 0.
    """

    def __init__(
        self,
        curvatures: Mapping[str, Curvature],
        matrices: Mapping[str, Callable[[Tensor], Tensor]],
        damping: float = DAMPING,
    ) -> None:
        spectra = {name: curvature.spectrum() for name, curvature in curvatures.items()}
        missing = [name for name, spectrum in spectra.items() if spectrum is None]
        if missing:
            raise HoldfastError(
                f"a prior can't be drawn from this curvature: that of {missing[0]} has no eigenbasis of its own",
                remedy="use diagonal, kronecker or eigen",
            )
        self.matrices, self.damping = matrices, damping
        self.spectra: dict[str, Spectrum] = {name: s for name, s in spectra.items() if s is not None}
        sums = [float(s.values.double().sum()) for s in self.spectra.values()]
        self.mean = sum(sums) / max(sum(s.values.numel() for s in self.spectra.values()), 1)
        if self.mean <= 0:
            raise HoldfastError("the curvature is zero, so it gives a prior no shape", remedy="use the identity")

    def noise(self, name: str, like: Tensor, generator: torch.Generator) -> Tensor:
        """Standard normal in the eigenbasis, divided by the roots of its eigenvalues, and turned back."""
        made = torch.empty_like(like)
        if name not in self.spectra:
            return Isotropic().noise(name, like, generator) / (1 + self.damping) ** 0.5
        spectrum, matrix = self.spectra[name], self.matrices[name](made)
        drawn = torch.randn(matrix.shape, generator=generator, dtype=torch.float32).to(spectrum.values)
        matrix.copy_(spectrum.back(drawn * self._precision(spectrum).rsqrt()))
        return made

    def distance(self, name: str, shift: Tensor) -> float:
        """<D, (C / c + rho) D>."""
        if name not in self.spectra:
            return (1 + self.damping) * Isotropic().distance(name, shift)
        spectrum = self.spectra[name]
        coordinates = spectrum.coordinates(self.matrices[name](shift).to(spectrum.values))
        return float((coordinates.square() * self._precision(spectrum)).double().sum())

    def _precision(self, spectrum: Spectrum) -> Tensor:
        return spectrum.values.clamp_min(0) / self.mean + self.damping


def distance(shape: Shape, one: Tensors, other: Tensors) -> float:
    """(a - b)^T M^-1 (a - b) over all tensors."""
    return sum(shape.distance(name, precise(one[name]) - precise(other[name])) for name in one)
