"""Reading DATA: a file, a folder or a data set on the hub."""

import os
import re
from pathlib import Path

from holdfast.data import files, library
from holdfast.data.documents import Documents
from holdfast.data.table import Columns, Table, choose, extract
from holdfast.errors import HoldfastError, closest

# A name with the suffix of a file is meant as a file. Names without an owner are left to the disk: a misspelt folder
# must not become a download.
HUB_ID = re.compile(r"(?P<id>[\w][\w.-]*/[\w][\w.-]*)(:(?P<config>[^:]+))?")
KINDS = "a text file, a folder, a .jsonl, .json, .csv, .tsv or .parquet file, or a hub id (owner/name:config)"


def read(data: str, columns: Columns = Columns(), *, split: str = "train") -> Documents:
    """The documents of DATA.

    Args:
        data: a text file, a folder of text files (read recursively, hidden names left out), a `.jsonl`, `.json`,
            `.csv`, `.tsv` or `.parquet` file, or the id of a data set on the hub (`owner/name` or
            `owner/name:config`). What exists on the disk is read from there.
        columns: which columns of a table hold the text; by default guessed from their names.
        split: of a data set on the hub; files have none.

    Raises:
        HoldfastError: nothing there, unreadable or empty data, or columns that are missing or not text.
    """
    if not data.strip():
        raise HoldfastError("no data is named", wanted=KINDS)
    path = Path(data).expanduser()
    if not os.path.exists(path):  # pathlib's raises for names that no file can have
        return _from_hub(data, columns, split)
    if split != "train":
        raise HoldfastError(
            f"split {split!r} of {data}: a file or a folder has no splits",
            remedy="name the file of that split instead",
        )
    if path.is_file() and path.suffix.lower() in files.TABLES:
        return _from_table(files.table(path) if path.suffix.lower() != ".parquet" else library.parquet(path), columns)
    if columns.named():
        raise HoldfastError(
            f"{data} is text without columns, but {', '.join(columns.named())} was named",
            wanted=f"a file with columns: {', '.join(files.TABLES)}",
            remedy="leave the column names out to read it as plain text",
        )
    texts, notes = files.folder(path) if path.is_dir() else ([files.text(path)], [])
    return Documents(tuple(texts), data, notes=tuple(notes))


def _from_table(table: Table, asked: Columns) -> Documents:
    columns = choose(table, asked)
    documents, empty = extract(table, columns)
    notes = [] if asked.named() else ["columns guessed by their names"]
    unused = [name for name in table.columns if name not in columns.named()]
    if unused:
        notes.append(f"not read: {', '.join(unused)}")
    if empty:
        notes.append(f"{empty:,} empty row{'s' if empty != 1 else ''} left out")
    return Documents(tuple(documents), table.name, columns, tuple(notes))


def _from_hub(data: str, columns: Columns, split: str) -> Documents:
    match = HUB_ID.fullmatch(data)
    if match is None or Path(match["id"]).suffix.lower() in files.KNOWN:
        raise _missing(data, "")
    try:
        table = library.from_hub(match["id"], match["config"], split)
    except library.NotOnHub as error:
        raise _missing(data, str(error)) from error
    return _from_table(table, columns)


def _missing(data: str, hub: str) -> HoldfastError:
    path = Path(data).expanduser().absolute()
    folder = next(parent for parent in path.parents if os.path.isdir(parent))
    sought = path.relative_to(folder).parts[0]
    inside = _names(folder)
    near = closest(sought, inside) or ", ".join(sorted(inside)[:8]) or "nothing"
    got = f"there is no file or folder {path}"
    if hub:
        got += f", and no data set {data!r} could be read from the hub: {hub}"
    return HoldfastError(
        got,
        wanted=KINDS,
        causes=[
            f"the name is misspelt: {folder} holds {near}",
            *(["the hub can't be reached, or the data set is private (hf auth login)"] if hub else []),
        ],
        remedy="check the name" + ("; without a network, name a local file" if hub else ""),
    )


def _names(folder: Path) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if not name.startswith(".")]
    except OSError:
        return []
