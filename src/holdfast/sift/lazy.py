"""Choosing a tensor's entries from its first dense gradient, in the backward pass that then trains them."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from holdfast.sift.entries import Entries, Use

Choose = Callable[[Tensor, Tensor], Tensor]  # dense gradient, base tensor -> (k,) flat indices


class FirstBackward:
    """Chooses the entries from the first backward pass of training, and gives that pass's gradient for them.

    No batch is spent on choosing (arXiv 2312.11875 spends its first). Where the tensor is used several times in a
    forward pass the uses' gradients are added up first; so long the sum, one tensor's, is kept. A use counts as long
    as its graph is there, so what was thrown away, or computed again for a checkpoint, keeps no sum waiting. (Under
    reentrant checkpointing a segment is a backward pass of its own: of a tensor used in several, the last decides.)

    Args:
        entries: to choose.
        choose: see `Choose`.
    """

    def __init__(self, entries: Entries, choose: Choose) -> None:
        self.entries, self.choose = entries, choose
        self.uses: weakref.WeakSet[Use] = weakref.WeakSet()  # whose backward pass may be yet to come
        self._sum: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy has no passes under way."""
        return {"entries": self.entries, "choose": self.choose}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.entries, self.choose = state["entries"], state["choose"]
        self.uses, self._sum = weakref.WeakSet(), None

    def used(self) -> Use:
        """The tensor takes part in a forward pass with gradients: something for that pass's graph to hold."""
        use = Use()
        self.uses.add(use)
        return use

    def __call__(self, gradient: Tensor, use: Use) -> Tensor:
        """One use's dense gradient; (k,), the chosen entries' gradient with the last use, zeros before."""
        self.uses.discard(use)
        gradient = gradient.to_dense() if gradient.is_sparse else gradient
        waits = len(self.uses) > 0
        if self._sum is None and waits:
            # A use whose graph somebody keeps may never come: the end of this backward pass is the last chance.
            torch.autograd.Variable._execution_engine.queue_callback(self._finish)
        self._sum = gradient if self._sum is None else self._sum + gradient
        return torch.zeros_like(self.entries.values) if waits else self._chosen()

    def _finish(self) -> None:
        if self._sum is not None:
            gradient, values = self._chosen(), self.entries.values
            values.grad = gradient if values.grad is None else values.grad.add_(gradient)

    def _chosen(self) -> Tensor:
        gradient, self._sum, self.uses = self._sum, None, weakref.WeakSet()
        assert gradient is not None
        finite = torch.stack(gradient.aminmax()).isfinite().all()  # NaN is both; nothing dense is made
        if not finite:  # a scaler of mixed precision skips this step and tries another scale
            return torch.full_like(self.entries.values, torch.nan)
        with self.entries.place.apart() as base:
            indices = self.choose(gradient, base)
        self.entries.move(indices)
        return self.entries.gathered(gradient)
