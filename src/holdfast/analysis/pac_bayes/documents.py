"""Independent examples out of documents: one window of each, and a split of the documents in two."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from holdfast.data import Documents, read, split_off, tokenise
from holdfast.errors import HoldfastError
from holdfast.tasks import code
from holdfast.tasks.standard_library import fraction

INSTALLED = "modules of the installed PyTorch, without their prose"
MODULES = 700  # of PyTorch's
SHORTEST, LONGEST = 200, 200_000  # characters of a module that counts as one; longer ones are tables
SKIPPED = {"testing", "test", "_vendor", "__pycache__", "_generated"}
CHARACTERS = 12  # of text looked at for each token wanted


@dataclass
class Half:
    """Documents of one half, as what is trained on and as what is measured on: (one row for each document)."""

    training: list[Any]
    examples: list[Any]


def read_documents(data: str | None) -> Documents:
    """Distinct documents of DATA, or modules of the installed PyTorch without their prose.

    Documents are taken for drawn independently from one distribution: the certificate is about fresh ones from it.
    Equal ones count once. Nothing before the bound may have seen them: the shipped model was pre-trained on the prose
    of Python's standard library, docstrings of its modules included, so those modules would not do.
    """
    found = Documents(tuple(_installed_code()), INSTALLED) if data is None else read(data)
    return replace(found, items=tuple(dict.fromkeys(found.items)))


def _installed_code() -> Iterator[str]:
    """Modules of PyTorch, which is there wherever Holdfast is; a sample by their names' hashes."""
    root, count = Path(torch.__file__).parent, 0
    paths = [path for path in root.rglob("*.py") if not SKIPPED & set(path.relative_to(root).parts)]
    for path in sorted(paths, key=lambda path: fraction(path.relative_to(root).as_posix(), "certificate")):
        text = code.strip(path.read_text(encoding="utf-8", errors="replace"))
        if SHORTEST <= len(text) <= LONGEST:
            yield text
            count += 1
        if count == MODULES:
            return


def halves(
    documents: Documents, tokenizer: Any, length: int, *, share: float, windows: int, seed: int
) -> tuple[Half, Half]:
    """(the prior's part, the bound's part), split by content.

    Of a text, windows of `length` tokens begin at random lines; one of them is its example, further ones are trained
    on. A pair of prompt and completion is one row.

    Raises:
        HoldfastError: too few documents.
    """
    if len(documents) < 2:
        raise HoldfastError(
            f"{documents.name} is one document, and a bound counts documents: the tokens of one depend on each other",
            wanted="a hundred documents or more",
            remedy="give a file with a row per document, or a folder of files",
        )
    first, second = split_off(documents, 1 - share, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    return tuple(_half(part, tokenizer, length, windows, generator) for part in (first, second))  # type: ignore[return-value]


def _half(documents: Documents, tokenizer: Any, length: int, windows: int, generator: torch.Generator) -> Half:
    if documents.paired:
        rows = tokenise(documents, tokenizer, length=length, progress=False)
        return Half(rows, rows)
    found = [_windows(str(text), tokenizer, length, windows + 1, generator) for text in documents.items]
    found = [rows for rows in found if rows]
    return Half([row for rows in found for row in rows[1:]], [rows[0] for rows in found])


def _windows(text: str, tokenizer: Any, length: int, count: int, generator: torch.Generator) -> list[Any]:
    """Rows of a text, each from the beginning of a line; none of fewer than two tokens."""
    starts = [0, *(i + 1 for i, character in enumerate(text) if character == "\n")]
    chosen = torch.randint(len(starts), (count,), generator=generator).tolist()
    pieces: Sequence[str] = [text[starts[i] : starts[i] + CHARACTERS * length] for i in chosen]
    rows = tokenizer(list(pieces), verbose=False)["input_ids"]
    tensors = [torch.tensor(row[:length], dtype=torch.long) for row in rows]
    return [{"input_ids": row, "labels": row} for row in tensors if len(row) > 1]
