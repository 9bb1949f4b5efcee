"""How far an adapter, or a model that was tuned whole, has moved the weights of its base."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from holdfast.language_model import is_model, load_adapter, load_model
from holdfast.shifts.read import shifts
from holdfast.shifts.shift import Shift
from holdfast.targets import canonical


@torch.no_grad()
def moved_by(model: Any, folder: Path, dtype: str = "auto") -> dict[str, Tensor | Shift]:
    """Layer name -> its shift, or parameter name -> difference; the model is bare again afterwards.

    Args:
        model: the bare base model.
        folder: an adapter, or a whole model of the same architecture.
        dtype: that a whole model is loaded in.

    Raises:
        HoldfastError: no adapter there, one of another base model, or one whose shift is not known (with the reason).
    """
    if is_model(folder):
        tuned = dict(load_model(str(folder), dtype).named_parameters())
        return {
            canonical(name): tuned[name].float() - parameter.float()
            for name, parameter in model.named_parameters()
            if parameter.dim() > 1 and name in tuned
        }
    adapted = load_adapter(model, str(folder))
    try:
        return dict(shifts(adapted))
    finally:
        adapted.unload()
