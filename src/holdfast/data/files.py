"""Text and table files on the disk, exactly as they are written.

JSON and CSV are parsed here and not by the `datasets` builders, because those infer types: they turn a column of
dates into timestamps and one of numbers into integers, read "NA" as missing, and name no line when a file is
malformed. Text has to stay the text that was written.
"""

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from holdfast.data.table import Table
from holdfast.errors import HoldfastError

TABLES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
KNOWN = (*TABLES, ".txt", ".md", ".rst", ".py", ".text", ".gz", ".zip", ".zst", ".xz", ".arrow")
LONGEST_FIELD = 2**31 - 1  # characters; the csv module's own limit of 128 Ki is shorter than many documents


def text(path: Path) -> str:
    """The text of one file.

    Raises:
        HoldfastError: a file that is empty, can't be read, or is not UTF-8 text.
    """
    found = _decode(path, _bytes(path))
    if not found.strip():
        raise HoldfastError(f"{path} is empty", wanted="a file with text in it", remedy="check the file")
    return found


def folder(path: Path) -> tuple[list[str], list[str]]:
    """The texts of a folder and its folders in the order of their names, and notes on what was left out.

    Hidden names, binary files (a NUL byte), tables and empty files are left out.

    Raises:
        HoldfastError: a folder without text, or a file that can't be read or is neither UTF-8 nor binary.
    """
    texts: list[str] = []
    left_out: dict[str, list[str]] = {"table": [], "binary file": [], "empty file": []}
    for file in _visible(path):
        name = str(file.relative_to(path))
        raw = b"" if file.suffix.lower() in TABLES else _bytes(file)
        if file.suffix.lower() in TABLES:
            left_out["table"].append(name)
        elif b"\0" in raw:
            left_out["binary file"].append(name)
        elif not raw.strip():
            left_out["empty file"].append(name)
        else:
            texts.append(_decode(file, raw))
    notes = [_count(what, names) for what, names in left_out.items() if names]
    if not texts:
        raise HoldfastError(
            f"the folder {path} holds no text file" + (f", only {', '.join(notes)}" if notes else ": it is empty"),
            wanted="at least one UTF-8 text file",
            causes=["the tables in it are read one at a time, by name"] if left_out["table"] else [],
            remedy=f"name a table itself: {path / left_out['table'][0]}" if left_out["table"] else "check the folder",
        )
    return texts, [f"{note} left out" for note in notes]


def table(path: Path) -> Table:
    """The rows of a JSON or CSV file.

    Raises:
        HoldfastError: a file that can't be read, is empty, or is malformed, with the line.
    """
    found = text(path)
    if path.suffix.lower() in (".csv", ".tsv"):
        return _csv(path, found)
    numbered = list(_json_rows(path, found))
    for line, row in numbered:
        if not isinstance(row, dict):
            raise HoldfastError(
                f"{path}, {line}: a {type(row).__name__} stands where a row should",
                wanted='one object per row: {"text": "..."} or {"prompt": "...", "completion": "..."}',
            )
    columns = list(dict.fromkeys(name for _, row in numbered for name in row))
    return Table(
        str(path), columns, lambda name: [row.get(name) for _, row in numbered], [place for place, _ in numbered]
    )


def _json_rows(path: Path, found: str) -> Iterator[tuple[str, Any]]:
    """Rows with their places: of an array, of one object per line, or of a single object."""
    if found.lstrip().startswith("["):
        yield from ((f"row {i}", row) for i, row in enumerate(_json(path, found, 0), start=1))
        return
    lines = [(i, line) for i, line in enumerate(found.split("\n"), start=1) if line.strip()]
    if path.suffix.lower() == ".json" and not _is_json(lines[0][1]):
        yield "row 1", _json(path, found, 0)
        return
    for i, line in lines:
        yield f"line {i}", _json(path, line, i - 1)


def _json(path: Path, part: str, lines_before: int) -> Any:
    try:
        return json.loads(part)
    except json.JSONDecodeError as error:
        start = max(0, error.pos - 20)
        raise HoldfastError(
            f"{path}, line {lines_before + error.lineno}, column {error.colno}: not JSON: {error.msg}"
            f", near {part[start : error.pos + 20]!r}",
            wanted="one JSON object per line, or an array of objects",
            causes=["the file was cut off", "quotes or newlines inside a text are not escaped"],
            remedy="mend or remove the line",
        ) from error


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except json.JSONDecodeError:
        return False
    return True


def _csv(path: Path, found: str) -> Table:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    rows: list[list[str]] = []
    lines: list[int] = []
    limit = csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(io.StringIO(found, newline=""), delimiter=delimiter, strict=True)
    begin = 1
    try:
        for row in reader:
            if row:
                rows.append(row)
                lines.append(begin)
            begin = reader.line_num + 1
    except csv.Error as error:
        raise _malformed(path, begin, str(error)) from error
    finally:
        csv.field_size_limit(limit)
    header, *rows = rows
    for row, line in zip(rows, lines[1:], strict=True):
        if len(row) != len(header):
            raise _malformed(path, line, f"{len(row)} fields under a header of {len(header)}")
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise HoldfastError(f"{path}: the header names {', '.join(repeated)} more than once", remedy="rename one")

    def values(name: str) -> list[str]:
        field = header.index(name)
        return [row[field] for row in rows]

    return Table(str(path), header, values, [f"line {line}" for line in lines[1:]])


def _malformed(path: Path, line: int, what: str) -> HoldfastError:
    return HoldfastError(
        f"{path}: malformed row at line {line}: {what}",
        wanted="rows with as many fields as the header has names",
        causes=[
            "a text with a delimiter or a newline in it is not in double quotes",
            'a double quote inside a quoted text is not doubled ("")',
            "the file has another delimiter: .csv is read with commas, .tsv with tabs",
        ],
        remedy="mend the row, or write the data as .jsonl",
    )


def _visible(path: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:  # without it, a folder that can't be listed counts as empty
        raise _unreadable(Path(error.filename), error) from error

    for place, folders, names in os.walk(path, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files = (Path(place) / name for name in sorted(names) if not name.startswith("."))
        yield from (file for file in files if file.is_file())


def _unreadable(path: Path, error: OSError) -> HoldfastError:
    return HoldfastError(
        f"{path} can't be read: {error.strerror or error}",
        causes=["it is not yours to read", "its disk went away"],
        remedy="check its permissions",
    )


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _decode(path: Path, raw: bytes) -> str:
    """UTF-8 without its byte order mark, newlines as \\n."""
    what = "it holds NUL bytes, so it is binary"
    if b"\0" not in raw:
        try:
            return raw.decode("utf-8-sig").replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            line = raw.count(b"\n", 0, error.start) + 1
            what = f"byte 0x{raw[error.start]:02x} at line {line} (offset {error.start}) is not UTF-8"
    raise HoldfastError(
        f"{path} is not UTF-8 text: {what}",
        causes=["it has another encoding (Latin-1, UTF-16)", "it is compressed, or no text at all"],
        remedy="unpack it, or convert it: iconv -f LATIN1 -t UTF-8 FILE > NEW",
    )


def _count(what: str, names: list[str]) -> str:
    some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names):,} {what}{'s' if len(names) != 1 else ''} ({some})"
