"""The scored items of one kind of model: where they are in a batch, and what the model says of them."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.errors import HoldfastError
from holdfast.likelihoods import heads
from holdfast.likelihoods.batches import (
    attended_positions,
    bare,
    frames_of,
    has_labels_per_position,
    inputs_of,
    is_causal,
    is_ctc,
    is_example_labels,
    is_sequence_to_sequence,
    main_input,
    scored_examples,
    scored_mask,
)
from holdfast.likelihoods.ctc import scored_utterances
from holdfast.likelihoods.features import Features
from holdfast.likelihoods.likelihood import IGNORED, Likelihood
from holdfast.likelihoods.sampler import LabelSampler
from holdfast.likelihoods.unknown import Unknown

# Returns (logits, labels): float (items, classes) and integer (items,), -100 ignored; (outputs, targets), both float
# and of one shape, for normal noise of variance 1; (summed loss, items); or a likelihood of this room.
ForwardLoss = Callable[[nn.Module, Any], tuple[Tensor, Tensor | int] | Likelihood]


@dataclass
class Scored:
    """What the model says of one batch, and `keys` (batch,): what stands in for each sequence's input."""

    likelihood: Likelihood
    keys: list[int] | None = None

    @property
    def items(self) -> int:
        """How many labels are scored."""
        return self.likelihood.items


class Items:
    """Reads one kind of model: sees where the scored items are, runs it, finds the likelihood of its head."""

    def __init__(self, model: nn.Module, forward_loss: ForwardLoss | None = None) -> None:
        if forward_loss is None and not hasattr(bare(model), "config"):
            raise HoldfastError(
                f"{type(model).__name__} is not a transformers model, so its loss is not known",
                wanted="forward_loss(model, batch) returning (logits, labels), (outputs, targets), a likelihood, or "
                "(summed loss, number of items)",
                remedy="pass forward_loss=...",
            )
        if forward_loss is None and is_sequence_to_sequence(model):
            raise HoldfastError(
                f"{type(bare(model)).__name__} reads one sequence and writes another; one mask can't tell both",
                remedy="pass forward_loss=..., which returns the decoder's (logits, labels)",
            )
        self.model, self.forward_loss = model, forward_loss
        self.shifted = forward_loss is None and is_causal(model)
        self.item = "token" if forward_loss is None else "item"  # what one scored item is; seen at the first batch
        self._warned = False

    def positions(self, batch: Any) -> Tensor | None:
        """(batch, length) mask of the positions that reach a scored item, known before the forward pass.

        For recordings these are the frames behind the feature extractor. None: all positions do.
        """
        if self.forward_loss is not None:
            mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
            return None if mask is None else mask != 0
        if self._per_position(batch):
            return scored_mask(batch, shifted=self.shifted)[1]
        attended, sequences = attended_positions(self.model, batch), self._scored_sequences(batch)
        if sequences is None:
            return attended
        return sequences[:, None] if attended is None else sequences[:, None] & attended

    def items_in(self, batch: Any) -> int | None:
        """The scored items of a batch where it tells by itself, before any forward pass; else None."""
        if self.forward_loss is not None:
            return None
        if self._per_position(batch):
            return int((scored_mask(batch, shifted=self.shifted)[0] != IGNORED).sum())
        sequences = self._scored_sequences(batch)
        if sequences is not None:
            return int(sequences.sum())
        name = main_input(self.model, batch)
        if name is None:
            return None
        mask = batch.get("attention_mask")
        if has_labels_per_position(self.model):
            return int((mask != 0).sum()) if mask is not None else batch[name].shape[:2].numel()
        return len(batch[name])

    def keys(self, batch: Any) -> list[int] | None:
        """For each sequence of a batch, what stands in for its input, padding left out; None where none is known."""
        name = None if self.forward_loss is not None else main_input(self.model, batch)
        if name is None:
            return None
        inputs, mask = batch[name], batch.get("attention_mask")
        if mask is None or mask.shape != inputs.shape[:2]:
            return [LabelSampler.key(row) for row in inputs]
        return [LabelSampler.key(row[attended != 0]) for row, attended in zip(inputs, mask, strict=True)]

    def read(self, batch: Any) -> Likelihood:
        """One forward pass.

        Raises:
            HoldfastError: a head or a returned value whose likelihood is not known.
        """
        if self.forward_loss is not None:
            likelihood = heads.from_user(self.forward_loss(self.model, batch))
            self._warn_of(likelihood)
            return likelihood
        likelihood, self.item = heads.of_model(self.model, batch, self.model(**inputs_of(batch)))
        return likelihood

    def run(self, batch: Any) -> Scored:
        """One forward pass, and what names its sequences."""
        return Scored(self.read(batch), self.keys(batch))

    def features(self, batch: Any) -> Features:
        """One forward pass, read at the last hidden states of a transformers model."""
        output = self.model(**inputs_of(batch), output_hidden_states=True)
        last = getattr(output, "last_hidden_state", None)
        if last is None:
            last = output.hidden_states[-1]
        attended = attended_positions(self.model, batch)
        if attended is None and "input_ids" in batch:
            attended = torch.ones_like(batch["input_ids"])
        # Prompt tuning puts virtual tokens in front.
        return Features(last if attended is None else last[:, last.shape[1] - attended.shape[1] :], attended)

    def _per_position(self, batch: Any) -> bool:
        labels = batch.get("labels")
        if labels is None:
            return self.shifted and "input_ids" in batch
        return not is_ctc(self.model) and not is_example_labels(labels)

    def _scored_sequences(self, batch: Any) -> Tensor | None:
        """(batch,) sequences that are items, or hold some; None where nothing in the batch tells."""
        labels = batch.get("labels")
        if is_ctc(self.model):
            framed = frames_of(self.model, batch)
            return None if framed is None else scored_utterances(labels, framed[0])
        if labels is None or not is_example_labels(labels):
            return None
        return scored_examples(self.model, labels)

    def _warn_of(self, likelihood: Likelihood) -> None:
        if isinstance(likelihood, Unknown) and not self._warned:
            self._warned = True
            warnings.warn(
                "forward_loss returned a loss without its outputs and labels, so it is not known to be a likelihood: "
                "a curvature is then the second moment of its gradients, and its forecast is not in nats",
                stacklevel=3,
            )
