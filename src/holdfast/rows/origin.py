"""Rows on their way from a layer to what sums them: who takes them, and which sequence each belongs to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

Per = Literal["token", "sequence"]
PER: tuple[Per, ...] = ("token", "sequence")


@dataclass(frozen=True)
class Origin:
    """The sequences of some rows, which come in the order of their sequences.

    Attributes:
        lengths: rows of each sequence of the batch; padding and what no scored item depends on are left out.
        keys: what stands in for each sequence's input, so that what is drawn for it does not depend on the batch;
            None where the batch names no sequences.
        draw: the number of the backward pass over the batch.
        batch: the number of the batch.
    """

    lengths: list[int]
    keys: list[int] | None = None
    draw: int = 0
    batch: int = 0

    def split(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The rows of each sequence."""
        return rows.split(self.lengths)


class RowSink(Protocol):
    """What a layer's rows are handed to; `holdfast.curvature.statistic.Statistic` is one."""

    @property
    def reads(self) -> str:
        """One of "inputs", "gradients" and "pairs"."""
        ...

    @property
    def shared(self) -> bool:
        """Whether layers that are given the same tensor may share it."""
        ...

    @property
    def grouped(self) -> bool:
        """Whether it asks which sequence each row is of; rows that reach no scored item are then left out."""
        ...

    def add(self, *rows: Tensor, origin: Origin | None = None) -> None:
        """Add the contribution of some rows."""
        ...

    def flush(self) -> None:
        """Every call of this pass is in."""
        ...


def collapsed(sequences: Sequence[Tensor], *, mean: bool) -> Tensor:
    """One row for each sequence, (rows, d) each -> (sequences, d): their mean or their sum."""
    return torch.stack([one.mean(dim=0) if mean else one.sum(dim=0) for one in sequences])
