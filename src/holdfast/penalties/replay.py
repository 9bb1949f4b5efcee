"""Replay: a little old data beside the new, the baseline that every other way of holding on has to beat."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.layers import device_of
from holdfast.likelihood import IGNORED
from holdfast.penalties.regularizer import Regularizer
from holdfast.penalties.source import SourceRows, check_counts


class Replay(Regularizer):
    """weight * cross-entropy of the data's labels on a few source sequences per step, in nats per item.

    Args:
        model: the model being trained.
        source: batches of old data or a tokenised `datasets.Dataset`.
        weight: against a nat of target loss.
        sequences: source sequences per evaluation.
        every: evaluate at every n-th optimizer step, with n times the weight.
        seed: of the order.

    Raises:
        HoldfastError: no source items, or numbers without a meaning.
    """

    name = "replay"
    paper = "experience replay, arXiv 1811.11682"
    shared = False

    def __init__(
        self,
        model: nn.Module,
        source: Any,
        weight: float = 0.3,
        *,
        sequences: int = 4,
        every: int = 1,
        seed: int = 0,
    ) -> None:
        check_counts(weight, sequences, every)
        self.model, self.weight = model, weight
        self.source = SourceRows(source, sequences, every, seed)
        self._loss = 0.0

    def __call__(self) -> Tensor:
        """weight * source loss at this step's sequences, a 0-d tensor; 0 at the steps that `every` skips."""
        step = self.source.now(self.step)
        if step % self.source.every:
            return torch.zeros((), device=device_of(self.model))
        inputs, labels = self.source.batch(self.source.chosen(step), self.model)
        logits = self.model(**inputs).logits.flatten(0, 1)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED)
        self._loss = float(loss.detach())
        return self.weight * self.source.every * loss

    @property
    def predicted_forgetting(self) -> float | None:
        """None: the loss on rehearsed sequences says little of the others."""
        return None

    def report(self) -> dict[str, float]:
        """The source loss as it joined the loss."""
        return {"replay_loss": self._loss}
