"""Low-rank shift: what LoRA trains, never materialised."""

import torch
from torch import Tensor

from holdfast.shifts.shift import Form, Shift, mapped, precise


class LowRank(Shift):
    """D = scale * up @ down, with up (out, r) and down (r, in) (LoRA, arXiv 2106.09685 eq. 3)."""

    structure = "low-rank"

    def __init__(self, up: Tensor, down: Tensor, scale: float = 1.0) -> None:
        self.up, self.down, self.scale = precise(up), precise(down), scale

    @classmethod
    def stacked(cls, pieces: "list[LowRank]") -> "LowRank":
        """The sum of several low-rank shifts as one of their total rank; exact.

        Several active adapters, or an adapter and the negative of its non-zero start (PiSSA: s B A - s B0 A0).
        """
        if len(pieces) == 1:
            return pieces[0]
        ups = torch.cat([piece.scale * piece.up for piece in pieces], dim=1)
        return cls(ups, torch.cat([piece.down for piece in pieces], dim=0))

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return self.up, self.down

    def products(self, curvature: Form) -> tuple[Tensor, ...]:
        for_up, for_down = curvature.thin(self.scale * self.up, self.down)
        return self.scale * for_up, for_down

    def projected(self, inputs: Tensor, gradients: Tensor) -> Tensor:
        """scale * sum over t of (up^T g_nt) . (down x_nt): of D, nothing is formed."""
        return self.scale * (mapped(self.down, inputs) * (gradients @ self.up)).sum(dim=(1, 2))

    def between(self, other: Shift, gradients: Tensor, inputs: Tensor) -> Tensor:
        """scale * tr((up^T G) D' (down S)^T): with another low-rank D', products of its rank only."""
        return self.scale * other.projected((self.down @ inputs)[None], (self.up.T @ gradients)[None])[0]

    def scaled(self, factor: Tensor) -> "LowRank":
        return LowRank(factor * self.up, self.down, self.scale)

    def matrix(self) -> Tensor:
        return self.scale * (self.up @ self.down)

    @property
    def shape(self) -> tuple[int, int]:
        return self.up.shape[0], self.down.shape[1]
