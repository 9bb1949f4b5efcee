"""How far weights moved: one file per structure of a layer's shift, and reading shifts from a model.

`holdfast.shifts(model)` reads them all; the package is callable, since the room and its verb share the name.
"""

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

    from holdfast.shifts.shift import Shift


class _Room(ModuleType):
    def __call__(self, model: "nn.Module", reference: "Mapping[str, Tensor] | None" = None) -> "dict[str, Shift]":
        """Layer name -> shift; see `holdfast.shifts.read.shifts`."""
        from holdfast.shifts.read import shifts

        return shifts(model, reference)


sys.modules[__name__].__class__ = _Room
