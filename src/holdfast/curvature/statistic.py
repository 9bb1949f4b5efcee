"""What a curvature sums over source data, layer by layer."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from holdfast.curvature.offload import Place, beside, zeros
from holdfast.errors import HoldfastError
from holdfast.factors.amount import Amount
from holdfast.factors.diagonal import Diagonal as DiagonalFactor
from holdfast.factors.factor import Storage
from holdfast.factors.full import Full
from holdfast.rows.origin import Origin, Per, collapsed

Reads = Literal["inputs", "gradients", "pairs"]


@dataclass(frozen=True)
class LayerSize:
    """What a statistic needs to know of its layer.

    Attributes:
        out, inn: W is (out, in).
        indexed: an embedding's input rows are indices, standing for one-hot rows.
        inputs, gradients: how second moments of the two sides are summed and stored.
        chain: layers of one chain are neighbours in the model's order, where a curvature couples neighbours.
    """

    out: int
    inn: int
    indexed: bool = False
    inputs: Storage = field(default=Storage(Full))
    gradients: Storage = field(default=Storage(Full))
    chain: str = ""

    def __post_init__(self) -> None:
        if self.indexed:
            object.__setattr__(self, "inputs", Storage(DiagonalFactor))

    def weight_gradient(self, inputs: Tensor, gradients: Tensor) -> Tensor:
        """Sum over rows of g x^T, (out, in)."""
        if not self.indexed:
            return gradients.T @ inputs
        return gradients.new_zeros(self.out, self.inn).index_add_(1, inputs, gradients.T)


@dataclass(frozen=True)
class Reading:
    """How rows are read, the same for every layer.

    Attributes:
        dtype: that rows are rounded to before they are multiplied; None: as they are. Products and sums are float32
            or better.
        per: "token" takes every row as an example of its own; "sequence" sums over a sequence before squaring.
        keep: how many examples a curvature of stored samples keeps.
        seed: of which they are.
        length: rows of a sequence, for plans of what is kept of whole sequences; what is measured tells by itself.
        offload: where running sums are kept: None beside the rows, "cpu", or "disk" (files mapped into memory).
            Products are made where the rows are; on an accelerator each layer's is then moved, batch by batch.
        halves: how many sums of each kind are filled in turn, for one to be held against the other.
    """

    dtype: torch.dtype | None = None
    per: Per = "token"
    keep: int = 256
    seed: int = 0
    offload: Place | None = None
    length: int = 512
    halves: int = 1


class Statistic(ABC):
    """A sum over rows that a curvature needs of one layer; sums over shards add up.

    `reads` says which rows it takes: the layer's inputs (rows, in), the gradients of the summed loss with
    respect to its outputs (rows, out), or both, paired. Layers that read one and the same input tensor share
    the statistics that read inputs, where `shared` allows it.

    Per sequence, rows are held until `flush`: a module that is called several times in one pass is summed over
    its calls first.
    """

    reads: ClassVar[Reads]
    shared: ClassVar[bool] = True
    additive: ClassVar[bool] = True  # whether states add up number by number; where not, they meet in `merge` alone

    def __init__(self, size: LayerSize, reading: Reading, first: Any = None) -> None:
        self.size, self.reading = size, reading
        self.first = first  # the layer's curvature of the pass before, where the kind takes two
        self.rows = 0  # how many examples were added: rows, or sequences
        self.sum: Tensor | None = None
        self._held: list[tuple[tuple[Tensor, ...], Origin]] = []

    @property
    def grouped(self) -> bool:
        """Whether rows must come with their origin, padding left out."""
        return self.reading.per == "sequence"

    def add(self, *rows: Tensor, origin: Origin | None = None) -> None:
        """Add the contribution of some rows."""
        rows = tuple(self._cast(r) for r in rows)
        if self.sum is None:
            self.sum = self._empty(rows[-1])
        if self.reading.per == "token":
            self.rows += rows[0].shape[0]
            with beside(rows[-1], self.sum, self.zero) as total:
                self.accumulate(total, *rows)
            return
        self._held.append((rows, origin or Origin([1] * len(rows[0]))))
        if self.reads == "inputs":  # there is no backward pass to wait for
            self.flush()

    def flush(self) -> None:
        """Every call of this pass is in."""
        if not self._held:
            return
        calls = [tuple(origin.split(r) for r in rows) for rows, origin in self._held]  # [call][side][sequence]
        sides = len(calls[0])
        count = len(calls[0][0])
        sequences = [
            tuple(torch.cat([call[side][number] for call in calls]) for side in range(sides))
            for number in range(count)
        ]
        sequences = [one for one in sequences if len(one[0])]
        self._held.clear()
        if sequences:
            self.rows += len(sequences)
            assert self.sum is not None
            with beside(sequences[0][-1], self.sum, self.zero) as total:
                self.accumulate_sequences(total, sequences)

    def _empty(self, like: Tensor) -> Tensor:
        """The empty sum, where it is kept."""
        place = self.reading.offload
        return self.zero(like) if place is None else zeros(self.zero(like.to("meta")), place)

    def _cast(self, rows: Tensor) -> Tensor:
        if not rows.is_floating_point():
            return rows
        if self.reading.dtype is not None:
            return rows.to(self.reading.dtype)
        return rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows

    @abstractmethod
    def zero(self, like: Tensor) -> Tensor:
        """The empty sum, on the rows' device."""

    @abstractmethod
    def accumulate(self, total: Tensor, *rows: Tensor) -> None:
        """Add rows to `total` in place."""

    def accumulate_sequences(self, total: Tensor, sequences: Sequence[tuple[Tensor, ...]]) -> None:
        """Add sequences of rows to `total` in place: by their mean input and their summed gradient ("reduce").

        The approximation of arXiv 2311.00636 sec. 3.2; statistics that can sum g x^T over a sequence do so instead.
        """
        if not sequences[0][0].is_floating_point():
            raise HoldfastError(
                "per='sequence' takes the mean of each sequence's inputs, and an embedding's inputs are indices",
                remedy="use per='token', curvature='diagonal', or leave embeddings out of the targets",
            )
        inputs_first = self.reads != "gradients"
        rows = [
            collapsed([one[side] for one in sequences], mean=inputs_first and side == 0)
            for side in range(len(sequences[0]))
        ]
        self.accumulate(total, *rows)

    def result(self) -> Tensor:
        """The finished sum; raises RuntimeError when no row was ever seen."""
        if self.sum is None:
            raise RuntimeError("no row was added")
        return self.sum

    @classmethod
    def amount(cls, size: LayerSize, reading: Reading) -> Amount:
        """How many numbers it takes: as many as its empty sum holds."""
        count = cls(size, reading).zero(torch.empty(1, size.out, device="meta")).numel()
        return Amount(count * reading.halves, count, count, shared=cls.reads == "inputs" and cls.shared)

    def release(self) -> None:
        """Let go of the sum: what it was for has been made of it."""
        self.sum = None

    def state(self) -> dict[str, Tensor]:
        """All that was summed, for files and other ranks."""
        empty = {} if self.sum is None else {"sum": self.sum}
        return {"rows": torch.tensor([self.rows]), **empty}

    def merge(self, state: dict[str, Tensor]) -> None:
        """Add another statistic's state: what it summed on data of its own."""
        self.rows += int(state["rows"])
        if "sum" in state:
            other = state["sum"]
            if self.sum is None and self.reading.offload is None:
                self.sum = other.clone()
            else:
                self.sum = self._empty(other) if self.sum is None else self.sum
                self.sum += other.to(self.sum)

    @classmethod
    def restored(cls, size: LayerSize, reading: Reading, state: dict[str, Tensor], first: Any = None) -> Self:
        """A statistic in that state."""
        made = cls(size, reading, first)
        made.merge(state)
        return made
