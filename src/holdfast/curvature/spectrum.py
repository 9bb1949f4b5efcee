"""A curvature in its own eigenbasis: a price for each coordinate, and nothing between coordinates."""

from dataclasses import dataclass

from torch import Tensor

from holdfast.factors.rotation import turned, turned_back


@dataclass(frozen=True)
class Spectrum:
    """C D = U_G (L * (U_G^T D U_S)) U_S^T, whatever structure C is stored in.

    Attributes:
        values: L, (out, in), at least 0; a view where it is an outer product or a constant.
        inputs: U_S, (in, in) or its blocks (`holdfast.factors.rotation`); None: the identity.
        gradients: U_G, (out, out) likewise.
    """

    values: Tensor
    inputs: Tensor | None = None
    gradients: Tensor | None = None

    def coordinates(self, delta: Tensor) -> Tensor:
        """U_G^T D U_S, (out, in)."""
        by_in = delta if self.inputs is None else turned(delta, self.inputs)
        return by_in if self.gradients is None else turned(by_in.T, self.gradients).T

    def back(self, coordinates: Tensor) -> Tensor:
        """The inverse of `coordinates`."""
        by_in = coordinates if self.gradients is None else turned_back(coordinates.T, self.gradients).T
        return by_in if self.inputs is None else turned_back(by_in, self.inputs)
