"""What commands print: tables for people, JSON for programs, progress and notes on standard error."""

import json
import logging
import warnings
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

errors = Console(stderr=True)
console = Console()


def print_json(value: Any) -> None:
    """One JSON value on standard output."""
    print(json.dumps(value, indent=2, allow_nan=False))


def print_table(
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: int | None = None,
    where: Console = console,
) -> None:
    """A table; columns from `right` on are aligned right. Cells are shown as they are, brackets included."""
    gap = 1 if right is None or len(header) < 8 else 0  # beside the space that the box brings
    table = Table(title=Text(title), title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, gap, 0, 0))
    for index, name in enumerate(header):
        numeric = right is not None and index >= right
        table.add_column(name, justify="right" if numeric else "left", overflow="fold", no_wrap=numeric)
    for row in rows:
        table.add_row(*map(Text, row))
    where.print(table)


def say(message: str, *, strong: str = "") -> None:
    """A line for people on standard error, after a part in bold; shown as it is, brackets included.

    The terminal wraps it, not this program: names of files stay whole for copying.
    """
    errors.print(Text.assemble((strong, "bold"), message), soft_wrap=True)


def quiet_libraries() -> None:
    """Keep the libraries' own chatter out of the command's output; what Holdfast itself warns of becomes a note.

    Call it before anything heavy is imported: libraries warn while they are being imported.
    """
    warnings.simplefilter("ignore")
    warnings.filterwarnings("always", category=UserWarning, module=r"holdfast\b")
    warnings.showwarning = _note
    if logging.lastResort is not None:
        logging.lastResort.setLevel(logging.ERROR)  # of libraries without a handler of their own

    from huggingface_hub.utils import enable_progress_bars
    from huggingface_hub.utils import logging as hub
    from transformers.utils import logging as transformers

    hub.set_verbosity_error()
    transformers.set_verbosity_error()
    transformers.disable_progress_bar()
    enable_progress_bars()  # the line above turns them off too, and a download of gigabytes needs one


def _note(message: Warning | str, *where: Any, **more: Any) -> None:
    say(str(message), strong="note: ")


def number(value: float | None, digits: int = 3) -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def share(value: float | None) -> str:
    """A share as a percentage, or a dash."""
    return "-" if value is None else f"{100 * value:.0f} %"
