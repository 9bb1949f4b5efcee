"""Source sequences at training time: which ones a step sees."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from holdfast.batches import batches_of, collate, to_device
from holdfast.errors import HoldfastError
from holdfast.layers import device_of
from holdfast.likelihood import IGNORED, inputs_of, is_causal, scored_mask


class SourceRows:
    """Unpadded sequences, drawn a few per step: passes over all of them, each pass in an order of its own.

    What a step draws is a function of the step, the rank and the seed alone, so a resumed run draws the same.
    """

    def __init__(self, source: Any, sequences: int, every: int, seed: int) -> None:
        self.rows = _rows(source)
        self.sequences, self.every, self.seed = sequences, every, seed
        self._evaluations = 0

    def now(self, step: int | None) -> int:
        """The step given, or the number of evaluations so far where nobody counts steps."""
        self._evaluations += 1
        return self._evaluations - 1 if step is None else step

    def chosen(self, step: int) -> list[int]:
        """Indices of the rows of this step on this rank."""
        together = dist.is_available() and dist.is_initialized()
        rank, world = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
        start = (step // self.every * world + rank) * self.sequences
        return [self._at(position) for position in range(start, start + self.sequences)]

    def _at(self, position: int) -> int:
        passes, place = divmod(position, len(self.rows))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + passes)
        return int(torch.randperm(len(self.rows), generator=generator)[place])

    def batch(self, chosen: list[int], model: nn.Module) -> tuple[dict[str, Tensor], Tensor]:
        """Inputs of the forward pass, and labels (batch, length) as the logits' positions predict them."""
        batch = to_device(collate([self.rows[i] for i in chosen]), device_of(model))
        return inputs_of(batch), scored_mask(batch, shifted=is_causal(model))[0]


def check_counts(weight: float, sequences: int, every: int) -> None:
    """Raise HoldfastError for numbers without a meaning."""
    if not 0 <= weight < float("inf") or sequences < 1 or every < 1:
        raise HoldfastError(
            f"weight={weight}, sequences={sequences}, every={every}",
            wanted="a weight of at least 0, and counts of at least 1",
        )


def _rows(source: Any) -> list[dict[str, Tensor]]:
    rows = []
    for batch in batches_of(source):
        if not isinstance(batch, Mapping) or "input_ids" not in batch:
            raise HoldfastError(
                "the source's batches have no input_ids", wanted="tokenised text: batches with input_ids"
            )
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
        labels = batch.get("labels", batch["input_ids"])
        for ids, attended, label in zip(batch["input_ids"], mask, labels, strict=True):
            keep = attended != 0
            if int((label[keep][1:] != IGNORED).sum()) > 0:
                rows.append({"input_ids": ids[keep].cpu(), "labels": label[keep].cpu()})
    if not rows:
        raise HoldfastError("the source has no sequence with a scored item", remedy="pass longer or unmasked text")
    return rows
