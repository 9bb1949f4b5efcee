"""Making a tensor that is trained in place depend on the vector that trains, without a copy of either."""

from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from holdfast.errors import HoldfastError
from holdfast.sift.entries import Entries
from holdfast.sift.place import Place, take


class Linked(torch.autograd.Function):
    """w as a function of its entries v: w[I] = v, so dL/dv = (dL/dw)[I]; exact, and w is not copied.

    The tensor already holds the entries, so the forward pass hands on its own storage. The backward pass gathers and
    lets the dense gradient go at once: the base keeps requires_grad=False, so clipping, optimizers and
    DistributedDataParallel see short vectors only, and dense gradients of two tensors are never kept side by side.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, indices: Tensor, entries: Entries | None) -> Tensor:
        """The weight's own storage, now depending on `values`; `entries` is None where nobody may look on."""
        ctx.indices, ctx.entries, ctx.dtype = indices, entries, values.dtype
        return weight.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """The dense gradient (of the weight's shape) to (k,); the dense one goes on only to entries linked before."""
        onward = gradient if ctx.needs_input_grad[1] else None
        return _received(ctx, gradient), onward, None, None


def _received(ctx: Any, gradient: Tensor) -> Tensor | None:
    entries = ctx.entries
    if entries is not None and entries.observer is not None:
        entries.observer(gradient)
        return None
    if entries is not None and not entries.chosen:
        return entries.chooser(gradient) if entries.chooser is not None else _unchosen(entries.place)
    return take(gradient, ctx.indices).to(ctx.dtype)


def expect_choice(place: Place, compiling: bool = False) -> None:
    """Raise HoldfastError where a pass is to train entries that nobody has chosen or will choose in it."""
    for entries in place.visible():
        watched = entries.observer is not None or entries.chooser is not None
        if entries.values.requires_grad and not entries.chosen and (compiling or not watched):
            _unchosen(place)


def _unchosen(place: Place) -> NoReturn:
    raise HoldfastError(
        f"the entries of {place.name!r} are not chosen yet",
        wanted="a choice before training: several batches, scope 'global', a score of your own, several processes "
        "and compiled models can't choose from the first backward pass",
        remedy="call holdfast.sift.selection.select(model, batches) first, or train with the SiftCallback",
    )


def linked(weight: Tensor, several: list[Entries]) -> Tensor:
    """The weight, depending on the values of every adapter's entries in it that trains.

    Torch's compiler sees plain tensors only, so observers and choosers, which act on the model as it is trained
    before that, are not called from compiled code.
    """
    for entries in several:
        known = None if torch.compiler.is_compiling() else entries
        if known is not None and known.chooser is not None:
            known.chooser.used()
        weight = Linked.apply(entries.values, weight, entries.indices, known)
    return weight
