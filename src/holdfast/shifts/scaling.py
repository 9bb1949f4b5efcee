"""Reading the shift of an adapter that scales a layer's inputs or outputs ((IA)^3)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.layers import LayerKind
from holdfast.shifts.dense import Dense
from holdfast.shifts.kept import Kept
from holdfast.shifts.shift import Reader, Shift, precise


def is_scaling(layer: Any) -> bool:
    """Whether an adapter layer holds vectors that scale its base layer, as PEFT's IA3 does."""
    return isinstance(getattr(layer, "ia3_l", None), nn.ParameterDict)


def unread_scaling(layer: Any) -> str:
    """Why such a layer's effect is no shift of its weight alone; empty where it is one."""
    if layer.base_layer.weight.dim() != 2:
        return "scales of a layer that is not linear"
    if not layer.is_feedforward and getattr(layer.base_layer, "bias", None) is not None:
        return "scales of its output, which scale its bias too, at no price that a curvature of the weight knows"
    return ""


def scaling_reader(layer: Any, kind: LayerKind, weight: Callable[[], Tensor], anchored: Tensor | None) -> Reader:
    """A function that reads W diag(l - 1) of inputs, diag(l - 1) W of outputs, l the product of all active scales.

    (Liu et al., arXiv 2205.05638, section 3.3.) Dense, exact, and differentiable in l.

    Args:
        layer: the adapter's, around a linear layer.
        kind: of the base layer.
        weight: gives the base layer's weight as numbers, as the layer stores it.
        anchored: its weight at the anchor, where that is another.
    """
    base = layer.base_layer
    kept = None if anchored is None else Kept(anchored)

    def read() -> Shift:
        before = precise(kind.matrix(base, weight()))  # (out, in)
        scales = torch.ones(before.shape[1 if layer.is_feedforward else 0], dtype=before.dtype, device=before.device)
        for adapter in [] if layer.disable_adapters else layer.active_adapters:
            if adapter in layer.ia3_l:
                scales = scales * layer.ia3_l[adapter].flatten().to(before.dtype)
        aligned = scales[None, :] if layer.is_feedforward else scales[:, None]
        if kept is None:
            return Dense(before * (aligned - 1))
        return Dense(before * aligned - precise(kind.matrix(base, kept.beside(base.weight))))

    return read
