"""The text that stands on every Python machine: where its modules are, and how they are split.

Both embedded tasks (documentation prose and Python code) read the standard library of the running
interpreter. Nothing is downloaded, and nothing of it is stored in the package.
"""

import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

Split = Literal["train", "validation", "test"]

# Not prose or code that people wrote to be read: tests, tables of bytes, vendored or generated files.
SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}
SKIPPED |= {"__pycache__", "lib2to3", "turtledemo", "ensurepip", "config", "_vendor", "lib-dynload"}
LARGEST_MODULE = 400_000  # characters; beyond it a file is a table


def modules() -> Iterator[tuple[str, str]]:
    """Yield (dotted name, source text) of the standard library's modules, sorted by name."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if SKIPPED.intersection(parts) or path.name.startswith("_sysconfigdata"):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        if text.strip() and len(text) < LARGEST_MODULE:
            yield ".".join(parts), text


def fraction(name: str, salt: str = "") -> float:
    """A number in [0, 1) that depends on the name alone: the same on every machine and version."""
    digest = hashlib.sha256(f"{salt}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split_of(name: str) -> Split:
    """90 % train, 4 % validation, 6 % test, decided by the document's name."""
    position = fraction(name, "split")
    if position < 0.90:
        return "train"
    return "validation" if position < 0.94 else "test"
