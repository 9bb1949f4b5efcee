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
def counted(
    what: str,
    batches: int | None,
    *,
    limit: int | None = None,
    before: int = 0,
    shown: bool = True,
    unit: str = "item",
) -> Iterator[Callable[[int], object]]:
    """A bar with items per second and time left; call what is yielded with the items of each batch.

    How many items there will be is the limit, or what the batches so far lead to expect, whichever is less.

    Args:
        what: is being done.
        batches: to come; None where nobody knows.
        limit: items after which it stops.
        before: items that were counted in an earlier run.
        shown: on a terminal.
        unit: one item.
    """
    with bar(what, limit, shown=shown, unit=unit, initial=before, unit_scale=True) as found:
        here = seen = 0

        def advance(items: int) -> None:
            nonlocal here, seen
            here, seen = here + items, seen + 1
            expected = [n for n in (limit, batches and before + round(here / seen * batches)) if n]
            found.total = max(min(expected), before + here) if expected else None
            found.update(items)

        yield advance


@contextmanager
def bar(what: str, total: int | None, *, shown: bool = True, unit: str = "batch", **options: Any) -> Iterator[Any]:
    """The bar itself, a tqdm, for what wants to write beside it."""
    from tqdm.auto import tqdm

    disable = None if shown else True  # None: shown on a terminal
    with tqdm(total=total, desc=what, unit=unit, disable=disable, leave=False, dynamic_ncols=True, **options) as made:
        yield made
