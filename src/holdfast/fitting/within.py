"""A curvature between the entries of a sparse shift alone, as far as filtering that shift needs it."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from holdfast.curvature.curvature import Curvature, scattered
from holdfast.shifts.sparse import Sparse

STEPS = 48  # at most: how many directions are kept for each layer


@dataclass(frozen=True)
class Within:
    """C_II, (k, k), in the Krylov space of the shift v: with Q of orthonormal columns v/|v|, ..., Q^T C_II Q = T.

    Lanczos, with full reorthogonalisation. With T = U diag(L) U^T, (w I + mu C_II)^-1 w v is Q U (d / (1 + mu/w L))
    for d = U^T Q^T v: as many steps of conjugate gradients, for every mu at once. Exact where the space is all that
    C_II can make of v, after at most k steps.

    Attributes:
        values: L, (m,), at least 0.
        basis: Q U, (k, m).
        rows, columns: (k,) each, places of the entries.
        shape: (out, in).
    """

    values: Tensor
    basis: Tensor
    rows: Tensor
    columns: Tensor
    shape: tuple[int, int]

    @classmethod
    def of(cls, curvature: Curvature, shift: Sparse) -> Self:
        """In the space of a shift as it stands."""
        values, rows, columns = shift.values.detach(), shift.rows, shift.columns
        length = values.norm()
        if not length:
            return cls(values.new_zeros(0), values.new_zeros(len(values), 0), rows, columns, shift.shape)
        found, diagonal = [values / length], list[Tensor]()
        beside: list[Tensor] = []
        rounding = 8 * torch.finfo(values.dtype).eps
        while True:
            image = curvature.sparse(found[-1], rows, columns)
            diagonal.append(found[-1] @ image)
            space = torch.stack(found, dim=1)  # (k, so many)
            for _ in range(2):  # once leaves what rounding left of the first time
                image = image - space @ (space.T @ image)
            rest = image.norm()
            largest = torch.stack([*diagonal, *beside]).abs().max()
            if len(found) == min(STEPS, len(values)) or rest <= rounding * len(found) * largest:
                break
            beside.append(rest)
            found.append(image / rest)
        form = torch.diag(torch.stack(diagonal))
        if beside:
            off = torch.stack(beside)
            form = form + torch.diag(off, 1) + torch.diag(off, -1)
        prices, turn = torch.linalg.eigh(form)
        return cls(prices.clamp_min(0), space @ turn, rows, columns, shift.shape)

    def coordinates(self, delta: Tensor) -> Tensor:
        """d, (m,), of a D, (out, in), that lies in the space."""
        return delta[self.rows, self.columns] @ self.basis

    def back(self, coordinates: Tensor) -> Tensor:
        """The inverse of `coordinates`, (out, in)."""
        return scattered(self.basis @ coordinates, self.rows, self.columns, self.shape)
