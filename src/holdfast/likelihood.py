"""What a batch says about the model: scored items, their logits, and labels drawn from the model itself.

A *scored item* is one label that is not -100: a token for language models, an example for classifiers. The loss is
the sum over items of the cross-entropy; every figure in Holdfast is a mean over items, in nats.
"""

import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.errors import HoldfastError

IGNORED = -100
CLASSES = 256  # the most that fisher="exact" goes through: each costs a backward pass
Fisher = Literal["sampled", "data", "exact"]
FISHERS: tuple[Fisher, ...] = ("sampled", "data", "exact")
# Returns (logits, labels): float (items, classes) and integer (items,), -100 ignored; or (summed loss, items).
ForwardLoss = Callable[[nn.Module, Any], tuple[Tensor, Tensor | int]]


@dataclass
class Scored:
    """The items of one batch.

    `logits` (items, classes) and `labels` (items,), or a bare summed `loss`; `sequence` (items,) says which sequence
    of the batch an item belongs to, and `keys` (batch,) what stands in for that sequence's input.
    """

    items: int
    logits: Tensor | None = None
    labels: Tensor | None = None
    loss: Tensor | None = None
    sequence: Tensor | None = None
    keys: list[int] | None = None


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
        if mask is not None:  # padding on the left would predict the first token; padding on the right never does
            labels = labels.masked_fill(mask == 0, IGNORED)
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
        self.item = "token" if forward_loss is None else "item"  # what one scored item is; seen at the first batch

    def positions(self, batch: Any) -> Tensor | None:
        """(batch, length) mask of the positions that reach a scored item, known before the forward pass."""
        if self.forward_loss is not None:
            mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
            return None if mask is None else mask != 0
        labels = batch.get("labels")
        if "input_ids" in batch and (labels is None or labels.dim() == 2):
            return scored_mask(batch, shifted=self.shifted)[1]
        mask = batch.get("attention_mask")
        attended = None if mask is None else mask != 0
        if labels is None or labels.dim() != 1:
            return attended
        sequences = (labels != IGNORED)[:, None]  # one label for a whole sequence
        return sequences if attended is None else sequences & attended

    def run(self, batch: Any) -> Scored:
        """One forward pass."""
        if self.forward_loss is not None:
            return _from_user(self.forward_loss(self.model, batch))
        logits = self.model(**inputs_of(batch)).logits
        labels = batch["labels"] if logits.dim() == 2 else scored_mask(batch, shifted=self.shifted)[0]
        self.item = "example" if labels.dim() == 1 else "token"
        rows = torch.arange(len(labels), device=labels.device)
        rows = rows if labels.dim() == 1 else rows[:, None].expand_as(labels).flatten()
        return _scored(logits.flatten(0, -2), labels.flatten(), rows, self.keys(batch))

    def items_in(self, batch: Any) -> int | None:
        """The scored items of a batch where it tells by itself, before any forward pass; else None."""
        if self.forward_loss is not None:
            return None
        labels = batch.get("labels")
        if labels is None and "input_ids" not in batch:
            return None
        if labels is None or labels.dim() == 2:
            labels = scored_mask(batch, shifted=self.shifted)[0]
        return int((labels != IGNORED).sum())

    def keys(self, batch: Any) -> list[int] | None:
        """For each sequence of a batch, what stands in for its input, padding left out."""
        if self.forward_loss is not None:
            return None
        name: Any = bare(self.model).main_input_name
        inputs, mask = batch.get(name), batch.get("attention_mask")
        if inputs is None:
            return None
        if mask is None or mask.shape != inputs.shape:
            return [LabelSampler.key(row) for row in inputs]
        return [LabelSampler.key(row[attended != 0]) for row, attended in zip(inputs, mask, strict=True)]


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


def _scored(logits: Tensor, labels: Tensor, sequence: Tensor | None = None, keys: list[int] | None = None) -> Scored:
    return Scored(int((labels != IGNORED).sum()), logits, labels, sequence=sequence, keys=keys)


