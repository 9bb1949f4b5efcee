"""Connectionist temporal classification: a label sequence from frames, for speech recognition."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.errors import HoldfastError
from holdfast.likelihoods import classes
from holdfast.likelihoods.likelihood import Likelihood, Uniforms, precise, unlabelled
from holdfast.likelihoods.sampler import LabelSampler


class CTC(Likelihood):
    """p(labels) = sum over frame paths that collapse to the labels of prod_t softmax(logits_t)[path_t].

    A path collapses by merging repeats and dropping blanks (Graves et al., ICML 2006). An item is an utterance. A
    label sequence is drawn exactly: one class per frame from its softmax, collapsed. An exact expectation would go
    over all label sequences, so there is none. The divergence is the KL between the distributions of *paths*, frame
    by frame: cheap, and never less than that between label sequences (data processing).

    Args:
        logits: (batch, frames, classes), on the model's graph.
        labels: (batch, length) integers, padded with -100; None: drawn labels alone are asked for.
        frames: (batch,) how many frames of each utterance are real.
        blank: the class of the blank.

    An utterance without labels, and one whose labels do not fit into its frames, is no item.
    """

    def __init__(self, logits: Tensor, labels: Tensor | None, frames: Tensor, blank: int) -> None:
        self.outputs, self.blank, self.columns = logits, blank, None
        self.frames = frames.to(logits.device).clamp(max=logits.shape[1])
        self.labels = labels
        self.scored = scored_utterances(labels, self.frames)
        self.items = int(self.scored.sum())
        places = torch.arange(logits.shape[1], device=logits.device)
        self.real = (places < self.frames[:, None]) & self.scored[:, None]  # (batch, frames)

    def loss(self) -> Tensor:
        """-log p(labels), summed over utterances."""
        return self._loss(self.outputs, *self._data())

    def data_gradient(self) -> Tensor:
        """By autograd through the sum over paths, of the logits alone."""
        return self._gradient(*self._data())

    def drawn_gradients(self, uniforms: Uniforms, draws: int) -> Iterator[Tensor]:
        """As `data_gradient`, with sequences drawn through one class per frame."""
        probabilities = precise(self.outputs.detach())[self.real].softmax(dim=1)
        sequence = self.real.nonzero()[:, 0]
        for uniform in uniforms(sequence, draws).to(probabilities.device):
            path = torch.full_like(self.real, self.blank, dtype=torch.long)
            path[self.real] = LabelSampler.draw(probabilities, uniform)
            yield (self._gradient(*self._collapsed(path)) / draws**0.5).to(self.outputs.dtype)

    def exact_gradients(self, uniforms: Uniforms) -> Iterator[Tensor]:
        """Out of reach."""
        raise HoldfastError(
            "fisher='exact' would go through every label sequence",
            remedy="ask for fisher='sampled' with more draws (draws=8, say)",
        )

    def answers(self, top_k: int | None = None) -> tuple[Tensor, ...]:
        """Log-probabilities of the real frames."""
        return classes.answers(self.outputs[self.real], top_k)

    def divergence(self, answers: tuple[Tensor, ...]) -> Tensor:
        """KL of paths: the sum over frames."""
        return classes.divergence(self.outputs[self.real], answers)

    def _data(self) -> tuple[Tensor, Tensor]:
        """All scored utterances' labels in one row, and how many each has."""
        if self.labels is None:
            raise unlabelled()
        kept = self.labels[self.scored] >= 0
        return self.labels[self.scored][kept], kept.sum(dim=1)

    def _collapsed(self, path: Tensor) -> tuple[Tensor, Tensor]:
        path = path[self.scored]
        before = F.pad(path[:, :-1], (1, 0), value=self.blank)
        kept = (path != self.blank) & (path != before)
        return path[kept], kept.sum(dim=1)

    def _gradient(self, labels: Tensor, counts: Tensor) -> Tensor:
        logits = self.outputs.detach().requires_grad_()
        with torch.enable_grad():
            loss = self._loss(logits, labels, counts)
        return torch.autograd.grad(loss, logits)[0]

    def _loss(self, logits: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
        if not self.items:
            return logits.sum() * 0
        return F.ctc_loss(
            classes.log_probabilities(logits[self.scored]).transpose(0, 1),
            labels,
            self.frames[self.scored],
            counts,
            blank=self.blank,
            reduction="sum",
            zero_infinity=True,
        )


def scored_utterances(labels: Tensor | None, frames: Tensor) -> Tensor:
    """(batch,) utterances with frames and labels that fit: one frame each, and one between equal neighbours."""
    if labels is None:
        return frames > 0
    kept = labels >= 0
    needed = kept.sum(dim=1)
    if labels.shape[1] > 1:
        needed = needed + ((labels[:, 1:] == labels[:, :-1]) & kept[:, 1:]).sum(dim=1)
    return (needed > 0) & (needed.to(frames.device) <= frames)
