"""Orthogonal bases, and rows in their coordinates."""

from typing import ClassVar

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


class Rotation:
    """Rows in the coordinates of an orthogonal basis, (n, d) -> (n, d).

    Layers that read the same tensor ask one after another: the last answer is kept, of all rotations together.
    """

    _latest: ClassVar["Rotation | None"] = None  # who keeps an answer

    def __init__(self, basis: Tensor) -> None:
        self.basis = basis  # see `turned`
        self._key: tuple[object, ...] = ()
        self._kept: tuple[Tensor, Tensor] | None = None  # the rows too: nobody else may take their address

    def of(self, rows: Tensor) -> Tensor:
        """The rows' coordinates."""
        if Rotation._latest is not self:
            if Rotation._latest is not None:
                Rotation._latest.forget()
            Rotation._latest = self
        key = (rows.data_ptr(), rows.shape, rows.stride(), rows.dtype, rows._version)
        if self._kept is None or key != self._key:
            self._key, self._kept = key, (rows, turned(rows, self.basis))
        return self._kept[1]

    def forget(self) -> None:
        """Let go of the last answer."""
        self._key, self._kept = (), None
        if Rotation._latest is self:
            Rotation._latest = None
