"""How a symmetric positive semi-definite matrix is summed and stored: one file per structure."""

import importlib
import inspect
import pkgutil
from functools import cache

from torch import Tensor

from holdfast.factors.factor import Factor


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
