"""Everything Holdfast holds, found by looking: the one place that turns names into classes."""

import importlib
import inspect
import pkgutil
from dataclasses import dataclass
from functools import cache
from typing import Any

from holdfast.curvature.curvature import Curvature
from holdfast.errors import look_up
from holdfast.penalties.regularizer import Regularizer
from holdfast.shifts.shift import Shift
from holdfast.tuners.tuner import Tuner


@dataclass(frozen=True)
class Option:
    """What one option of a tuner is, and its default; `sizes` is whether a budget of parameters sets it."""

    name: str
    default: Any
    what: str
    sizes: bool


@dataclass(frozen=True)
class Entry:
    """One line of `holdfast methods`."""

    room: str
    name: str
    summary: str
    paper: str
    options: tuple[Option, ...] = ()


ROOMS: dict[str, tuple[type, str]] = {
    "tuner": (Tuner, "name"),
    "shift": (Shift, "structure"),
    "curvature": (Curvature, "kind"),
    "penalty": (Regularizer, "name"),
}


@cache
def _room(room: str) -> dict[str, type]:
    base, attribute = ROOMS[room]
    package = importlib.import_module(base.__module__.rpartition(".")[0])
    found: dict[str, type] = {}
    for module in pkgutil.iter_modules(package.__path__):
        for _, cls in inspect.getmembers(
            importlib.import_module(f"{package.__name__}.{module.name}"), inspect.isclass
        ):
            if issubclass(cls, base) and not inspect.isabstract(cls):
                found[getattr(cls, attribute)] = cls
    return dict(sorted(found.items()))


def names(room: str) -> list[str]:
    """The names of one room."""
    return list(_room(room))


def find(room: str, name: str) -> type:
    """The class of that name.

    Raises:
        HoldfastError: when there is none; the message lists the closest names.
    """
    return look_up(room, name, _room(room), "see `holdfast methods`")


def curvature(kind: str) -> type[Curvature]:
    """The curvature of that kind."""
    return find("curvature", kind)


def tuner(name: str) -> type[Tuner]:
    """The tuner of that name."""
    return find("tuner", name)


def make_known() -> None:
    """Let PEFT know the methods of the catalogue that it lacks, so that it loads their adapters."""
    for name in names("tuner"):
        if (module := tuner(name).registered_by) is not None:
            importlib.import_module(module)


def entries() -> list[Entry]:
    """Everything, with its summary and its paper."""
    return [
        Entry(room, name, (inspect.getdoc(cls) or "").splitlines()[0], getattr(cls, "paper", ""), _options(cls))
        for room in ROOMS
        for name, cls in _room(room).items()
    ]


def _options(cls: type) -> tuple[Option, ...]:
    """Of a tuner; other rooms' entries have none here."""
    if not issubclass(cls, Tuner):
        return ()
    return tuple(
        Option(name, field.default, field.description or "", name in cls.sizes[:1])
        for name, field in cls.Options.model_fields.items()
    )
