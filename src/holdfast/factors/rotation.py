"""Orthogonal bases, and rows in their coordinates."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


def turned(rows: Tensor, basis: Tensor) -> Tensor:
    """Rows in the coordinates of a basis, (n, d) -> (n, d).

    Args:
        rows: (n, d).
        basis: (d, d), a column for each new coordinate; or (blocks, N, N), one such matrix for each N numbers of a
            row, the last of which may reach past the end of the row with an identity.
    """
    return rows @ basis.to(rows) if basis.dim() == 2 else by_blocks(rows, basis.to(rows))


def turned_back(rows: Tensor, basis: Tensor) -> Tensor:
    """The inverse of `turned`."""
    return turned(rows, basis.mT)


def by_blocks(rows: Tensor, blocks: Tensor) -> Tensor:
    """Rows times a block-diagonal matrix, (n, d), (blocks, N, N) -> (n, d); what reaches past a row's end is cut."""
    count, size, _ = blocks.shape
    width = rows.shape[1]
    apart = F.pad(rows, (0, count * size - width)).unflatten(1, (count, size)).transpose(0, 1)  # (blocks, n, N)
    return (apart @ blocks).transpose(0, 1).flatten(1)[:, :width]


@dataclass(frozen=True)
class Rotation:
    """Into the coordinates of an orthogonal basis (see `turned`)."""

    basis: Tensor

    def of(self, rows: Tensor) -> Tensor:
        """The rows' coordinates, (n, d) -> (n, d)."""
        return turned(rows, self.basis)
