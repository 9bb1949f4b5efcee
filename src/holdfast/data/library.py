"""What is read through the `datasets` library: Parquet files and data sets on the hub."""

import glob
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from holdfast.data.table import Table
from holdfast.errors import HoldfastError


class NotOnHub(Exception):
    """A data set that the hub did not give, with the reason in one line."""


def parquet(path: Path) -> Table:
    """The rows of a Parquet file; nothing is left in a cache.

    Raises:
        HoldfastError: a file that is no Parquet file, or a damaged one.
    """
    library = _library()
    if path.stat().st_size == 0:
        raise HoldfastError(f"{path} is empty", wanted="a Parquet file", remedy="check the file")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache, _quiet(library, bars=False):
        try:
            # The path is a pattern to the library, so a bracket in a name would match nothing.
            data = library.Dataset.from_parquet(glob.escape(str(path)), cache_dir=cache, keep_in_memory=True)
        except Exception as error:  # Arrow, the builder and the file system each raise their own
            raise HoldfastError(
                f"{path} could not be read as Parquet: {_reason(error)}",
                causes=["the file was cut off or damaged", "it has no rows", "it is no Parquet file"],
                remedy="write or download it again",
            ) from error
        return _table(str(path), data)


def from_hub(name: str, config: str | None, split: str) -> Table:
    """The rows of one split of a data set on the hub, kept in the library's cache.

    Raises:
        NotOnHub: it can't be reached or does not exist.
        HoldfastError: it exists, but not with this configuration or split.
    """
    library = _library()
    shown = ":".join(part for part in (name, config) if part)
    with _quiet(library, bars=True):
        try:
            return _table(f"{shown} [{split}]", library.load_dataset(name, config, split=split))
        except ValueError as error:  # an unknown configuration or split: the message lists the known ones
            raise HoldfastError(
                f"{shown}, split {split!r}: {' '.join(str(error).split())}",
                wanted="owner/name or owner/name:config, and a split that it has",
                remedy="choose one of those listed",
            ) from error
        except Exception as error:  # connection, permissions, missing, scripts: the library, the hub and requests
            raise NotOnHub(_reason(error)) from error


def _table(name: str, data: Any) -> Table:
    def values(column: str) -> list[Any]:
        try:
            return data[column][:]
        except UnicodeDecodeError as error:
            raise HoldfastError(
                f"{name}: column {column!r} is not UTF-8 text: {error}", remedy="write it again as UTF-8"
            ) from error

    return Table(name, list(data.column_names), values)


def _library() -> ModuleType:
    try:
        import datasets
    except ImportError as error:
        raise HoldfastError(
            "reading Parquet files and the hub needs the datasets library, which is not installed",
            remedy='pip install "holdfast[lm]"',
        ) from error
    return datasets


@contextmanager
def _quiet(library: ModuleType, *, bars: bool) -> Iterator[None]:
    """The library without its log lines, and without its bars where nothing is downloaded."""
    from huggingface_hub.utils import logging as hub

    before = library.logging.get_verbosity(), hub.get_verbosity(), library.is_progress_bar_enabled()
    library.logging.set_verbosity(library.logging.CRITICAL)
    hub.set_verbosity_error()
    if not bars:
        library.disable_progress_bars()
    try:
        yield
    finally:
        library.logging.set_verbosity(before[0])
        hub.set_verbosity(before[1])
        if before[2]:
            library.enable_progress_bars()


def _reason(error: BaseException) -> str:
    """The first line of the innermost cause that says something."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    said = [line for link in reversed(chain) for line in str(link).splitlines() if line.strip()]
    return said[0] if said else type(error).__name__
