"""What a batch says about the model: scored items, their logits, and labels drawn from the model itself.

A *scored item* is one label that is not -100: a token for language models, an example for classifiers. The loss is
the sum over items of the cross-entropy; every figure in Holdfast is a mean over items, in nats.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.errors import HoldfastError

IGNORED = -100
Fisher = Literal["sampled", "data"]
FISHERS: tuple[Fisher, ...] = ("sampled", "data")
# Returns (logits, labels): float (items, classes) and integer (items,), -100 ignored; or (summed loss, items).
ForwardLoss = Callable[[nn.Module, Any], tuple[Tensor, Tensor | int]]


@dataclass
class Scored:
    """The items of one batch.

    `logits` (items, classes) and `labels` (items,), or a bare summed `loss`; `positions` (batch, length) marks the
    inputs that can reach a scored item, and `sequence` (items,) says which sequence an item belongs to.
    """

    items: int
    logits: Tensor | None = None
    labels: Tensor | None = None
    loss: Tensor | None = None
    positions: Tensor | None = None
    sequence: Tensor | None = None


def scored_mask(batch: Mapping[str, Tensor], *, shifted: bool) -> tuple[Tensor, Tensor]:
    """Labels (batch, length) as the logits' positions predict them, and the positions that reach a scored one.

    Without "labels", a causal model's own inputs are its labels, padding left out.
    """
    labels = batch.get("labels")
    mask = batch.get("attention_mask")
    if labels is None:
        labels = batch["input_ids"]
        if mask is not None:
            labels = labels.masked_fill(mask == 0, IGNORED)
    if shifted:  # position t predicts label t + 1; the last predicts nothing
        labels = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
        # t reaches the loss at every s >= t: a reversed cumulative "any".
        reaches = (labels != IGNORED).flip(1).cummax(dim=1).values.flip(1)
    else:
        reaches = (labels != IGNORED).any(dim=1, keepdim=True).expand_as(labels)
    positions = reaches if mask is None else reaches & (mask != 0)
    return labels, positions


def inputs_of(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The batch without labels: what the model's forward is called with."""
    return {name: value for name, value in batch.items() if name != "labels"}


def is_causal(model: nn.Module) -> bool:
    """Whether the model's own loss shifts labels by one position."""
    model = bare(model)
    loss_type = getattr(model, "loss_type", None)
    return loss_type in (None, "ForCausalLM") and hasattr(model, "get_output_embeddings")


def bare(model: nn.Module) -> nn.Module:
    """The model inside PEFT's wrapper."""
    get = getattr(model, "get_base_model", None)
    return get() if get is not None else model


class Items:
    """The scored items of one kind of model: sees where they are, runs it, reads the logits."""

    def __init__(self, model: nn.Module, forward_loss: ForwardLoss | None = None) -> None:
        if forward_loss is None and not hasattr(bare(model), "config"):
            raise HoldfastError(
                f"{type(model).__name__} is not a transformers model, so its loss is not known",
                wanted="forward_loss(model, batch) returning (logits, labels) or (summed loss, number of items)",
                remedy="pass forward_loss=...",
            )
        self.model, self.forward_loss = model, forward_loss
        self.shifted = is_causal(model)

    def positions(self, batch: Any) -> Tensor | None:
        """(batch, length) mask of the positions that reach a scored item, known before the forward pass."""
        if self.forward_loss is not None:
            mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
            return None if mask is None else mask != 0
        if "input_ids" not in batch or (batch.get("labels") is not None and batch["labels"].dim() != 2):
            mask = batch.get("attention_mask")
            return None if mask is None else mask != 0
        return scored_mask(batch, shifted=self.shifted)[1]

    def run(self, batch: Any) -> Scored:
        """One forward pass."""
        if self.forward_loss is not None:
            return _from_user(self.forward_loss(self.model, batch))
        logits = self.model(**inputs_of(batch)).logits
        if logits.dim() == 2:
            return _scored(logits, batch["labels"])
        labels, _ = scored_mask(batch, shifted=self.shifted)
        rows = torch.arange(labels.shape[0], device=labels.device)[:, None].expand_as(labels)
        return _scored(logits.flatten(0, 1), labels.flatten(), rows.flatten())


