"""The interface of the room: a layer's weight now, minus its weight at the anchor."""

from abc import ABC, abstractmethod
from typing import ClassVar, Protocol

from torch import Tensor


class Form(Protocol):
    """What a shift asks of a curvature (see `holdfast.curvature.curvature`): a map C, homogeneous of any degree."""

    def apply(self, delta: Tensor) -> Tensor:
        """C D, (out, in): the gradient of <D, C D> over the degree of <D, C D>, 2 where C is linear."""
        ...

    def thin(self, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        """(C D) down^T and up^T (C D) for D = up @ down."""
        ...


class Shift(ABC):
    """D = W - W_anchor of one layer, (out, in), differentiable in whatever is trained.

    The structure is in the parts: tensors of which D is a homogeneous function, the same degree in each.
    """

    structure: ClassVar[str]

    @property
    @abstractmethod
    def parts(self) -> tuple[Tensor, ...]:
        """The tensors D is made of, carrying gradients."""

    @abstractmethod
    def products(self, curvature: Form) -> tuple[Tensor, ...]:
        """The gradient of <D, C D> with respect to each part, over the degree of <D, C D> in D (2 where C is linear).

        <part, product> = <D, C D> for each.
        """

    @abstractmethod
    def matrix(self) -> Tensor:
        """D itself, (out, in), materialised."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
