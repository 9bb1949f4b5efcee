"""The interface of the room: a second moment M = scale * sum over rows of x x^T, (d, d), in some structure."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor


def accumulator_dtype(like: Tensor) -> torch.dtype:
    """Sums are float32, or float64 where the rows are; counts of indices are float64, exact up to 2^53."""
    return torch.float32 if like.is_floating_point() and like.dtype != torch.float64 else torch.float64


class Factor(ABC):
    """A symmetric positive semi-definite matrix M, (d, d), and the running sum that it is made from.

    Running sums are single tensors that add up: over batches, shards and machines.
    """

    structure: ClassVar[str]

    @classmethod
    @abstractmethod
    def zero(cls, width: int, option: int, like: Tensor) -> Tensor:
        """The empty running sum for rows of `width` numbers, on the device of `like`."""

    @classmethod
    @abstractmethod
    def accumulate(cls, total: Tensor, rows: Tensor, option: int) -> None:
        """Add rows, (n, d), or indices of one-hot rows, (n,), to the running sum in place."""

    @classmethod
    @abstractmethod
    def from_sum(cls, total: Tensor, scale: float, option: int) -> Self:
        """M from a running sum, which is left as it was."""

    @staticmethod
    @abstractmethod
    def numbers(width: int, option: int) -> int:
        """How many numbers M takes in memory."""

    @abstractmethod
    def times(self, rows: Tensor) -> Tensor:
        """rows M, (n, d) -> (n, d)."""

    @abstractmethod
    def diagonal(self) -> Tensor:
        """The diagonal of M, (d,), exact in every structure."""

    def rotation(self) -> "Rotation | None":
        """The orthogonal matrix whose columns are M's eigenvectors; None where M's structure has none at hand."""
        return None

    @classmethod
    @abstractmethod
    def merged(cls, parts: Sequence[Self], shares: Sequence[float]) -> Self:
        """The sum of the parts, each times its share."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What is stored; the names tell the structure."""

    @classmethod
    @abstractmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Self:
        """The inverse of `tensors`."""

    @property
    def width(self) -> int:
        """d."""
        return self.diagonal().shape[0]


@dataclass(frozen=True)
class Storage:
    """A structure with its option: full, diagonal, blocks of so many rows, so high a rank."""

    structure: type[Factor]
    option: int = 0

    @property
    def name(self) -> str:
        """As users write it: "full", "low-rank:256"."""
        return f"{self.structure.structure}:{self.option}" if self.option else self.structure.structure


class Rotation:
    """Rows in the coordinates of an orthogonal basis, (n, d) -> (n, d); the last answer is kept.

    Layers that read the same tensor ask one after another.
    """

    def __init__(self, basis: Tensor) -> None:
        self.basis = basis  # (d, d), a column for each new coordinate
        self._key: tuple[object, ...] = ()
        self._kept: tuple[Tensor, Tensor] | None = None  # the rows too: nobody else may take their address

    def of(self, rows: Tensor) -> Tensor:
        """rows @ basis."""
        key = (rows.data_ptr(), rows.shape, rows.stride(), rows.dtype, rows._version)
        if self._kept is None or key != self._key:
            self._key, self._kept = key, (rows, rows @ self.basis.to(rows))
        return self._kept[1]

    def forget(self) -> None:
        """Let go of the last answer."""
        self._key, self._kept = (), None
