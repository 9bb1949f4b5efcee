"""What an analysis is of: a model with old and new data; by default the model, prose and code of the demo."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from holdfast.batches import Row, collate
from holdfast.comparison import blocks
from holdfast.data import check_tokenizer
from holdfast.errors import HoldfastError
from holdfast.language_model import load_model, load_tokenizer
from holdfast.models import shipped
from holdfast.recipe import DataSettings
from holdfast.sides import SELF, Side, limited, read_side, sampled_side
from holdfast.tasks import code, prose

SHIPPED = {"source": (prose, "documentation prose"), "target": (code, "Python code")}
TOGETHER = 16  # rows that are measured at once
HELD_OUT = 0.2  # of the user's data: what losses are measured on
SAMPLES = 64  # sequences, of text that the model samples itself


@dataclass(frozen=True)
class Asked:
    """What the user named; None: the demo's.

    Args:
        length: tokens per row.
        train_items: tokens per side to learn or to measure curvature from, at most.
        test_items: other tokens per side, to measure losses on, at most.
    """

    model: str | None = None
    source: str | None = None
    target: str | None = None
    length: int = 128
    train_items: int = 100_000
    test_items: int = 20_000
    dtype: str = "auto"
    seed: int = 0


@dataclass
class Subject:
    """A pre-trained model in eval mode and what was read: sides' `rows` to learn from, `held_out` to measure on."""

    name: str
    model: Any
    sides: dict[str, Side]

    @property
    def source(self) -> Side:
        """Old data."""
        return self.sides["source"]

    @property
    def target(self) -> Side:
        """New data."""
        return self.sides["target"]

    @property
    def about(self) -> dict[str, Any]:
        """For the settings of a result."""
        return {"model": self.name, **{key: side.about for key, side in self.sides.items()}}


def batches(rows: Sequence[Row], size: int = TOGETHER) -> list[dict[str, Any]]:
    """Rows as batches, for losses alone."""
    return [collate(rows[i : i + size]) for i in range(0, len(rows), size)]


def read_subject(asked: Asked, *sides: str) -> Subject:
    """Load the model and read the sides that are needed.

    Raises:
        HoldfastError: no such model, unreadable data, or too little to hold some out.
    """
    name = asked.model or str(shipped())
    tokenizer, model = load_tokenizer(name), load_model(name, asked.dtype)
    check_tokenizer(tokenizer, model, length=asked.length)
    found = {side: _side(side, getattr(asked, side), asked, model, tokenizer) for side in sides}
    return Subject(asked.model or shipped().name, model, found)


def _side(side: str, data: str | None, asked: Asked, model: Any, tokenizer: Any) -> Side:
    if data is None:
        return _shipped(side, asked, tokenizer)
    if data == SELF:
        if side == "target":
            raise HoldfastError("--target self: a model can't learn from its own text", remedy="name new data")
        read = sampled_side(model, SAMPLES, asked.length, asked.seed, HELD_OUT)
    else:
        read = read_side(DataSettings(path=data), tokenizer, asked.length, HELD_OUT)
    return replace(read, rows=limited(read.rows, asked.train_items), held_out=limited(read.held_out, asked.test_items))


def _shipped(side: str, asked: Asked, tokenizer: Any) -> Side:
    """Blocks of the training and of the test part of an embedded task."""
    task, description = SHIPPED[side]
    rows = {
        split: blocks(tokenizer, task.documents(split), asked.length, max(items // asked.length, 1))
        for split, items in (("train", asked.train_items), ("test", asked.test_items))
    }
    about = {"path": "shipped", "description": description, "item": task.ITEM}
    return Side(rows["train"], rows["test"], about)
