"""Batches: what a model's forward is called with, from whatever the user holds."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from holdfast.errors import HoldfastError
from holdfast.likelihood import IGNORED

Row = Mapping[str, Any]


def batches_of(source: Any, batch_size: int = 8) -> Iterable[Any]:
    """Batches of an iterable of batches (returned as it is) or of a `datasets.Dataset` of tokenised rows.

    Raises:
        HoldfastError: a dataset without "input_ids", or something that can't be iterated.
    """
    columns = getattr(source, "column_names", None)
    if columns is None:
        if isinstance(source, (str, Mapping)) or not isinstance(source, Iterable):
            raise HoldfastError(
                f"source is a {type(source).__name__}",
                wanted="an iterable of batches or a datasets.Dataset",
                remedy="tokenise text first (`holdfast anchor --source FILE` does it); put a single batch in a list",
            )
        return source
    if "input_ids" not in columns:
        raise HoldfastError(
            f"the dataset has the columns {', '.join(columns)}",
            wanted="tokenised rows with input_ids (and labels, where only part is scored)",
            remedy="tokenise it first, or name a file on the command line, which does it for you",
        )
    rows = [{name: row[name] for name in ("input_ids", "attention_mask", "labels") if name in row} for row in source]
    return [collate(rows[i : i + batch_size]) for i in range(0, len(rows), batch_size)]


def collate(rows: Sequence[Row], padding_id: int = 0) -> dict[str, Tensor]:
    """Pad rows of token ids on the right: (batch, longest); padding is unattended and unscored."""
    ids = [torch.as_tensor(row["input_ids"]) for row in rows]
    masks = [torch.as_tensor(row.get("attention_mask", torch.ones_like(i))) for row, i in zip(rows, ids, strict=True)]
    labels = [torch.as_tensor(row.get("labels", i)) for row, i in zip(rows, ids, strict=True)]
    attention = pad_sequence(masks, batch_first=True)
    padded = pad_sequence(labels, batch_first=True, padding_value=IGNORED)
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=padding_id),
        "attention_mask": attention,
        "labels": padded.masked_fill(attention == 0, IGNORED),
    }


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors on the device."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: to_device(value, device) for name, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return type(batch)(to_device(value, device) for value in batch)
    return batch