def _from_user(returned: tuple[Tensor, Tensor | int]) -> Scored:
    first, second = returned
    if isinstance(second, Tensor) and first.dim() == 2 and second.dim() == 1:
        return _scored(first, second)
    if first.dim() == 0:
        return Scored(items=int(second), loss=first)
    raise HoldfastError(
        f"forward_loss returned tensors of shapes {tuple(first.shape)} and {getattr(second, 'shape', second)}",
        wanted="(logits (items, classes), labels (items,)) or (summed loss, number of items)",
    )


def _scored(logits: Tensor, labels: Tensor, sequence: Tensor | None = None) -> Scored:
    return Scored(int((labels != IGNORED).sum()), logits, labels, sequence=sequence)


class LabelSampler:
    """Draws labels y ~ p(y | x) by inverting the cumulative distribution: one uniform number per item.

    Items of a sequence draw from a generator seeded by the sequence's own labels, so a draw does not depend on
    the batch, the order or the rank that the sequence came in. Items without sequences draw in order.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._stream = torch.Generator().manual_seed(seed)

    def uniform(self, scored: Scored) -> Tensor:
        """(scored items,) on the CPU, float32 in [0, 1)."""
        assert scored.labels is not None
        if scored.sequence is None:
            return torch.rand(scored.items, generator=self._stream)
        keep = scored.labels != IGNORED
        labels, sequence = scored.labels[keep].cpu(), scored.sequence[keep].cpu()
        counts = torch.unique_consecutive(sequence, return_counts=True)[1].tolist()
        draws = []
        for piece in labels.split(counts):
            key = zlib.crc32(piece.numpy().tobytes()) ^ (self.seed * 0x9E3779B1 & 0xFFFFFFFF)
            draws.append(torch.rand(len(piece), generator=torch.Generator().manual_seed(key)))
        return torch.cat(draws) if draws else torch.empty(0)

    def draw(self, probabilities: Tensor, uniform: Tensor) -> Tensor:
        """(items,) labels for (items, classes) probabilities."""
        cumulative = probabilities.cumsum(dim=1)
        threshold = uniform.to(probabilities)[:, None] * cumulative[:, -1:]
        return torch.searchsorted(cumulative, threshold, right=True).squeeze(1).clamp_(max=probabilities.shape[1] - 1)


def backward(scored: Scored, fisher: Fisher, sampler: LabelSampler) -> None:
    """Backpropagate the summed loss of one batch, with the data's labels or with labels drawn from the model.

    For a softmax the gradient of an item's loss is p - onehot(y): it is written down, not derived.

    Raises:
        HoldfastError: when labels can't be drawn because only a loss is known.
    """
    if scored.items == 0:
        return
    if scored.logits is None:
        assert scored.loss is not None
        if fisher == "sampled":
            raise HoldfastError(
                "fisher='sampled' needs a distribution to draw labels from, and forward_loss returned only a loss",
                remedy="return (logits, labels) from forward_loss, or ask for fisher='data'",
            )
        scored.loss.backward()
        return
    assert scored.labels is not None
    logits, labels = scored.logits, scored.labels
    keep = labels != IGNORED
    every = bool(keep.all())
    with torch.no_grad():
        chosen = logits if every else logits[keep]
        gradient = chosen.to(torch.promote_types(chosen.dtype, torch.float32)).softmax(dim=1)
        if fisher == "sampled":
            drawn = sampler.draw(gradient, sampler.uniform(scored))
        else:
            drawn = labels if every else labels[keep]
        gradient[torch.arange(len(drawn), device=drawn.device), drawn] -= 1
        gradient = gradient.to(logits.dtype)
        if not every:
            full = torch.zeros_like(logits)
            full[keep] = gradient
            gradient = full
    if logits.requires_grad:
        logits.backward(gradient)


def summed_loss(scored: Scored) -> Tensor:
    """The cross-entropy of the data's labels summed over the batch's items, in nats."""
    if scored.logits is None:
        assert scored.loss is not None
        return scored.loss
    assert scored.labels is not None
    return F.cross_entropy(scored.logits.float(), scored.labels, ignore_index=IGNORED, reduction="sum")
