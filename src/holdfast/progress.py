"""Progress bars."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def track(what: str, total: int | None, *, shown: bool = True, unit: str = "batch") -> Iterator[Callable[..., object]]:
    """A bar with rate and time left; call what is yielded once per step."""
    from tqdm.auto import tqdm

    with tqdm(total=total, desc=what, unit=unit, disable=not shown, leave=False) as bar:
        yield bar.update
