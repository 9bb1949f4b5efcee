"""What Holdfast warns of while a command runs, kept for its results."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def noted() -> Iterator[list[str]]:
    """What Holdfast warns of inside the block (rows left out, weights without a price), shown and kept."""
    notes: list[str] = []
    home = str(Path(__file__).parent)
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def keep(message: Any, category: Any, filename: str, *more: Any, **named: Any) -> None:
            if issubclass(category, UserWarning) and filename.startswith(home):
                notes.append(str(message))
            shown(message, category, filename, *more, **named)

        warnings.showwarning = keep
        yield notes
