"""One of several classes: language models, sequence, image and token classification."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.likelihoods import classes
from holdfast.likelihoods.likelihood import IGNORED, Uniforms, precise
from holdfast.likelihoods.rowwise import Rowwise
from holdfast.likelihoods.sampler import LabelSampler


class Categorical(Rowwise):
    """y ~ softmax(logits): the cross-entropy.

    The gradient of an item's loss is p - onehot(y): it is written down, not derived. Its exact expectation is made
    of one gradient per class c, sqrt(p_c) (p - onehot(c)).

    Args:
        logits: (rows, classes), on the model's graph.
        labels: (rows,) integers, -100 not scored; None: drawn labels alone are asked for.
        scored: (rows,) boolean; None: where there is a label.
        sequence: (rows,) the sequence of the batch that each row belongs to.
    """

    def __init__(
        self, logits: Tensor, labels: Tensor | None, scored: Tensor | None = None, sequence: Tensor | None = None
    ) -> None:
        if scored is None:
            blank = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
            scored = blank if labels is None else labels != IGNORED
        super().__init__(logits, labels, scored, sequence)

    def loss(self) -> Tensor:
        """The cross-entropy."""
        return F.cross_entropy(precise(self.outputs), self.labels(), ignore_index=IGNORED, reduction="sum")

    def right(self) -> int:
        """Labels of the largest logit."""
        return int((self.outputs.argmax(dim=1) == self.labels())[self.scored].sum())

    def data_gradient(self) -> Tensor:
        """p - onehot(label)."""
        return self._minus(self._probabilities(), self.labels()).to(self.outputs.dtype)

    def drawn_gradients(self, uniforms: Uniforms, draws: int) -> Iterator[Tensor]:
        """p - onehot(y), y ~ p."""
        probabilities = self._probabilities()
        for number, uniform in enumerate(self._choices(uniforms, draws), start=1):
            labels = LabelSampler.draw(probabilities, uniform[:, 0])
            gradient = self._minus(probabilities if number == draws else probabilities.clone(), labels)
            yield gradient.div_(draws**0.5).to(self.outputs.dtype) if draws > 1 else gradient.to(self.outputs.dtype)

    def column_gradient(self, column: int) -> Tensor:
        """sqrt(p_c) (p - onehot(c))."""
        probabilities = self._probabilities()
        weight = probabilities[:, column, None].sqrt()
        return self._minus(probabilities, torch.full_like(self.scored, column, dtype=torch.long)).mul_(weight)

    def answers(self, top_k: int | None = None) -> tuple[Tensor, ...]:
        """Log-probabilities of the scored rows."""
        return classes.answers(self.outputs[self.scored], top_k)

    def divergence(self, answers: tuple[Tensor, ...]) -> Tensor:
        """Sum of p_teacher (log p_teacher - log p_now)."""
        return classes.divergence(self.outputs[self.scored], answers)

    def _probabilities(self) -> Tensor:
        return precise(self.outputs.detach()).softmax(dim=1)

    def _minus(self, probabilities: Tensor, labels: Tensor) -> Tensor:
        """p - onehot(labels), zero where nothing is scored; in place."""
        # Unscored rows take any class and are then emptied: a few rows to clear instead of all to gather.
        probabilities[torch.arange(len(labels), device=labels.device), labels.clamp_min(0)] -= 1
        return probabilities.index_fill_(0, (~self.scored).nonzero().squeeze(1), 0)
