"""Source sequences at training time: which ones a step sees, and how they make a batch."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from holdfast.batches import batches_of, to_device
from holdfast.errors import HoldfastError
from holdfast.layers import device_of
from holdfast.likelihood import IGNORED, Items
from holdfast.likelihoods.batches import INPUTS, main_input

Row = dict[str, Tensor]
MASK, POSITIONS = "attention_mask", "position_ids"
WHOLE = ("pixel_values",)  # never padded along its first dimension, whatever its size
SPEECH = ("input_values", "input_features")  # their labels are not as long as they are


class SourceRows:
    """Unpadded inputs of any kind, drawn a few per step: passes over all of them, each pass in an order of its own.

    What a step draws is a function of the step, the rank and the seed alone, so a resumed run draws the same.

    Args:
        source: batches (mappings of tensors whose first dimension is the batch) or a tokenised `datasets.Dataset`.
        sequences: inputs per evaluation.
        every: evaluate at every n-th step.
        seed: of the order.
        reader: of the model's scored items.
        scored: leave out inputs that have no scored item, where a batch tells by itself.

    Raises:
        HoldfastError: batches of another form, or nothing with a scored item.
    """

    def __init__(
        self, source: Any, sequences: int, every: int, seed: int, reader: Items, *, scored: bool = True
    ) -> None:
        self.sequences, self.every, self.seed = sequences, every, seed
        rows = [row for batch in batches_of(source) for row in _split(batch)]
        _check_rows(rows, reader)
        self.rows = [row for row in rows if not scored or reader.items_in(_together([row])) != 0]
        if not self.rows:
            raise HoldfastError(
                "the source has no sequence with a scored item", remedy="pass longer or unmasked sequences"
            )
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

    def check_storable(self) -> None:
        """Raise HoldfastError where an input alone has other items than in a batch: padding that no mask tells."""
        name = next((name for name in SPEECH if name in self.rows[0]), None)
        if name is None or MASK in self.rows[0] or len({row[name].shape for row in self.rows}) == 1:
            return
        raise HoldfastError(
            f"{name} differ in length and come without an attention_mask: their padding counts as sound, and answers "
            "stored of each alone are not those of a batch",
            remedy="pass an attention_mask, recordings of one length, or leave top_k at None",
        )

    def batch(self, chosen: list[int], model: nn.Module) -> dict[str, Tensor]:
        """The chosen rows as one batch on the model's device, padded on the right."""
        return to_device(_together([self.rows[i] for i in chosen]), device_of(model))


def _split(batch: Any) -> Iterator[Row]:
    """The inputs of a batch without their padding; the mask that is left is all ones.

    Recordings have a mask only where the source has one: models that were trained without want none.
    """
    tensors = {n: v for n, v in batch.items() if isinstance(v, Tensor)} if isinstance(batch, Mapping) else {}
    _check_batch(batch, tensors)
    mask = tensors.get(MASK)
    if mask is None and "input_ids" in tensors:
        mask = torch.ones_like(tensors["input_ids"])
    speech = any(name in tensors for name in SPEECH)
    for number in range(len(next(iter(tensors.values())))):
        attended = None if mask is None else mask[number] != 0
        row = {} if attended is None else {MASK: attended[attended].long().cpu()}
        for name, value in tensors.items():
            if name not in (MASK, POSITIONS):
                whole = name in WHOLE or (name == "labels" and (speech or value.is_floating_point()))
                row[name] = _unpadded(value[number], None if whole else attended).cpu()
        yield row


def _unpadded(value: Tensor, attended: Tensor | None) -> Tensor:
    return value if attended is None or value.shape[:1] != attended.shape else value[attended]


def _together(rows: list[Row]) -> Row:
    return {name: _padded(name, [row[name] for row in rows]) for name in rows[0]}


def _padded(name: str, values: list[Tensor]) -> Tensor:
    if len({value.shape for value in values}) == 1:
        return torch.stack(values)
    if len({value.shape[1:] for value in values}) > 1 or name in WHOLE:
        raise HoldfastError(
            f"{name} of shapes {', '.join(sorted({str(tuple(value.shape)) for value in values}))} make no batch",
            wanted="inputs that differ in length alone",
            remedy="resize images to one size",
        )
    blank = IGNORED if name == "labels" and not values[0].is_floating_point() else 0
    return pad_sequence(values, batch_first=True, padding_value=blank)


def _check_batch(batch: Any, tensors: Row) -> None:
    sizes = {value.shape[0] if value.dim() else 0 for value in tensors.values()}
    if len(sizes) == 1 and (MASK not in tensors or tensors[MASK].dim() == 2):
        return
    shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in tensors.items())
    raise HoldfastError(
        f"a batch of the source is a {type(batch).__name__} with {shapes or 'no tensors'}",
        wanted="a mapping of tensors that share their first dimension, such as input_ids (batch, length), "
        "and attention_mask (batch, length) where there is padding",
    )


def _check_rows(rows: list[Row], reader: Items) -> None:
    held = {frozenset(row) for row in rows}
    names = ", ".join(sorted({name for row in held for name in row}))
    if len(held) > 1:
        raise HoldfastError(
            f"batches of the source hold different things: {names}", wanted="the same names in every batch"
        )
    if rows and reader.forward_loss is None and main_input(reader.model, rows[0]) is None:
        raise HoldfastError(f"the source's batches hold {names}", wanted=f"one of {', '.join(INPUTS)}")


def check_counts(weight: float, sequences: int, every: int) -> None:
    """Raise HoldfastError for numbers without a meaning."""
    if not 0 <= weight < float("inf") or sequences < 1 or every < 1:
        raise HoldfastError(
            f"weight={weight}, sequences={sequences}, every={every}",
            wanted="a weight of at least 0, and counts of at least 1",
        )
