"""The one table of tiny networks that every implementation is tested on.

A network is built anew, with the same float64 weights, by each call of `build`; its data are single sequences
(or vectors, or images), which `Network.batches` puts together in any size, order and padding.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from architectures import (
    VOCABULARY,
    Lookup,
    Twice,
    bert,
    checkpointed,
    convolution_1d,
    convolution_2d,
    dilated,
    gpt2,
    initialised,
    llama,
    mlp,
)
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import BertForSequenceClassification, BertForTokenClassification

IGNORED = -100
Row = dict[str, Tensor]
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Network:
    """A model, its source data and what the laws need to know of it."""

    name: str
    build: Callable[[], nn.Module]
    rows: list[Row]
    targets: str | list[str]
    forward_loss: Callable[[nn.Module, Batch], tuple[Tensor, Tensor]] | None = None
    causal: bool = False
    plain: Callable[[], nn.Module] | None = None  # the same function without checkpointing
    lora: bool = True  # whether PEFT's LoRA on it is a shift of the weights

    def batches(self, size: int = 2, rows: Iterable[Row] | None = None, **padding: Any) -> list[Batch]:
        """The rows in their order, `size` at a time."""
        rows = list(self.rows if rows is None else rows)
        return [self.collate(rows[start : start + size], **padding) for start in range(0, len(rows), size)]

    def collate(self, rows: list[Row], side: str = "right", extra: int = 0) -> Batch:
        """One batch; sequences of tokens are padded on either side, by `extra` more than they need."""
        if "input_ids" not in rows[0]:
            return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        pad = partial(pad_sequence, batch_first=True, padding_side=side)
        longest = max(len(row["input_ids"]) for row in rows) + extra
        blank = torch.zeros(longest, dtype=torch.long)  # sets the length, and is dropped again
        ids = pad([row["input_ids"] for row in rows] + [blank], padding_value=1)[:-1]
        mask = pad([torch.ones_like(row["input_ids"]) for row in rows] + [blank])[:-1]
        labels = [row["labels"] for row in rows]
        together = pad([*labels, blank], padding_value=IGNORED)[:-1] if labels[0].dim() == 1 else torch.stack(labels)
        # Positions counted from the first real token, so that padding on the left moves nothing.
        positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
        return {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "labels": together}

    @property
    def padded(self) -> bool:
        """Whether sequences of several lengths are padded."""
        return "input_ids" in self.rows[0]


def _drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _ids(seed: int, *shape: int, high: int = VOCABULARY) -> Tensor:
    return torch.randint(2, high, shape, generator=torch.Generator().manual_seed(seed))


def _vectors(*shape: int, classes: int) -> list[Row]:
    return [{"x": _drawn(i, *shape), "labels": _ids(i, high=2 + classes) - 2} for i in range(5)]


def logits_and_labels(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """The `forward_loss` of every network that is not of transformers: (items, classes) and (items,)."""
    inputs = batch["x"] if "x" in batch else batch["input_ids"]
    return model(inputs).flatten(0, -2), batch["labels"].flatten()


def _text(*, prompt: int) -> list[Row]:
    """Sequences of several lengths; the first `prompt` labels of every other one are not scored."""
    rows = []
    for seed, length in enumerate((5, 3, 6, 4, 5)):
        ids = _ids(seed, length)
        labels = ids.clone()
        labels[: prompt if seed % 2 == 0 else 0] = IGNORED
        if seed == 2:
            labels[-1] = IGNORED  # and one ends before its text does
        rows.append({"input_ids": ids, "labels": labels})
    return rows


def _tagged() -> list[Row]:
    rows = _text(prompt=1)
    return [row | {"labels": torch.where(row["labels"] == IGNORED, IGNORED, row["labels"] % 3)} for row in rows]


def _classified() -> list[Row]:
    return [row | {"labels": row["input_ids"][0] % 3} for row in _text(prompt=0)]


_CHECKPOINTED = {"rows": _vectors(5, classes=3), "targets": "block.*|head", "forward_loss": logits_and_labels}
NETWORKS = {
    network.name: network
    for network in (
        Network("mlp", mlp, _vectors(5, classes=3), "all-linear", logits_and_labels),
        Network("conv1d", convolution_1d, _vectors(2, 7, classes=4), ["first", "second", "head"], logits_and_labels),
        Network("conv2d", convolution_2d, _vectors(2, 4, 5, classes=3), ["first", "second"], logits_and_labels),
        Network("dilated", dilated, _vectors(2, 4, 5, classes=3), ["first", "second"], logits_and_labels, lora=False),
        Network("twice", lambda: initialised(Twice()), _vectors(4, classes=3), "all-linear", logits_and_labels),
        Network("embedding", lambda: initialised(Lookup()), _tagged(), ["embed", "head"], logits_and_labels),
        Network("llama", llama, _text(prompt=2), "all-linear", causal=True),
        Network("gpt2", gpt2, _text(prompt=2), ["c_attn", "c_proj", "wte"], causal=True),
        Network("bert-tokens", partial(bert, BertForTokenClassification), _tagged(), "all-linear"),
        Network("bert-sequence", partial(bert, BertForSequenceClassification), _classified(), "all-linear"),
        Network(
            "reentrant", partial(checkpointed, "reentrant"), plain=partial(checkpointed, "plain"), **_CHECKPOINTED
        ),
        Network(
            "recomputed", partial(checkpointed, "recomputed"), plain=partial(checkpointed, "plain"), **_CHECKPOINTED
        ),
    )
}


def matrix(module: nn.Module, weight: Tensor) -> Tensor:
    """A weight as (out, in), written down kind by kind."""
    if isinstance(module, nn.Embedding) or type(module).__name__ == "Conv1D":
        return weight.T
    return weight.flatten(1)
