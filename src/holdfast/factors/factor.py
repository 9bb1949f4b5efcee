"""The interface of the room: a second moment M = scale * sum over rows of x x^T, (d, d), in some structure."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from holdfast.factors.rotation import Rotation
from holdfast.sparse_matrix import SparseMatrix


def accumulator_dtype(like: Tensor) -> torch.dtype:
    """Sums are float32, or float64 where the rows are; counts of indices are float64, exact up to 2^53."""
    return torch.float32 if like.is_floating_point() and like.dtype != torch.float64 else torch.float64


@cache
def _widens(device: str, dtype: torch.dtype, total: torch.dtype) -> bool:
    """Whether that kind of device multiplies numbers of 16 bits into sums of more."""
    try:
        one: Any = torch.ones(16, 16, device=device, dtype=dtype)
        return torch.mm(one, one, out_dtype=total).dtype == total
    except (NotImplementedError, RuntimeError, TypeError):
        return False


def multipliable(rows: Tensor, total: torch.dtype) -> Tensor:
    """Rows as they can be multiplied: of 16 bits where the device sums products of those in more, else wide."""
    return rows if rows.dtype == total or _widens(rows.device.type, rows.dtype, total) else rows.to(total)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left^T right, (a, b), for rows (n, a) and (n, b) of any precision.

    The product itself is never rounded to 16 bits: a second moment that is loses its positive semi-definiteness, and
    a penalty by it rewards some moves without bound.
    """
    left, right = multipliable(left, total.dtype), multipliable(right, total.dtype)
    if left.dtype == total.dtype:
        total.addmm_(left.T, right)
    else:
        total += torch.mm(left.T, right, out_dtype=total.dtype)


class Factor(ABC):
    """A symmetric positive semi-definite matrix M, (d, d), and the running sum that it is made from.

    Running sums are single tensors that add up: over batches, shards and machines.
    """

    structure: ClassVar[str]
    takes_option: ClassVar[bool] = False  # whether a number belongs to its name

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
        """How many numbers M takes in memory, and its running sum too."""

    @classmethod
    def stored(cls, width: int, option: int) -> int:
        """How many numbers M takes in a file (`holdfast.anchors.packing`)."""
        return cls.numbers(width, option)

    @staticmethod
    def turning(width: int, option: int) -> int:
        """How many numbers its `rotation` takes; 0 where there is none."""
        return 0

    @abstractmethod
    def times(self, rows: Tensor) -> Tensor:
        """rows M, (n, d) -> (n, d)."""

    @abstractmethod
    def times_sparse(self, sparse: SparseMatrix, start: int, stop: int) -> Tensor:
        """(D M)[:, start:stop], (n, stop - start), for a D, (n, d), of few entries."""

    def times_at(self, left: Tensor, at: SparseMatrix) -> Tensor:
        """(M A), (d, n), at the places of `at`, (k,), for a dense A, (d, n)."""
        return at.picked(self.times(left.T).T)

    def among(self, indices: Tensor) -> Tensor:
        """M[indices][:, indices], (k, k); an index may come twice."""
        like = self.diagonal()
        chosen = torch.zeros(len(indices), self.width, device=like.device, dtype=like.dtype)
        chosen[torch.arange(len(indices), device=like.device), indices] = 1
        return self.times(chosen)[:, indices]

    @abstractmethod
    def diagonal(self) -> Tensor:
        """The diagonal of the summed second moment, (d,), exact in every structure."""

    def rotation(self) -> Rotation | None:
        """The orthogonal matrix whose columns are M's eigenvectors; None where M's structure has none at hand."""
        return None

    def spectrum(self) -> tuple[Tensor, Rotation | None]:
        """M's eigenvalues, (d,), and the basis that they belong to; None for the coordinates themselves.

        Here by a dense decomposition, O(d^3), for structures without a basis at hand.
        """
        width = self.width
        dense = self.times(torch.eye(width, device=self.diagonal().device, dtype=self.diagonal().dtype))
        values, vectors = torch.linalg.eigh((dense + dense.T) / 2)
        return values.clamp_min_(0), Rotation(vectors.contiguous())

    def captured(self) -> float | None:
        """The share of the trace that M holds along directions of its own instead of single coordinates.

        Measured on M itself, for structures that leave directions out; None for those of which the trace says nothing.
        """
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

    def numbers(self, width: int) -> int:
        """How many numbers a factor of that width takes in memory."""
        return self.structure.numbers(width, self.option)

    def stored(self, width: int) -> int:
        """How many numbers it takes in a file."""
        return self.structure.stored(width, self.option)

    def turning(self, width: int) -> int:
        """How many numbers its eigenvectors take."""
        return self.structure.turning(width, self.option)
