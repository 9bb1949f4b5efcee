"""The interface of the room: what a move of one layer's weight costs.

A curvature is a symmetric positive semi-definite map C on matrices of the layer's shape (out, in). It is the
Fisher information of the mean loss per scored item, so 1/2 <D, C D> is the rise of that loss in nats per item
that a shift D is predicted to cause (second-order expansion at the anchor, where the gradient is neglected).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol, Self

import torch
from torch import Tensor

from holdfast.curvature.spectrum import Spectrum
from holdfast.curvature.statistic import LayerSize, Reading, Statistic
from holdfast.factors.amount import Amount
from holdfast.rows.origin import Per

# No blocks: with as many numbers, their error of q on a real LoRA shift was 1.1 to 1.4 times that of a low rank
# (benchmarks/results/quality.json: the shipped model, widths 128 and 384).
LADDER = ("full", "low-rank:256", "low-rank:64", "low-rank:16", "diagonal")


def scattered(values: Tensor, rows: Tensor, columns: Tensor, shape: tuple[int, int]) -> Tensor:
    """The dense matrix of k values at distinct places, (k,) each, 0 elsewhere."""
    delta = torch.zeros(shape, dtype=values.dtype, device=values.device)
    delta[rows, columns] = values
    return delta


class Curvature(ABC):
    """A positive semi-definite map C on (out, in) matrices, and its products with a shift."""

    kind: ClassVar[str]
    paper: ClassVar[str]
    forecasts: ClassVar[bool] = True  # whether 1/2 <D, C D> is a forecast of the loss in nats
    holds: ClassVar[bool] = True  # whether a penalty by it holds on; else it is for forecasting
    per: ClassVar[Per] = "token"  # what it takes as an example unless told otherwise
    squares: ClassVar[bool] = True  # whether its sums are of squared gradients: draws are weighted for those
    elementwise: ClassVar[bool] = False  # whether C D = F * D with sums that a whole gradient makes as one row
    linear: ClassVar[bool] = True  # whether `merged` is the sum of the parts for any shares, those of other sums too
    rounds: ClassVar[bool] = True  # whether it stays positive semi-definite in bfloat16 (`holdfast.anchors.packing`)
    ladder: ClassVar[tuple[str, ...]] = LADDER  # storages of its sides, from the best to the smallest
    keeps: ClassVar[bool] = False  # whether it stores examples, of which `keep` says how many
    after: ClassVar["type[Curvature] | None"] = None  # measured in a pass of its own before this one

    @classmethod
    @abstractmethod
    def statistics(cls) -> dict[str, type[Statistic]]:
        """Name -> statistic to be collected on source data; empty when the curvature needs none."""

    @classmethod
    @abstractmethod
    def from_sums(cls, size: LayerSize, sums: Mapping[str, Statistic], items: int) -> Self:
        """Normalise the collected sums by the number of scored items."""

    @classmethod
    def numbers(cls, size: LayerSize, reading: Reading, following: LayerSize | None = None) -> dict[str, Amount]:
        """Part -> how many numbers it takes, for a layer of that size; here: what the statistics sum.

        `following` is the layer's neighbour in its chain, for a curvature with blocks between neighbours.
        """
        return {name: statistic.amount(size, reading) for name, statistic in cls.statistics().items()}

    def captured(self) -> dict[str, float]:
        """Side -> the share of its trace that a structure holds that leaves directions out (`Factor.captured`)."""
        return {}

    @abstractmethod
    def apply(self, delta: Tensor) -> Tensor:
        """C D for a dense shift D, (out, in) -> (out, in)."""

    @abstractmethod
    def thin(self, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        """For D = up @ down with up (out, r) and down (r, in): (C D) down^T, (out, r), and up^T (C D), (r, in).

        These are half the gradients of <D, C D> with respect to up and down, and the inner product of either
        with its factor is <D, C D> itself.
        """

    def sparse(self, values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """C D at the entries of D, (k,): half the gradient of <D, C D> with respect to them.

        Here by way of a dense D, for structures with no form in k.

        Args:
            values: of D, (k,).
            rows: where they are, (k,), whole numbers; 0 everywhere else.
            columns: likewise. No place comes twice.
        """
        return self.apply(scattered(values, rows, columns, self.shape))[rows, columns]

    def spectrum(self) -> Spectrum | None:
        """C in its eigenbasis; None where its structure has none that is smaller than C itself."""
        return None

    @abstractmethod
    def damped(self, damping: float) -> "Curvature":
        """The same curvature with `damping` times its mean eigenvalue added; 0 changes nothing.

        Products of two factors are damped factor by factor, each by that share of its own mean eigenvalue.
        """

    @classmethod
    @abstractmethod
    def merged(cls, parts: Sequence[Self], shares: Sequence[float]) -> Self:
        """The curvature on all the parts' data together; `shares` are their shares of the scored items.

        Raises:
            HoldfastError: where the structure does not add up.
        """

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What is stored in a file."""

    @classmethod
    @abstractmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Self:
        """The inverse of `tensors`."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(out, in)."""


class Movement(Protocol):
    """What a curvature that couples layers asks of a shift (see `holdfast.shifts.shift`)."""

    def priced(self, form: Curvature) -> Tensor:
        """<D, C D>, 0-d, differentiable."""
        ...

    def projected(self, inputs: Tensor, gradients: Tensor) -> Tensor:
        """sum over t of g_nt^T D x_nt for each n, (n, t, in) and (n, t, out) -> (n,), differentiable."""
        ...

    def between(self, other: "Movement", gradients: Tensor, inputs: Tensor) -> Tensor:
        """<D, G D' S^T> for another layer's shift D', G (out, out') and S (in, in'), 0-d, differentiable."""
        ...


class Coupled(Curvature):
    """A curvature with terms between layers: q is not a sum over layers.

    As a `Curvature`, each layer's object is its own diagonal block.
    """

    @classmethod
    @abstractmethod
    def joint(cls, curvatures: Mapping[str, Self], shifts: Mapping[str, Movement]) -> Tensor:
        """q of all layers' shifts together, 0-d, differentiable in the shifts' parts; positive semi-definite."""

    @classmethod
    def link(cls, sums: Mapping[str, Mapping[str, Statistic]]) -> dict[str, dict[str, Statistic]]:
        """What further receivers of rows each layer needs, given all layers' statistics in the model's order."""
        return {}
