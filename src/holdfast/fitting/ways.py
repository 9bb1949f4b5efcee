"""The ways to fit by their names."""

from holdfast.errors import HoldfastError, closest
from holdfast.fitting.layers import Layers
from holdfast.fitting.project import Project
from holdfast.fitting.scale import Scale
from holdfast.fitting.way import Way

WAYS: dict[str, type[Way]] = {way.name: way for way in (Scale, Layers, Project)}


def way(name: str) -> type[Way]:
    """The way of that name.

    Raises:
        HoldfastError: there is none.
    """
    if name not in WAYS:
        near = closest(name, WAYS)
        raise HoldfastError(
            f"no way to fit is called {name!r}",
            wanted=f"one of {', '.join(WAYS)}",
            remedy=f"did you mean {near}?" if near else "",
        )
    return WAYS[name]
