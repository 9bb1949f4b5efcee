"""Documents: what was read, its fingerprint, and a part of it held out for measuring."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar, overload

import torch

from holdfast.data.table import Columns, Document
from holdfast.errors import HoldfastError

NO_COLUMNS = Columns()  # of plain text
Item = TypeVar("Item")
Row = TypeVar("Row", bound=Mapping[str, Any])


@dataclass(frozen=True)
class Documents:
    """Texts, or pairs of prompt and completion.

    `columns` are those that were read, named or guessed; `notes` say what was left out and why.
    """

    items: tuple[Document, ...]
    name: str
    columns: Columns = NO_COLUMNS
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    @property
    def paired(self) -> bool:
        """Whether these are prompts and completions: only completions are scored."""
        return isinstance(self.items[0], tuple)

    @property
    def description(self) -> str:
        """What was read, how many, from which columns, and what was left out."""
        what = "pair" if self.paired else "text"
        count = f"{len(self):,} {what}{'s' if len(self) != 1 else ''}"
        if self.columns.text is not None:
            count += f" (column {self.columns.text!r})"
        elif self.columns.prompt is not None:
            count += f" (prompt {self.columns.prompt!r}, completion {self.columns.completion!r})"
        return "; ".join([f"{self.name}: {count}", *self.notes])

    @cached_property
    def sha256(self) -> str:
        """Fingerprint of the content: hexadecimal, and the same in whatever order the documents were read."""
        return hashlib.sha256(b"".join(sorted(map(_digest, self.items)))).hexdigest()


@overload
def split_off(items: Documents, held_out: float, *, seed: int = 0) -> tuple[Documents, Documents]: ...
@overload
def split_off(items: Sequence[Row], held_out: float, *, seed: int = 0) -> tuple[list[Row], list[Row]]: ...
def split_off(items: Any, held_out: float, *, seed: int = 0) -> tuple[Any, Any]:
    """Split (rest, held out), decided by content alone: the order of the items and of their files does not matter.

    Both parts come out in the order of a hash of seed and content. Equal items stay on one side, so that nothing
    measured was trained on; `held_out` can therefore be missed by a few where items repeat.

    Args:
        items: documents, or rows of token ids (for one long text, whose blocks are all there is to split).
        held_out: a share in (0, 1), or a number of items.
        seed: another seed holds out others.

    Raises:
        HoldfastError: when one of the parts would be empty.
    """
    if isinstance(items, Documents):
        rest, held = _split(items.items, _digest, held_out, seed)
        note = f"of {len(items):,}, {len(held):,} held out"
        return (
            replace(items, items=tuple(rest), notes=(*items.notes, f"{note} and not here")),
            replace(items, items=tuple(held), notes=(*items.notes, f"the part {note}")),
        )
    return _split(items, _digest_of_row, held_out, seed)


def _split(
    items: Sequence[Item], digest: Callable[[Item], bytes], held_out: float, seed: int
) -> tuple[list[Item], list[Item]]:
    if held_out <= 0 or (held_out >= 1 and held_out != int(held_out)):
        raise HoldfastError(f"held_out is {held_out}", wanted="a share between 0 and 1, or a number of items")
    groups: dict[bytes, list[Item]] = {}
    for item in items:
        groups.setdefault(hashlib.sha256(b"%d:" % seed + digest(item)).digest(), []).append(item)
    wanted = int(held_out) if held_out >= 1 else max(1, round(held_out * len(items)))
    rest: list[Item] = []
    held: list[Item] = []
    for _, group in sorted(groups.items(), key=lambda pair: pair[0]):
        (held if len(held) + len(group) <= wanted else rest).extend(group)
    if not rest or not held:
        raise HoldfastError(
            f"{wanted} of {len(items)} items ({len(groups)} of them distinct) can't be held out",
            wanted="something on both sides: to train on, and to measure",
            causes=["the data is one document", "the same document is repeated", "more is held out than there is"],
            remedy="give more data, or hold out less; one long text is split after tokenising it, into its blocks",
        )
    return rest, held


def _digest(document: Document) -> bytes:
    return hashlib.sha256(json.dumps(document).encode()).digest()


def _digest_of_row(row: Mapping[str, Any]) -> bytes:
    columns = [(name, torch.as_tensor(row[name]).tolist()) for name in sorted(row)]
    return hashlib.sha256(json.dumps(columns).encode()).digest()
