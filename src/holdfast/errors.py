"""The one error users see: what was got, what was wanted, the likely causes and the remedy."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

Known = TypeVar("Known")


class HoldfastError(ValueError):
    """A mistake in what was asked for, with the way out of it.

    Every message has the same four parts, so that nobody has to read a traceback to go on.
    """

    def __init__(self, got: str, *, wanted: str = "", causes: Iterable[str] = (), remedy: str = "") -> None:
        self.got, self.wanted, self.causes, self.remedy = got, wanted, list(causes), remedy
        lines = [got]
        if wanted:
            lines.append(f"  wanted: {wanted}")
        if self.causes:
            lines.append("  likely causes:")
            lines.extend(f"    - {cause}" for cause in self.causes)
        if remedy:
            lines.append(f"  remedy: {remedy}")
        super().__init__("\n".join(lines))


def closest(name: str, known: Iterable[str], count: int = 5) -> str:
    """The known names nearest to `name`, as a phrase for an error message; empty when none is near."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=count, cutoff=0.4)
    if not near:
        leaves = {full.rsplit(".", 1)[-1]: None for full in known}
        near = difflib.get_close_matches(name.rsplit(".", 1)[-1], list(leaves), n=count, cutoff=0.4)
    return ", ".join(near)


def look_up(what: str, name: str, known: Mapping[str, Known], otherwise: str = "") -> Known:
    """What is known by a name.

    Args:
        what: such names are of, for the error.
        name: asked for.
        known: name -> what it stands for.
        otherwise: the remedy where no name is near.

    Raises:
        HoldfastError: there is none; the message lists the closest names.
    """
    if name not in known:
        near = closest(name, known)
        raise HoldfastError(
            f"no {what} is called {name!r}",
            wanted=f"one of {', '.join(known)}",
            remedy=f"did you mean {near}?" if near else otherwise,
        )
    return known[name]
