"""Sums over rows of two neighbouring layers, matched one to one as they come out of the model's passes."""

from collections import deque
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from holdfast.curvature.offload import beside, zeros
from holdfast.curvature.statistic import LayerSize, Reading, Statistic
from holdfast.factors.factor import accumulator_dtype, add_product
from holdfast.factors.full import Full
from holdfast.rows.origin import Origin

FIRST, SECOND = 0, 1  # sides of a link


class Link:
    """Sum over matched rows of a b^T, a of one layer and b of the next: (wide of a, wide of b).

    Rows are held, as a copy, until the other layer's come, call by call in their order. Calls of one pass match where
    both layers have as many, with as many rows of each sequence. Where they once do not, the layers are not linked:
    there is no sum at all.
    """

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.total: Tensor | None = None
        self.unmatched = 0  # calls without a partner
        self._pass: tuple[int, int] | None = None
        self._waiting: tuple[deque[tuple[Tensor, Sequence[int]]], ...] = (deque(), deque())

    def offer(self, side: int, rows: Tensor, origin: Origin) -> None:
        """The rows of one call; or one for each sequence."""
        if (origin.batch, origin.draw) != self._pass:
            self.settle()
            self._pass = origin.batch, origin.draw
        by_sequence = self.reading.per == "sequence"
        lengths = [min(length, 1) for length in origin.lengths] if by_sequence else origin.lengths
        if self.unmatched:
            return
        if not self._waiting[1 - side]:
            self._waiting[side].append((rows.clone(), lengths))  # what it is a view of may be changed in place
            return
        other, theirs = self._waiting[1 - side].popleft()
        if lengths == theirs and len(rows) == len(other):
            self._add(*((other, rows) if side == SECOND else (rows, other)))
        else:
            self.part()

    def settle(self) -> None:
        """The pass is over: whoever still waits has no partner."""
        if any(self._waiting):
            self.part()

    def part(self, calls: int = 1) -> None:
        """So many calls have no partner."""
        if not calls:
            return
        self.unmatched += calls
        self.total = None
        for side in self._waiting:
            side.clear()

    def add_total(self, total: Tensor) -> None:
        """What another process summed."""
        if not self.unmatched:
            self.total = total.clone() if self.total is None else self.total.add_(total.to(self.total))

    def _add(self, first: Tensor, second: Tensor) -> None:
        second = second.to(first.device)
        if self.total is None:
            like = first.new_empty(first.shape[1], second.shape[1], dtype=accumulator_dtype(first), device="meta")
            place = self.reading.offload
            self.total = torch.zeros_like(like, device=first.device) if place is None else zeros(like, place)
        total = self.total
        with beside(first, total, lambda rows: torch.zeros_like(total, device=rows.device)) as part:
            add_product(part, first, second)


class Half(Statistic):
    """A layer's rows on their way to the link with a neighbour, which holds the sum."""

    shared = False
    additive = False
    side: ClassVar[int]

    def __init__(self, size: LayerSize, reading: Reading, first: Any = None, link: Link | None = None) -> None:
        super().__init__(size, reading, first)
        self.link = link  # None: there is no neighbour on this side
        self._origin = Origin([])

    @property
    def grouped(self) -> bool:
        return self.link is not None

    def zero(self, like: Tensor) -> Tensor:
        return like.new_zeros(0)

    def add(self, *rows: Tensor, origin: Origin | None = None) -> None:
        self.sum = self.zero(rows[0])
        if self.link is not None:
            self._origin = origin or Origin([1] * len(rows[0]))
            super().add(*rows, origin=self._origin)

    def accumulate(self, total: Tensor, *rows: Tensor) -> None:
        """Offer rows to the link."""
        if self.link is not None:
            self.link.offer(self.side, rows[0], self._origin)


class Next(Half):
    """Sum over rows of this layer's row times the next layer's: (wide, next's wide).

    Attributes:
        place: of the layer in the model's order; -1 where nobody said.
    """

    side = FIRST

    def __init__(self, size: LayerSize, reading: Reading, first: Any = None, link: Link | None = None) -> None:
        super().__init__(size, reading, first, link)
        self.place = -1

    def matched(self) -> Tensor | None:
        """The sum, where there is a next layer and every row found its partner."""
        if self.link is None:
            return None
        self.link.settle()
        return self.link.total

    def release(self) -> None:
        super().release()
        self.link = None

    def state(self) -> dict[str, Tensor]:
        total = self.matched()
        unmatched = 0 if self.link is None else self.link.unmatched
        facts = {"place": torch.tensor(self.place), "unmatched": torch.tensor(unmatched)}
        return super().state() | facts | ({} if total is None else {"total": total})

    def merge(self, state: dict[str, Tensor]) -> None:
        self.rows += int(state["rows"])
        self.sum = state.get("sum", self.sum)
        self.place = max(self.place, int(state["place"]))
        if self.link is None:
            self.link = Link(self.reading)
        self.link.part(int(state["unmatched"]))
        if "total" in state:
            self.link.add_total(state["total"])


class NextInputs(Next):
    """Sum of x x'^T, (in, in') with the next layer's inputs x'."""

    reads = "inputs"


class NextGradients(Next):
    """Sum of g g'^T, (out, out') with the next layer's gradients g'."""

    reads = "gradients"


class InputsBefore(Half):
    """Hands a layer's inputs to the layer before it."""

    reads, side = "inputs", SECOND


class GradientsBefore(Half):
    """Hands a layer's gradients to the layer before it."""

    reads, side = "gradients", SECOND


def linkable(size: LayerSize) -> bool:
    """Whether a layer's own factors are whole, so that blocks beside them keep the whole positive."""
    return size.inputs.structure is size.gradients.structure is Full  # an embedding's inputs never are
