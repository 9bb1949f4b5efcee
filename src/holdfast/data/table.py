"""Tables of rows, and which of their columns hold the text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from holdfast.errors import HoldfastError, closest

Document = str | tuple[str, str]  # a text, or a prompt and its completion

TEXTS = ("text", "content")
PAIRS = (("prompt", "completion"), ("question", "answer"), ("instruction", "output"), ("instruction", "response"))
# Instruction data keeps half of the question here; a guess that left it out would train on unanswerable prompts.
CONTEXTS = ("input", "context")


@dataclass(frozen=True)
class Columns:
    """The names of the columns to read: one text, or a prompt and its completion; none: guessed by their names.

    Raises:
        HoldfastError: a text beside a prompt or completion, or only one of prompt and completion.
    """

    text: str | None = None
    prompt: str | None = None
    completion: str | None = None

    def __post_init__(self) -> None:
        if (self.prompt is None) != (self.completion is None):
            named, other = ("prompt", "completion") if self.prompt is not None else ("completion", "prompt")
            raise HoldfastError(
                f"a {named} column ({getattr(self, named)!r}) is named, but no {other} column",
                wanted="both (the loss is taken on the completion only), or one text column",
                remedy=f"name the {other} column too, or name {getattr(self, named)!r} as the text column",
            )
        if self.text is not None and self.prompt is not None:
            raise HoldfastError(
                f"a text column ({self.text!r}) and a prompt column ({self.prompt!r}) are both named",
                wanted="one text column, or a prompt and a completion column",
            )

    def named(self) -> list[str]:
        """The columns that are named."""
        return [name for name in (self.text, self.prompt, self.completion) if name is not None]


@dataclass(frozen=True)
class Table:
    """Rows with named columns; `values` gives a column, `places` says where its rows are in the file."""

    name: str
    columns: list[str]
    values: Callable[[str], Sequence[Any]]
    places: Sequence[str] | None = None

    def place(self, row: int) -> str:
        """Where a row is, for an error message."""
        return f"row {row + 1}" if self.places is None else self.places[row]


def choose(table: Table, asked: Columns) -> Columns:
    """The columns asked for, or those whose names are conventional.

    Raises:
        HoldfastError: a column that is missing, no conventional name, or more than one reading of the names.
    """
    for name in asked.named():
        if name not in table.columns:
            near = closest(name, table.columns, count=1)
            raise HoldfastError(
                f"{table.name} has no column {name!r}" + (f"; did you mean {near!r}?" if near else ""),
                wanted=f"one of its columns: {_list(table.columns)}",
            )
    return asked if asked.named() else _guess(table)


def _guess(table: Table) -> Columns:
    known = {name.lower(): name for name in reversed(table.columns)}
    text = next((known[name] for name in TEXTS if name in known), None)
    pair = next(((known[p], known[c]) for p, c in PAIRS if p in known and c in known), None)
    if text is None and pair is None:
        raise HoldfastError(
            f"it is not clear which column of {table.name} holds the text: it has {_list(table.columns)}",
            wanted=f"a column named {' or '.join(TEXTS)}, or a pair such as prompt and completion",
            causes=[
                "the column has another name",
                "the first line of a CSV file is not its header",
                "the rows are chats (messages): render them into one text column with the chat template first",
                "the rows lie under a key of one big JSON object",
            ],
            remedy="name the text column, or the prompt and the completion column: on the command line --text-column, "
            "or --prompt-column and --completion-column; for the source beside a target --source-text-column",
        )
    if pair is None:
        return Columns(text=text)
    context = next((known[name] for name in CONTEXTS if name in known), None)
    if text is not None or (context is not None and any(table.values(context))):
        other = f"text {text!r}" if text is not None else f"{context!r}, which belongs to the prompt"
        raise HoldfastError(
            f"{table.name} can be read in two ways: prompt {pair[0]!r} and completion {pair[1]!r}, or with {other}",
            wanted="the columns by name",
            remedy=f"name prompt {pair[0]!r} and completion {pair[1]!r} to read these alone, "
            "or name the text column; to use several columns in a prompt, write them into one",
        )
    return Columns(prompt=pair[0], completion=pair[1])


def extract(table: Table, columns: Columns) -> tuple[list[Document], int]:
    """The documents of the chosen columns, and how many rows were left out because there is nothing to learn in them.

    A row is left out when its text, or its completion, is missing or blank.

    Raises:
        HoldfastError: a value that is not text, or no row with text.
    """
    last = columns.text if columns.text is not None else columns.completion
    assert last is not None
    texts = _texts(table, last)
    prompts = None if columns.prompt is None else _texts(table, columns.prompt)
    kept = [row for row, text in enumerate(texts) if text.strip()]
    if not kept:
        what = f"all {len(texts)} rows of {table.name} are empty" if texts else f"{table.name} has no rows"
        raise HoldfastError(
            f"{what}: column {last!r} holds no text", wanted="at least one row with text", remedy="check the file"
        )
    documents: list[Document] = [texts[row] if prompts is None else (prompts[row], texts[row]) for row in kept]
    return documents, len(texts) - len(kept)


def _texts(table: Table, column: str) -> list[str]:
    texts = []
    for row, value in enumerate(table.values(column)):
        if value is not None and not isinstance(value, str):
            raise HoldfastError(
                f"{table.name}, {table.place(row)}: column {column!r} holds {_kind(value)}, not text",
                wanted=f"text in every row; the columns are {_list(table.columns)}",
                causes=["another column holds the text", "numbers, lists or chats were not written out as text"],
                remedy="name another column, or turn its values into text",
            )
        text = value or ""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise HoldfastError(
                f"{table.name}, {table.place(row)}: column {column!r} holds half of a surrogate pair",
                causes=["an emoji was cut in two when the file was written"],
                remedy="remove the lone \\ud8.. or \\udc.. escape",
            ) from error
        texts.append(text)
    return texts


def _kind(value: Any) -> str:
    kinds = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return kinds.get(type(value), f"a {type(value).__name__}")


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(names[:20]) or "no columns"
    return shown + (f" and {len(names) - 20} more" if len(names) > 20 else "")
