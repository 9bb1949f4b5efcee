"""The one error users see: what was got, what was wanted, the likely causes and the remedy."""

import difflib
from collections.abc import Iterable


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
