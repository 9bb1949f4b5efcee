"""The interface of the room: a layer's weight now, minus its weight at the anchor."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from holdfast.layers import own_precision


class Form(Protocol):
    """What a shift asks of a curvature (see `holdfast.curvature.curvature`): a map C, homogeneous of any degree."""

    def apply(self, delta: Tensor) -> Tensor:
        """C D, (out, in): the gradient of <D, C D> over the degree of <D, C D>, 2 where C is linear."""
        ...

    def thin(self, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        """(C D) down^T and up^T (C D) for D = up @ down."""
        ...

    def sparse(self, values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """C D at the entries of D, (k,), for a D of k values at distinct places and 0 elsewhere."""
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

    def priced(self, form: Form, degree: int = 2) -> Tensor:
        """<D, C D>, 0-d, of that degree in D, where C D is 1/degree of its gradient; differentiable once."""
        return _Priced.apply(self, form, degree, *self.parts)

    @abstractmethod
    def projected(self, inputs: Tensor, gradients: Tensor) -> Tensor:
        """sum over t of g_nt^T D x_nt for each n, differentiable: (n, t, in) and (n, t, out) -> (n,).

        Integer inputs, (n, t), are indices of one-hot x.
        """

    @abstractmethod
    def between(self, other: "Shift", gradients: Tensor, inputs: Tensor) -> Tensor:
        """<D, G D' S^T> for another layer's shift D', 0-d, differentiable.

        Args:
            other: D', (out', in').
            gradients: G, (out, out').
            inputs: S, (in, in').
        """

    @abstractmethod
    def scaled(self, factor: Tensor) -> "Shift":
        """factor * D, differentiable in the factor, 0-d, as well."""

    @abstractmethod
    def matrix(self) -> Tensor:
        """D itself, (out, in), materialised."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(out, in)."""


Reader = Callable[[], Shift]


class _Priced(torch.autograd.Function):
    """<D, C D> as a function of the shift's parts, with the gradient written down.

    Autograd over the same products would multiply by the symmetric factors once more.
    """

    @staticmethod
    def forward(ctx: Any, shift: Shift, form: Form, degree: int, *parts: Tensor) -> Tensor:
        with own_precision(parts[0].device):
            products = shift.products(form)
        ctx.degree = degree
        ctx.save_for_backward(*products)
        return (parts[0] * products[0]).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, *(ctx.degree * upstream * product for product in ctx.saved_tensors)


def precise(tensor: Tensor) -> Tensor:
    """In float32 or better, as curvatures are: models and adapters may be of 16 bits."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def mapped(matrix: Tensor, rows: Tensor) -> Tensor:
    """matrix x for rows x, (k, in) and (..., in) -> (..., k); integers, (...), are indices of one-hot rows."""
    return rows @ matrix.T if rows.is_floating_point() else matrix.T[rows]
