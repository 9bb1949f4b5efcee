"""How a symmetric positive semi-definite matrix is summed and stored: one file per structure."""

import importlib
import inspect
import pkgutil
from functools import cache

from torch import Tensor

from holdfast.errors import HoldfastError, closest
from holdfast.factors.factor import Factor, Storage


@cache
def structures() -> dict[str, type[Factor]]:
    """Structure -> class, found by looking."""
    found = {}
    for module in pkgutil.iter_modules(__path__):
        for _, cls in inspect.getmembers(importlib.import_module(f"{__name__}.{module.name}"), inspect.isclass):
            if issubclass(cls, Factor) and not inspect.isabstract(cls):
                found[cls.structure] = cls
    return found


def from_tensors(tensors: dict[str, Tensor]) -> Factor:
    """A factor from what `Factor.tensors` gave: the name of its first tensor is its structure.

    Raises:
        KeyError: when no structure is called so.
    """
    return structures()[next(iter(tensors)).partition(".")[0]].from_tensors(tensors)


def storage(name: str) -> Storage:
    """The storage of that name: "full", "diagonal", "blocks:1024", "low-rank:256".

    Raises:
        HoldfastError: an unknown structure, a number where none belongs, or none where one does.
    """
    structure, _, option = name.partition(":")
    found = structures().get(structure)
    if found is None or bool(option) != found.takes_option or (option and not (option.isdecimal() and int(option))):
        near = closest(structure, structures())
        raise HoldfastError(
            f"{name!r} is no storage of a factor",
            wanted=", ".join(f"{n}:N" if s.takes_option else n for n, s in sorted(structures().items())),
            remedy=f"did you mean {near}?" if found is None and near else "",
        )
    return Storage(found, int(option or 0))
