"""Files that are whole or absent: written under a temporary name, synced, renamed."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from holdfast.errors import HoldfastError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OCCUPIED = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR)
_SAID = (  # by safetensors and by torch.save
    "os error 28",
    "os error 122",
    "PytorchStreamWriter failed",
    "iostream error",
    ". unexpected pos",
)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)


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
        sync(temporary)
        os.chmod(temporary, 0o666 & ~_umask())
        temporary.replace(path)
    except Exception as error:
        if not is_about_the_disk(error):
            raise
        raise not_written(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`; it replaces `path` when the block ends without an error."""
    path = Path(path)
    require_folder(path)
    _make(path.parent)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    old = temporary.with_name(temporary.name + ".old")
    try:
        yield temporary
        sync(temporary)
        for file in filter(Path.is_file, temporary.rglob("*")):  # safetensors writes for the owner's eyes alone
            os.chmod(file, 0o666 & ~_umask())
        os.chmod(temporary, 0o777 & ~_umask())
        if path.exists():
            path.rename(old)
        temporary.rename(path)
    except Exception as error:
        if not is_about_the_disk(error):
            raise
        raise not_written(path, error) from error
    finally:
        if old.exists() and not path.exists():  # stopped between the two renames, by an error or by the user
            old.rename(path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def output_folder(path: Path) -> Iterator[None]:
    """A folder that can be written to, or HoldfastError before hours of work; no empty one stays behind a failure."""
    path = Path(path)
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    require_writable(path)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # not empty
            for folder in made:
                folder.rmdir()
        raise


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time inside the block; the others wait.

    The lock goes with the process that holds it, however that ends; the file stays: removing it would let two in.
    """
    import fcntl

    _make(path.parent)
    try:
        file = path.open("a")
    except OSError as error:
        raise not_written(path, error) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def require_writable(path: Path) -> None:
    """Make a folder; raise HoldfastError when nothing can be written in it."""
    try:
        _make(Path(path))
        with tempfile.NamedTemporaryFile(dir=path):
            pass
    except OSError as error:
        raise not_written(Path(path), error) from error


def require_folder(path: Path) -> None:
    """Raise HoldfastError where a file stands in the place of a folder that is to be written."""
    if path.exists() and not path.is_dir():
        raise not_written(path, NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)))


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_written(folder, error) from error


def sync(path: Path) -> None:
    """Have a file, or every file in a folder, on the disk and not in its cache."""
    for file in [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def is_about_the_disk(error: BaseException) -> bool:
    """Whether something could not be written; safetensors and torch have exceptions of their own for it."""
    if isinstance(error, OSError):
        return error.errno in (*_FULL, *_OCCUPIED, *_FORBIDDEN)
    return any(said in str(error) for said in _SAID)


def not_written(path: Path, error: BaseException) -> HoldfastError:
    """The error for what could not be written."""
    number = getattr(error, "errno", None)
    causes, remedy = ["the folder is not yours to write to"], "choose another --out"
    if number in _OCCUPIED:
        causes = ["a file stands where a folder should"]
    elif number in (None, *_FULL):
        causes, remedy = ["the disk is full"], "free some space or choose another --out"
    return HoldfastError(
        f"could not write {path}: {getattr(error, 'strerror', None) or error}",
        causes=causes,
        remedy=f"{remedy}; what was there before is untouched",
    )
