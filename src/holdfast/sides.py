"""The two sides of a run: old data and new data, each with a part held out to measure on."""

from dataclasses import dataclass
from typing import Any

from holdfast.batches import Row
from holdfast.data import Columns, read, split_off, tokenise
from holdfast.errors import HoldfastError
from holdfast.evaluation import mean_loss
from holdfast.recipe import DataSettings
from holdfast.sampling import sample_from

SELF = "self"
MEASURED_ITEMS = 100_000  # scored tokens per side at most: a standard error of about 0.005 nats


@dataclass
class Side:
    """One data set: what is trained or distilled on, what is measured on, and what it is."""

    rows: list[Row]
    held_out: list[Row]
    about: dict[str, Any]


def read_side(data: DataSettings, tokenizer: Any, length: int, held_out: float = 0.0) -> Side:
    documents = read(data.path, Columns(data.text, data.prompt, data.completion))
    rows = tokenise(documents, tokenizer, length=length)
    kept, measured = split_off(rows, held_out, seed=0) if held_out else (rows, [])
    if held_out and (not kept or not measured):
        raise HoldfastError(
            f"{data.path} is too short: {len(rows)} sequences of up to {length} tokens",
            wanted="enough to train on and to hold some out",
            remedy="give more data, or a smaller --length",
        )
    about = {"path": data.path, "description": documents.description, "sha256": documents.sha256, "item": "token"}
    return Side(kept, measured, about)


def sampled_side(model: Any, samples: int, length: int, seed: int, held_out: float) -> Side:
    """Text of the model's own; a part of it is held out, since the loss on text distilled on would flatter."""
    measured = round(samples * held_out)
    rows: list[Any] = [*sample_from(model, samples + measured, length, seed=seed)]
    about = {"path": SELF, "description": f"{samples} sequences sampled from the model itself", "item": "token"}
    return Side(rows[:samples], rows[samples:], about)


def limited(rows: list[Row], max_items: int) -> list[Row]:
    kept, items = [], 0
    for row in rows:
        if items >= max_items:
            break
        kept.append(row)
        items += len(row["input_ids"])
    return kept


def held_out_loss(model: Any, side: Side | None) -> float | None:
    return None if side is None else mean_loss(model, limited(side.held_out, MEASURED_ITEMS), progress=True).nats
