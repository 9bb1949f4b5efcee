"""Files that are whole or absent: written under a temporary name, synced, renamed."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from holdfast.errors import HoldfastError


def write_text(path: Path, text: str) -> None:
    """Write a text file in one piece."""
    path = Path(path)
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON in one piece; raises ValueError for NaN, which JSON does not have."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; it takes the name of `path` when the block ends without an error."""
    path = Path(path)
    _make(path.parent)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        _sync(temporary)
        os.chmod(temporary, 0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise _disk(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`; it replaces `path` when the block ends without an error."""
    path = Path(path)
    if path.is_file():
        raise _disk(path, NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)))
    _make(path.parent)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    old = temporary.with_name(temporary.name + ".old")
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _sync(file)
        os.chmod(temporary, 0o777 & ~_umask())
        if path.exists():
            path.rename(old)
        temporary.rename(path)
    except OSError as error:
        raise _disk(path, error) from error
    finally:
        if old.exists() and not path.exists():  # stopped between the two renames, by an error or by the user
            old.rename(path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def require_writable(path: Path) -> None:
    """Raise HoldfastError before hours of work when nothing can be written at `path`."""
    try:
        _make(Path(path))
        with tempfile.NamedTemporaryFile(dir=path):
            pass
    except OSError as error:
        raise _disk(Path(path), error) from error


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _disk(folder, error) from error


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _disk(path: Path, error: OSError) -> HoldfastError:
    return HoldfastError(
        f"could not write {path}: {error.strerror or error}",
        causes=["the disk is full", "the folder is not yours to write to", "a file stands where a folder should"],
        remedy="free some space or choose another --out; what was there before is untouched",
    )
