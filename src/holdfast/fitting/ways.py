"""The ways to fit by their names."""

from holdfast.errors import look_up
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
    return look_up("way to fit", name, WAYS)
