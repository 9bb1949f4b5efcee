"""Progress bars, on standard error and only where someone looks: none in a file or a pipe."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def track(what: str, total: int | None, *, shown: bool = True, unit: str = "batch") -> Iterator[Callable[..., object]]:
    """A bar with rate and time left; call what is yielded once per step."""
    with bar(what, total, shown=shown, unit=unit) as found:
        yield found.update


@contextmanager
def bar(what: str, total: int | None, *, shown: bool = True, unit: str = "batch") -> Iterator[Any]:
    """The bar itself, a tqdm, for what wants to write beside it."""
    from tqdm.auto import tqdm

    disable = None if shown else True  # None: shown on a terminal
    with tqdm(total=total, desc=what, unit=unit, disable=disable, leave=False, dynamic_ncols=True) as made:
        yield made