class LabelSampler:
    """Draws labels y ~ p(y | x) by inverting the cumulative distribution: one uniform number per item.

    Items of a sequence draw from a generator seeded by the sequence's own input, so a draw does not depend on
    the batch, the order or the rank that the sequence came in. Items without a key draw in order.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._stream = torch.Generator().manual_seed(seed)

    @staticmethod
    def key(row: Tensor) -> int:
        """What stands in for one sequence's input, padding left out."""
        return zlib.crc32(row.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())

    def uniform(self, sequence: Tensor, keys: list[int] | None) -> Tensor:
        """(items,) on the CPU, float32 in [0, 1), for items in the order of their sequences (items,)."""
        return self.uniforms(sequence, keys, 1)[0]

    def uniforms(self, sequence: Tensor, keys: list[int] | None, draws: int) -> Tensor:
        """(draws, items): as `uniform`, several times over; the first of them is `uniform`'s."""
        if keys is None:
            return torch.rand(draws, len(sequence), generator=self._stream)
        which, counts = torch.unique_consecutive(sequence.cpu(), return_counts=True)
        drawn = []
        for row, count in zip(which.tolist(), counts.tolist(), strict=True):
            seed = keys[row] ^ (self.seed * 0x9E3779B1 & 0xFFFFFFFF)
            drawn.append(torch.rand(draws, count, generator=torch.Generator().manual_seed(seed)))
        return torch.cat(drawn, dim=1) if drawn else torch.empty(draws, 0)

    def draw(self, probabilities: Tensor, uniform: Tensor) -> Tensor:
        """(items,) labels for (items, classes) probabilities and (items,) uniform numbers in [0, 1).

        First a block of about sqrt(classes) classes, then a class in it: a running sum over all classes is slower
        and, in float32 over a large vocabulary, less exact.
        """
        classes = probabilities.shape[1]
        width = math.isqrt(classes)
        whole = classes // width * width
        blocks = probabilities[:, :whole].unflatten(1, (-1, width)).sum(dim=2)
        blocks = torch.cat([blocks, probabilities[:, whole:].sum(dim=1, keepdim=True)], dim=1)
        upto = blocks.cumsum(dim=1)
        target = uniform.to(probabilities)[:, None] * upto[:, -1:]
        block = _first_above(upto, target)
        target -= (upto - blocks).gather(1, block)
        columns = block * width + torch.arange(width, device=block.device)  # (items, width)
        inside = probabilities.gather(1, columns.clamp(max=classes - 1)).masked_fill_(columns >= classes, 0)
        return (block * width + _first_above(inside.cumsum(dim=1), target)).squeeze(1).clamp_(max=classes - 1)


def _first_above(running: Tensor, target: Tensor) -> Tensor:
    """(rows, 1): where a row's running sum first exceeds its target; the last place when rounding hides it."""
    return torch.searchsorted(running, target, right=True).clamp_(max=running.shape[1] - 1)


def backward(scored: Scored, fisher: Fisher, sampler: LabelSampler) -> None:
    """Backpropagate the summed loss of one batch once; see `passes`."""
    for _ in passes(scored, fisher, sampler):
        pass


def passes(scored: Scored, fisher: Fisher, sampler: LabelSampler, draws: int = 1) -> Iterator[None]:
    """Backpropagate one batch as often as its Fisher needs, and stop after each time.

    Sums over the passes of squares of what arrives are the Fisher of the batch. For a softmax the gradient of an
    item's loss is p - onehot(y): it is written down, not derived. Without scored items there is no pass.

    - "data": once, with the data's own labels.
    - "sampled": `draws` times, with labels drawn from the model; gradients are divided by sqrt(draws).
    - "exact": once for each class c, with sqrt(p_c) (p - onehot(c)). Where a sequence has several items, each item
      and class has a random sign, so that products between items vanish in expectation; with one item it is exact.

    Raises:
        HoldfastError: labels can't be drawn because only a loss is known, or too many classes for "exact".
    """
    if scored.items == 0:
        return
    if scored.logits is None:
        assert scored.loss is not None
        if fisher != "data":
            raise HoldfastError(
                f"fisher={fisher!r} needs a distribution to draw labels from, and forward_loss returned only a loss",
                remedy="return (logits, labels) from forward_loss, or ask for fisher='data'",
            )
        scored.loss.backward()
        yield
        return
    gradients = _GRADIENTS[fisher](scored, sampler, draws)
    for gradient, more in gradients:
        if scored.logits.requires_grad:
            scored.logits.backward(gradient, retain_graph=more)
        yield


