"""Where a shift went: how far each layer has moved, against the size of its weight."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from holdfast.curvature.identity import Identity
from holdfast.errors import HoldfastError
from holdfast.penalties.anchored import Anchored
from holdfast.penalties.prices import quadratic_form
from holdfast.shifts.read import readers
from holdfast.shifts.shift import Shift
from holdfast.targets import pretrained_weights


@torch.no_grad()
def shift_sizes(model: Any, anchored: Anchored | None = None) -> dict[str, float]:
    """Layer name -> |dW|_F / |W|_F; empty where the model's trained part moves no weight, or nobody kept its start.

    A low-rank shift is never formed.

    Args:
        model: after training.
        anchored: a penalty that knows where the weights of a bare model were.
    """
    moved = _readers(model, anchored)
    sizes = {name: float(weight.float().norm()) for name, weight in pretrained_weights(model) if name in moved}
    found = {}
    for name, reader in moved.items():
        shift = reader()
        size = float(quadratic_form(shift, Identity.of_shape(*shift.shape))) ** 0.5
        found[name] = size / max(sizes[name], 1e-30)
    return found


def _readers(model: Any, anchored: Anchored | None) -> Mapping[str, Callable[[], Shift]]:
    weights = [] if anchored is None else [one for one in anchored.prices if one.anchor.space == "weights"]
    if weights:
        return weights[0].readers
    try:
        return readers(model)
    except HoldfastError:
        return {}
