"""The two sides of a run: old data and new data, each with a part held out to measure on."""

import hashlib
from dataclasses import dataclass
from typing import Any

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

    rows: list[Any]
    held_out: list[Any]
    about: dict[str, Any]


def read_side(data: DataSettings, tokenizer: Any, length: int, held_out: float = 0.0) -> Side:
    """Read and tokenise one data set; documents are split, or the blocks of a single long text.

    Args:
        data: where it is.
        tokenizer: the model's.
        length: tokens per row at most.
        held_out: share to measure on, by a hash of the content; 0 holds nothing out.

    Raises:
        HoldfastError: unreadable data, or too little to hold some out.
    """
    documents = read(data.path, Columns(data.text, data.prompt, data.completion))
    about = {"path": data.path, "description": documents.description, "sha256": documents.sha256, "item": "token"}
    if not held_out:
        return Side(tokenise(documents, tokenizer, length=length), [], about)
    if len(documents) > 1:
        rest, measured = split_off(documents, held_out)
        rows = [tokenise(part, tokenizer, length=length) for part in (rest, measured)]
    else:
        rows = list(split_off(tokenise(documents, tokenizer, length=length), held_out))
    return Side(rows[0], rows[1], about)


def sampled_side(model: Any, samples: int, length: int, seed: int, held_out: float) -> Side:
    """Text of the model's own; a part of it is held out, since the loss on text distilled on would flatter.

    Raises:
        HoldfastError: a model that can't be sampled from, because it does not generate or its weights are not finite.
    """
    measured = round(samples * held_out)
    try:
        rows: list[Any] = [*sample_from(model, samples + measured, length, seed=seed)]
    except RuntimeError as error:
        if "probability tensor" not in str(error):
            raise
        raise HoldfastError(
            "the model can't be sampled from: its probabilities are not finite",
            causes=["its weights hold NaN", "float16 overflows"],
            remedy="load it in float32, or name source data",
        ) from error
    about = {"path": SELF, "description": f"{samples} sequences sampled from the model itself", "item": "token"}
    return Side(rows[:samples], rows[samples:], about)


def limited(rows: list[Any], max_items: int) -> list[Any]:
    """The first rows, as many as hold `max_items` tokens."""
    kept, items = [], 0
    for row in rows:
        if items >= max_items:
            break
        kept.append(row)
        items += len(row["input_ids"])
    return kept


def held_out_loss(model: Any, side: Side | None, name: str) -> float | None:
    """Mean nats per token on the held-out part; None without data.

    Args:
        model: in any mode.
        side: target or source.
        name: what is measured, for the progress bar and for errors.
    """
    if side is None:
        return None
    return mean_loss(model, limited(side.held_out, MEASURED_ITEMS), name=name, progress=True).nats


def fingerprint(side: Side | None) -> str | None:
    """A hash of the side's rows, labels included; None for text of the model's own, which comes anew each time."""
    if side is None or side.about["path"] == SELF:
        return None
    digest = hashlib.sha256()
    for row in (*side.rows, *side.held_out):
        for name in ("input_ids", "labels"):
            digest.update(row[name].numpy().tobytes())
    return digest.hexdigest()