def _probabilities(logits: Tensor) -> Tensor:
    return logits.detach().to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=1)


def _minus_label(scored: Scored, probabilities: Tensor, labels: Tensor) -> Tensor:
    """p - onehot(labels), zero where nothing is scored; in place."""
    assert scored.logits is not None
    assert scored.labels is not None
    # Unscored rows take any class and are then emptied: a few rows to clear instead of all to gather.
    probabilities[torch.arange(len(labels), device=labels.device), labels.clamp_min(0)] -= 1
    unscored = (scored.labels == IGNORED).nonzero().squeeze(1)
    return probabilities.index_fill_(0, unscored, 0)


def _uniforms(scored: Scored, sampler: LabelSampler, draws: int) -> Tensor:
    """(draws, rows), 0 where nothing is scored."""
    assert scored.labels is not None
    keep = scored.labels != IGNORED
    sequence = scored.labels if scored.sequence is None else scored.sequence
    uniform = torch.zeros(draws, len(keep), device=keep.device)
    uniform[:, keep] = sampler.uniforms(sequence[keep], scored.keys, draws).to(keep.device)
    return uniform


def _with_data(scored: Scored, sampler: LabelSampler, draws: int) -> Iterator[tuple[Tensor, bool]]:
    assert scored.logits is not None
    assert scored.labels is not None
    yield _minus_label(scored, _probabilities(scored.logits), scored.labels).to(scored.logits.dtype), False


def _with_draws(scored: Scored, sampler: LabelSampler, draws: int) -> Iterator[tuple[Tensor, bool]]:
    assert scored.logits is not None
    probabilities = _probabilities(scored.logits)
    for number, uniform in enumerate(_uniforms(scored, sampler, draws), start=1):
        labels, last = sampler.draw(probabilities, uniform), number == draws
        gradient = _minus_label(scored, probabilities if last else probabilities.clone(), labels)
        yield gradient.div_(draws**0.5).to(scored.logits.dtype), not last


def _with_classes(scored: Scored, sampler: LabelSampler, draws: int) -> Iterator[tuple[Tensor, bool]]:
    assert scored.logits is not None
    classes = scored.logits.shape[1]
    if classes > CLASSES:
        raise HoldfastError(
            f"fisher='exact' takes a backward pass per class, and there are {classes}",
            wanted=f"at most {CLASSES} classes",
            remedy="ask for fisher='sampled' with more draws (draws=8, say)",
        )
    probabilities = _probabilities(scored.logits)
    signs = torch.where(_uniforms(scored, sampler, classes) < 0.5, -1, 1).to(probabilities.dtype)
    for label, sign in enumerate(signs):
        gradient = _minus_label(scored, probabilities.clone(), torch.full_like(sign, label, dtype=torch.long))
        weight = probabilities[:, label].sqrt() * sign
        yield gradient.mul_(weight[:, None]).to(scored.logits.dtype), label < classes - 1


_GRADIENTS = {"data": _with_data, "sampled": _with_draws, "exact": _with_classes}


def summed_loss(scored: Scored) -> Tensor:
    """The cross-entropy of the data's labels summed over the batch's items, in nats."""
    if scored.logits is None:
        assert scored.loss is not None
        return scored.loss
    assert scored.labels is not None
    logits = scored.logits.to(torch.promote_types(scored.logits.dtype, torch.float32))
    return F.cross_entropy(logits, scored.labels, ignore_index=IGNORED, reduction="sum")
