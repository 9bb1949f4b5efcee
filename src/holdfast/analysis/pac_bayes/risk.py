"""The losses that a certificate bounds: one number in [0, 1] for each independent example."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import default_collate

from holdfast.batches import collate, to_device
from holdfast.errors import HoldfastError
from holdfast.layers import device_of
from holdfast.likelihood import ForwardLoss, Items
from holdfast.likelihoods.categorical import Categorical
from holdfast.likelihoods.likelihood import precise
from holdfast.pretrained import evaluating

LOSSES = ("error", "nats")


@dataclass(frozen=True)
class Losses:
    """How an example's loss is taken.

    Items of one example (the tokens of a document) depend on each other, so an example's loss is their mean, and the
    number of examples, not of items, is what a bound counts.

    Args:
        kind: "error": the share of items whose most probable label is wrong. "nats": the cross-entropy of an item,
            cut off at `ceiling` and divided by it.
        ceiling: nats.
        batch_size: examples at a time.
        forward_loss: as in `Anchor.estimate`, returning (logits, labels); each row of the logits is then an example.
        collate: examples -> a batch; None: rows of tokens, or with a `forward_loss` torch's own way.
    """

    kind: str = "error"
    ceiling: float = 8.0
    batch_size: int = 16
    forward_loss: ForwardLoss | None = None
    collate: Callable[[list[Any]], Any] | None = None

    def __post_init__(self) -> None:
        if self.kind not in LOSSES or self.ceiling <= 0:
            raise HoldfastError(
                f"loss {self.kind!r} with a ceiling of {self.ceiling}", wanted=f"{' or '.join(LOSSES)}, above 0 nats"
            )

    @property
    def most(self) -> float:
        """What a loss of 1 stands for, in the losses' own unit: C."""
        return self.ceiling if self.kind == "nats" else 1.0

    @torch.no_grad()
    def of(self, model: nn.Module, examples: Sequence[Any]) -> Tensor:
        """(n,) float64: the loss of each example, from 0 to 1; eval mode, modes are restored.

        Raises:
            HoldfastError: no example, one without a scored item, or a likelihood without classes.
        """
        if not examples:
            raise HoldfastError("there is no example to measure a loss on", remedy="give more data")
        reader, device = Items(model, self.forward_loss), device_of(model)
        join = self.collate or (collate if self.forward_loss is None else default_collate)
        found = []
        with evaluating(model):
            for start in range(0, len(examples), self.batch_size):
                batch: Any = join(list(examples[start : start + self.batch_size]))
                found.append(self._of_batch(reader.read(to_device(batch, device))))
        return torch.cat(found)

    def _of_batch(self, likelihood: Any) -> Tensor:
        if not isinstance(likelihood, Categorical):
            raise HoldfastError(
                f"the loss is that of {type(likelihood).__name__}",
                wanted="one of classes: a language model or a classifier",
                causes=["a regression's loss has no upper limit, and a bound needs one"],
            )
        outputs, labels, scored = likelihood.outputs, likelihood.labels(), likelihood.scored
        each_a_row = self.forward_loss is not None
        rows = torch.arange(len(labels), device=labels.device) if each_a_row else likelihood.sequence
        labels = labels[scored]
        if self.kind == "nats":
            each = F.cross_entropy(precise(outputs[scored]), labels, reduction="none")
            each = each.clamp(max=self.ceiling) / self.ceiling
        else:
            each = (outputs[scored].argmax(dim=1) != labels).float()
        count = torch.bincount(rows[scored], minlength=int(rows.max()) + 1)
        if bool((count == 0).any()):
            raise HoldfastError("an example has no scored item, so it has no loss", remedy="leave it out")
        return (torch.bincount(rows[scored], each.double(), minlength=len(count)) / count).cpu()
