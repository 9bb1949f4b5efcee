"""Which rows of a batch are used: those that reach a scored item, or a share of them drawn at random."""

import math
import zlib

import torch
from torch import Tensor

from holdfast.rows.origin import Origin


class RowChoice:
    """The rows to use of every tensor of a batch, the same for all with as many rows.

    What is drawn for a batch depends on its number alone, not on what was drawn before it or in which process.

    Attributes:
        number: of the batch.
        positions: (batch, length) boolean mask of the positions that count; None: all do.
        keys: what stands in for each sequence's input.
    """

    def __init__(self, fraction: float, seed: int) -> None:
        self.fraction, self.seed, self.number = fraction, seed, 0
        self.positions: Tensor | None = None
        self.keys: list[int] | None = None
        self._generator = torch.Generator()
        self._drawn: dict[tuple[int, bool, bool], Tensor | None] = {}  # row numbers used in this batch

    def begin(self, number: int, positions: Tensor | None, keys: list[int] | None) -> None:
        """The batch of that number follows."""
        self.number, self.positions, self.keys = number, positions, keys
        # The generator uses 32 bits of its seed.
        self._generator.manual_seed(zlib.crc32(f"{self.seed} {number}".encode()))

    def rows(self, count: int, like: Tensor) -> Tensor | None:
        """The numbers of the rows to use out of `count`, read off a tensor `like` (batch, ...); None for all."""
        valid = row_mask(self.positions, like, count)
        key = (count, valid is not None, _by_position(self.positions, like, count))
        if key not in self._drawn:
            self._drawn[key] = self._draw(count, valid)
        drawn = self._drawn[key]
        return None if drawn is None else drawn.to(like.device)

    def _draw(self, rows: int, valid: Tensor | None) -> Tensor | None:
        pool = torch.arange(rows) if valid is None else valid.nonzero().squeeze(1)
        if self.fraction >= 1:
            return None if len(pool) == rows else pool
        order = torch.randperm(len(pool), generator=self._generator)[: math.ceil(self.fraction * len(pool))]
        return pool.cpu()[order].sort().values.to(pool.device)

    def scale(self, count: int, like: Tensor) -> float:
        """What makes the chosen rows' squares an unbiased sum of all rows' squares."""
        valid, chosen = row_mask(self.positions, like, count), self.rows(count, like)
        whole = count if valid is None else int(valid.sum())
        return 1.0 if chosen is None else (whole / max(len(chosen), 1)) ** 0.5

    def origin(self, count: int, like: Tensor, draw: int) -> Origin:
        """The sequences that the chosen rows belong to; without a mask, a sequence is what has an index in `like`."""
        by_position = _by_position(self.positions, like, count)
        batch = len(self.positions) if by_position and self.positions is not None else like.shape[0]
        sequence = torch.arange(batch).repeat_interleave(count // batch)
        chosen = self.rows(count, like)
        if chosen is not None:
            sequence = sequence[chosen.cpu()]
        lengths = torch.bincount(sequence, minlength=batch).tolist()
        keys = self.keys if self.keys is not None and len(self.keys) == batch else None
        return Origin(lengths, keys, draw, self.number)

    def clear(self) -> None:
        """Forget the batch."""
        self._drawn.clear()


def _by_position(mask: Tensor | None, like: Tensor, rows: int) -> bool:
    """Whether each row is one of the mask's positions."""
    return mask is not None and mask.numel() == rows and (like.shape[:2] == mask.shape or like.dim() <= 2)


def row_mask(mask: Tensor | None, like: Tensor, rows: int) -> Tensor | None:
    """The mask of positions as a mask of rows; by whole sequences where rows are not positions; else None."""
    if mask is None:
        return None
    if _by_position(mask, like, rows):
        return mask.reshape(-1)
    together = like.shape[0] == len(mask) and rows % len(mask) == 0  # (batch, ...): frames, patches, pooled features
    return mask.any(dim=1).repeat_interleave(rows // len(mask)) if together else None
