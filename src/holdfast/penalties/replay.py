"""Replay: a little old data beside the new, the baseline that every other way of holding on has to beat."""

from typing import Any

import torch
from torch import Tensor, nn

from holdfast.errors import HoldfastError
from holdfast.layers import device_of
from holdfast.likelihood import ForwardLoss, Items
from holdfast.penalties.regularizer import Regularizer
from holdfast.penalties.source import SourceRows, check_counts


class Replay(Regularizer):
    """weight * loss of the data's labels on a few source sequences per step, in nats per item.

    The loss is the likelihood's of whatever head the model has; see `holdfast.likelihoods`.

    Args:
        model: the model being trained.
        source: labelled batches of old data or a tokenised `datasets.Dataset`.
        weight: against a nat of target loss.
        sequences: source sequences per evaluation.
        every: evaluate at every n-th optimizer step, with n times the weight.
        seed: of the order.
        forward_loss: of models that are not of transformers, as for `Anchor.estimate`.

    Raises:
        HoldfastError: no source items, no labels, or numbers without a meaning.
    """

    name = "replay"
    paper = "experience replay, arXiv 1811.11682"
    shared = False
    knob = "weight"

    def __init__(
        self,
        model: nn.Module,
        source: Any,
        weight: float = 0.3,
        *,
        sequences: int = 4,
        every: int = 1,
        seed: int = 0,
        forward_loss: ForwardLoss | None = None,
    ) -> None:
        check_counts(weight, sequences, every)
        self.model, self.weight = model, weight
        self.reader = Items(model, forward_loss)
        self.source = SourceRows(source, sequences, every, seed, self.reader)
        if forward_loss is None and not self.reader.shifted and "labels" not in self.source.rows[0]:
            raise HoldfastError(
                "the source has no labels to rehearse", remedy="pass labelled batches, or distil, which needs none"
            )
        self._loss = 0.0

    def __call__(self) -> Tensor:
        """weight * source loss at this step's sequences, a 0-d tensor; 0 at the steps that `every` skips."""
        step = self.source.now(self.step)
        if step % self.source.every:
            return torch.zeros((), device=device_of(self.model))
        now = self.reader.read(self.source.batch(self.source.chosen(step), self.model))
        loss = now.loss() / max(now.items, 1)
        self._loss = float(loss.detach())
        return self.weight * self.source.every * loss

    @property
    def predicted_forgetting(self) -> float | None:
        """None: the loss on rehearsed sequences says little of the others."""
        return None

    def report(self) -> dict[str, float]:
        """The source loss as it joined the loss."""
        return {"replay_loss": self._loss}
