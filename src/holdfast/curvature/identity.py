"""Identity curvature: every move costs its squared length (L2 towards the start, L2-SP)."""

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor

from holdfast.curvature.curvature import Curvature
from holdfast.curvature.spectrum import Spectrum
from holdfast.curvature.statistic import LayerSize, Statistic


class Identity(Curvature):
    """C = I, so <D, C D> = ||D||_F^2, the L2-SP penalty (arXiv 1802.01483, eq. 2; arXiv 2402.12220).

    Needs no source data and therefore predicts nothing: 1/2 ||D||^2 is not in nats.
    For D = up @ down the norm is sum((up^T up) * (down down^T)): r x r products only, exact.
    """

    kind = "identity"
    paper = "L2-SP, arXiv 1802.01483 eq. 2"
    forecasts = False

    def __init__(self, size: Tensor, scale: Tensor | None = None) -> None:
        self.size = size  # (2,): out, in; a tensor so that it is stored like any other curvature
        self.scale = size.new_ones(1, dtype=torch.float64) if scale is None else scale  # (1,): above 1 where damped
        self._factor = float(self.scale)

    @classmethod
    def of_shape(cls, out: int, inn: int) -> Self:
        """The identity on (out, in) matrices."""
        return cls(torch.tensor([out, inn], dtype=torch.float32))

    @classmethod
    def statistics(cls) -> dict[str, type[Statistic]]:
        return {}

    @classmethod
    def from_sums(cls, size: LayerSize, sums: Mapping[str, Statistic], items: int) -> Self:
        return cls.of_shape(size.out, size.inn)

    def apply(self, delta: Tensor) -> Tensor:
        return delta * self._factor

    def thin(self, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        return up @ (down @ down.T * self._factor), (up.T @ up * self._factor) @ down

    def sparse(self, values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        return values * self._factor

    def spectrum(self) -> Spectrum:
        return Spectrum(self.scale.reshape(1, 1).expand(self.shape))

    def damped(self, damping: float) -> "Identity":
        """(1 + eta) I: its mean eigenvalue is 1, so damping is strength by another name."""
        return Identity(self.size, self.scale * (1 + damping))

    @classmethod
    def merged(cls, parts: Sequence[Self], shares: Sequence[float]) -> Self:
        scales = [share * part.scale for part, share in zip(parts, shares, strict=True)]
        return cls(parts[0].size, torch.stack(scales).sum(dim=0))

    def tensors(self) -> dict[str, Tensor]:
        return {"size": self.size, "scale": self.scale}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Self:
        return cls(tensors["size"], tensors["scale"])

    @property
    def shape(self) -> tuple[int, int]:
        out, inn = (int(n) for n in self.size.tolist())
        return out, inn
