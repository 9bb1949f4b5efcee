"""How far an adapter, or a model that was tuned whole, has moved the weights of its base."""

from pathlib import Path
from typing import Any

import torch

from holdfast.errors import HoldfastError
from holdfast.language_model import is_model, load_adapter, load_model
from holdfast.layers import require_kind
from holdfast.shifts.dense import Dense
from holdfast.shifts.read import shifts
from holdfast.shifts.shift import Shift
from holdfast.targets import base_layers


@torch.no_grad()
def moved_by(model: Any, folder: Path, dtype: str = "auto") -> dict[str, Shift]:
    """Layer name -> its shift; the model is bare again afterwards.

    Args:
        model: the bare base model.
        folder: an adapter, or a whole model of the same architecture.
        dtype: that a whole model is loaded in.

    Raises:
        HoldfastError: no adapter there, one of another base model, or one whose shift is not known (with the reason).
    """
    if is_model(folder):
        return _between(model, load_model(str(folder), dtype), folder)
    adapted = load_adapter(model, str(folder))
    try:
        return shifts(adapted)
    finally:
        if hasattr(adapted.base_model, "unload"):  # prompts and prefixes stand around the model and change nothing
            adapted.unload()


def _between(model: Any, tuned: Any, folder: Path) -> dict[str, Shift]:
    """Of the layers whose weight differs, each weight once."""
    theirs, seen = base_layers(tuned), set()
    found: dict[str, Shift] = {}
    for name, layer in base_layers(model).items():
        if name not in theirs or theirs[name].weight.shape != layer.weight.shape:
            raise HoldfastError(f"layer {name!r} of the model is not in {folder}", causes=["it is of another model"])
        if id(layer.weight) not in seen and not torch.equal(theirs[name].weight, layer.weight):
            delta = theirs[name].weight.float() - layer.weight.float()
            found[name] = Dense(require_kind(name, layer).matrix(layer, delta))
        seen.add(id(layer.weight))
    if not found:
        raise HoldfastError(f"no layer of the model in {folder} has moved", causes=["it is the base model itself"])
    return found
