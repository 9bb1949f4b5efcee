"""Making a tensor that is trained in place depend on the vector that trains, without a copy of either."""

from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from holdfast.errors import HoldfastError
from holdfast.sift.entries import Chooser, Entries, Use
from holdfast.sift.place import Place, take


class Linked(torch.autograd.Function):
    """w as a function of its entries v: w[I] = v, so dL/dv = (dL/dw)[I]; exact, and w is not copied.

    The tensor already holds the entries, so the forward pass hands on its own storage. The backward pass gathers and
    lets the dense gradient go at once: the base keeps requires_grad=False, so clipping, optimizers and
    DistributedDataParallel see short vectors only, and dense gradients of two tensors are never kept side by side.
    """

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, weight: Tensor, indices: Tensor, entries: Entries | None, use: Use | None
    ) -> Tensor:
        """The weight's own storage, now depending on `values`; `entries` is None where nobody may look on."""
        ctx.indices, ctx.entries, ctx.use, ctx.dtype = indices, entries, use, values.dtype
        ctx.chosen = entries is None or entries.chosen
        return weight.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        """The dense gradient (of the weight's shape) to (k,); the dense one goes on only to entries linked before."""
        onward = gradient if ctx.needs_input_grad[1] else None
        return _received(ctx, gradient), onward, None, None, None


def _received(ctx: Any, gradient: Tensor) -> Tensor | None:
    entries = ctx.entries
    if entries is None:
        return take(gradient, ctx.indices).to(ctx.dtype)
    if entries.observer is not None:
        entries.observer(gradient)
        return None
    if not entries.chosen:
        chooser = _chooser(entries)
        return _unchosen(entries.place) if chooser is None or ctx.use is None else chooser(gradient, ctx.use)
    if not entries.place.holds(entries) or (ctx.chosen and ctx.indices is not entries.indices):
        raise HoldfastError(
            f"a backward pass through {entries.place.name!r}, whose adapter is not as it was in the forward pass",
            causes=("the adapter was switched off, or another on, in between", "its entries were chosen again"),
            remedy="go back before that, or run the forward pass again",
        )
    return entries.gathered(gradient)


def expect_choice(place: Place, compiling: bool = False) -> None:
    """Raise HoldfastError where a pass is to train entries that nobody has chosen or will choose in it."""
    for entries in place.visible():
        watched = entries.observer is not None or _chooser(entries) is not None
        if entries.values.requires_grad and not entries.chosen and (compiling or not watched):
            _unchosen(place)


def _chooser(entries: Entries) -> Chooser | None:
    """Who chooses the entries in a backward pass: nobody where each of several processes would choose its own."""
    return None if several_processes() else entries.chooser


def several_processes() -> bool:
    """Whether torch.distributed joins this process to others."""
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


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
        use = None if known is None or known.chooser is None else known.chooser.used()
        weight = Linked.apply(entries.values, weight, entries.indices, known, use)
    return weight
