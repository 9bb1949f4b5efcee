"""What commands print: tables for people, JSON for programs, progress on standard error."""

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

errors = Console(stderr=True)
console = Console()


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    print(json.dumps(value, indent=2, allow_nan=False))


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, right: int | None = None) -> None:
    """A table; columns from `right` on are aligned right."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if right is not None and index >= right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def say(message: str) -> None:
    """A line of progress for people, on standard error."""
    errors.print(message, highlight=False)


def quiet_libraries() -> None:
    """Keep the libraries' own chatter out of the command's output."""
    import warnings

    import transformers
    from transformers.utils import logging

    transformers.logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def number(value: float | None, digits: int = 3) -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def share(value: float | None) -> str:
    """A share as a percentage, or a dash."""
    return "-" if value is None else f"{100 * value:.0f} %"
