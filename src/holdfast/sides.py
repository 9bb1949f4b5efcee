"""The two sides of a run: old data and new data, each with a part held out to measure on."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

from holdfast.data import Columns, read, split_off, tokenise
from holdfast.errors import HoldfastError
from holdfast.recipe import DataSettings
from holdfast.sampling import sample_from

SELF = "self"
MEASURED_ITEMS = 100_000  # scored tokens per side at most: a standard error of about 0.005 nats


@dataclass
class Side:
    """One data set: to train or distil on, to measure on, what it is, and what steers a budget."""

    rows: list[Any]
    held_out: list[Any]
    about: dict[str, Any]
    steering: list[Any] = field(default_factory=list)


def read_side(data: DataSettings, tokenizer: Any, length: int, held_out: float = 0.0, steering: float = 0.0) -> Side:
    """Read and tokenise one data set; documents are split, or the blocks of a single long text.

    Args:
        data: where it is.
        tokenizer: the model's.
        length: tokens per row at most.
        held_out: share to measure on, by a hash of the content; 0 holds nothing out.
        steering: share to steer a budget by, disjoint from both other parts.

    Raises:
        HoldfastError: unreadable data, or too little to hold some out.
    """
    documents = read(data.path, Columns(data.text, data.prompt, data.completion))
    about = {"path": data.path, "description": documents.description, "sha256": documents.sha256, "item": "token"}
    if not held_out:
        return Side(tokenise(documents, tokenizer, length=length), [], about)
    if len(documents) > 1:
        parts = _parts(documents, held_out, steering)
        rows, measured, steered = ([] if p is None else tokenise(p, tokenizer, length=length) for p in parts)
        return Side(rows, measured, about, steered)
    rows, measured, steered = _parts(tokenise(documents, tokenizer, length=length), held_out, steering)
    return Side(rows, measured, about, steered or [])


def _parts(items: Any, held_out: float, steering: float) -> tuple[Any, Any, Any]:
    """The rest, what is held out, and what steers; None where nothing does."""
    rest, measured = split_off(items, held_out)
    if not steering:
        return rest, measured, None
    rest, steered = split_off(rest, steering / (1 - held_out), seed=1)
    return rest, measured, steered


def sampled_side(model: Any, samples: int, length: int, seed: int, held_out: float, steering: float = 0.0) -> Side:
    """Text of the model's own; a part of it is held out, since the loss on text distilled on would flatter.

    `held_out` and `steering` are parts beside the `samples`, as shares of their number.

    Raises:
        HoldfastError: a model that can't be sampled from, because it does not generate or its weights are not finite.
    """
    end = samples + round(samples * held_out)
    try:
        rows: list[Any] = [*sample_from(model, end + round(samples * steering), length, seed=seed)]
    except RuntimeError as error:
        if "probability tensor" not in str(error):
            raise
        raise HoldfastError(
            "the model can't be sampled from: its probabilities are not finite",
            causes=["its weights hold NaN", "float16 overflows"],
            remedy="load it in float32, or name source data",
        ) from error
    about = {"path": SELF, "description": f"{samples} sequences sampled from the model itself", "item": "token"}
    return Side(rows[:samples], rows[samples:end], about, rows[end:])


def limited(rows: list[Any], max_items: int) -> list[Any]:
    """The first rows, as many as hold `max_items` tokens."""
    kept, items = [], 0
    for row in rows:
        if items >= max_items:
            break
        kept.append(row)
        items += len(row["input_ids"])
    return kept


def fingerprint(side: Side | None) -> str | None:
    """A hash of the side's rows, labels included; None for text of the model's own, which comes anew each time."""
    if side is None or side.about["path"] == SELF:
        return None
    digest = hashlib.sha256()
    for row in (*side.rows, *side.held_out, *side.steering):
        for name in ("input_ids", "labels"):
            digest.update(row[name].numpy().tobytes())
    return digest.hexdigest()
