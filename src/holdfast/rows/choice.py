"""Which rows of a batch are used: those that reach a scored item, or a share of them drawn at random."""

import math
import warnings
import zlib

import torch
from torch import Tensor

from holdfast.errors import HoldfastError
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
        self._warned = False
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

    def origin(self, count: int, like: Tensor, draw: int, layer: str = "") -> Origin:
        """The sequences that the chosen rows belong to; without a mask, a sequence is what has an index in `like`.

        Args:
            count: of all rows, chosen or not.
            like: what they were read off, (batch, ...).
            draw: the number of the backward pass over the batch.
            layer: whose rows they are, for the error.

        Raises:
            HoldfastError: nothing tells which sequences of the batch the rows belong to.
        """
        mask = self.positions
        if mask is not None and row_mask(mask, like, count) is None:
            raise _unplaced(layer, count, mask)
        batch = like.shape[0] if mask is None else len(mask)
        sequence = torch.arange(batch).repeat_interleave(count // max(batch, 1))
        chosen = self.rows(count, like)
        if chosen is not None:
            sequence = sequence[chosen.cpu()]
        lengths = torch.bincount(sequence, minlength=batch).tolist()
        keys = self.keys if self.keys is not None and len(self.keys) == batch else None
        return Origin(lengths, keys, draw, self.number)

    def warn_of_padding(self, count: int, like: Tensor, layer: str) -> None:
        """Warn once of rows that are summed whatever they stand for, though some positions of the batch do not count.

        A batch of one sequence tells whose rows they are, and still not which positions.
        """
        mask = self.positions
        if self._warned or mask is None or _by_position(mask, like, count) or _by_sequence(mask, like, count):
            return
        if mask.all():
            return
        self._warned = True
        warnings.warn(
            f"layer {layer!r} was given {count} rows that are not the batch's positions, as experts of a mixture are: "
            "padding, and whatever else no scored item depends on, is in the second moment of its inputs; batches "
            "without padding leave it out",
            stacklevel=2,
        )

    def clear(self) -> None:
        """Forget the batch."""
        self._drawn.clear()


def _by_position(mask: Tensor | None, like: Tensor, rows: int) -> bool:
    """Whether each row is one of the mask's positions."""
    return mask is not None and mask.numel() == rows and (like.shape[:2] == mask.shape or like.dim() <= 2)


def _by_sequence(mask: Tensor, like: Tensor, rows: int) -> bool:
    """Whether each sequence has as many rows, (batch, ...): frames, patches, pooled features.

    As many routed rows as there are sequences pass for pooled features; another batch, with another number, shows it.
    """
    return like.shape[0] == len(mask) and rows % len(mask) == 0


def row_mask(mask: Tensor | None, like: Tensor, rows: int) -> Tensor | None:
    """The mask of positions as a mask of rows; by whole sequences where rows are not positions; None: not known."""
    if mask is None:
        return None
    if _by_position(mask, like, rows):
        return mask.reshape(-1)
    if len(mask) == 1 or _by_sequence(mask, like, rows):  # all rows of a batch of one are that one's
        return mask.any(dim=1).repeat_interleave(rows // len(mask))
    return None


def _unplaced(layer: str, rows: int, mask: Tensor) -> HoldfastError:
    return HoldfastError(
        f"layer {layer!r} has {rows} rows in a batch of {len(mask)} sequences of {mask[0].numel()} positions, and "
        "nothing tells which sequence each row is of",
        wanted="rows that are the batch's positions, or tensors (batch, ...) with as many rows for each sequence",
        causes=[
            "an expert of a mixture, which is given the positions that are routed to it",
            "an embedding of positions that all sequences share",
            "patches or segments of several sequences in one row of the batch",
        ],
        remedy="pass batches of one sequence each, leave this layer out of the targets, or use per='token' with a "
        "curvature that neither keeps examples nor couples layers, such as 'kronecker'",
    )
