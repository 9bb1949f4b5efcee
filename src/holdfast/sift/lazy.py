"""Choosing a tensor's entries from its first dense gradient, in the backward pass that then trains them."""

from collections.abc import Callable

import torch
from torch import Tensor

from holdfast.sift.entries import Entries

Choose = Callable[[Tensor, Tensor], Tensor]  # dense gradient, base tensor -> (k,) flat indices


class FirstBackward:
    """Chooses the entries from the first backward pass of training, and gives that pass's gradient for them.

    No batch is spent on choosing (arXiv 2312.11875 spends its first). Where the tensor is used several times in a
    forward pass the uses' gradients are added up first; so long the sum, one tensor's, is kept. (Under reentrant
    checkpointing a segment is a backward pass of its own: of a tensor used in several, the last one decides.)

    Args:
        entries: to choose.
        choose: see `Choose`.
    """

    def __init__(self, entries: Entries, choose: Choose) -> None:
        self.entries, self.choose = entries, choose
        self.uses = 0  # forward uses whose backward pass is yet to come
        self._sum: Tensor | None = None

    def used(self) -> None:
        """The tensor takes part in a forward pass with gradients."""
        self.uses += 1

    def __call__(self, gradient: Tensor) -> Tensor:
        """One use's dense gradient; (k,), the chosen entries' gradient with the last use, zeros before."""
        self.uses -= 1
        gradient = gradient.to_dense() if gradient.is_sparse else gradient
        if self._sum is None and self.uses > 0:
            # A use whose loss was thrown away never comes: the end of this backward pass is the last chance.
            torch.autograd.Variable._execution_engine.queue_callback(self._finish)
        self._sum = gradient if self._sum is None else self._sum + gradient
        return torch.zeros_like(self.entries.values) if self.uses > 0 else self._chosen()

    def _finish(self) -> None:
        if self._sum is not None:
            gradient, values = self._chosen(), self.entries.values
            values.grad = gradient if values.grad is None else values.grad + gradient

    def _chosen(self) -> Tensor:
        gradient, self._sum, self.uses = self._sum, None, 0
        assert gradient is not None
        if not torch.isfinite(gradient).all():  # a scaler of mixed precision skips this step and tries another scale
            return torch.full_like(self.entries.values, torch.nan)
        with self.entries.place.apart() as base:
            indices = self.choose(gradient, base)
        self.entries.move(indices)
        return self.entries.gathered(gradient)
