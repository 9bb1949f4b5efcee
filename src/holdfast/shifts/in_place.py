"""Reading the shift of an adapter that trains some entries of the base layer's own weight (SIFT)."""

from typing import Any

import torch
from torch import Tensor

from holdfast.layers import LayerKind
from holdfast.shifts.dense import Dense
from holdfast.shifts.kept import Kept
from holdfast.shifts.shift import Reader, Shift, precise
from holdfast.shifts.sparse import Sparse


def is_sparse(layer: Any) -> bool:
    """Whether an adapter layer trains entries of its base layer's weight.

    It then says which by `sparse_increments(adapter) -> values (k,), flat indices (k,)`.
    """
    return hasattr(layer, "sparse_increments")


def sparse_reader(layer: Any, kind: LayerKind, anchored: Tensor | None) -> Reader:
    """A function that reads the sum of the active adapters' increments; a sparse shift on the union of their places.

    Args:
        layer: the adapter's, around a base layer of that kind.
        kind: of the base layer.
        anchored: its weight at the anchor; where that is not the pre-trained one, the shift is dense.
    """
    base = layer.base_layer
    kept = None
    if anchored is not None:
        before = layer.pretrained_weight()
        if not torch.equal(anchored.to(before.device), before):
            kept = Kept(precise(before) - precise(anchored.to(before.device)))

    def read() -> Shift:
        values, flat = _summed(layer)
        rows, columns = kind.entries(base, flat)
        shift = Sparse(values, rows, columns, kind.size(base))
        return shift if kept is None else Dense(kind.matrix(base, kept.beside(base.weight)) + shift.matrix())

    return read


def _summed(layer: Any) -> tuple[Tensor, Tensor]:
    """Increments and their places, (k,) each, no place twice: of all active adapters together."""
    active = layer.merged_adapters or ([] if layer.disable_adapters else layer.active_adapters)
    pieces = [layer.sparse_increments(adapter) for adapter in active]
    if not pieces:
        weight = layer.base_layer.weight
        return precise(weight.new_zeros(0)), torch.zeros(0, dtype=torch.int64, device=weight.device)
    if len(pieces) == 1:
        return pieces[0]
    values, flat = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    union, places = flat.unique(return_inverse=True)
    return values.new_zeros(len(union)).index_add(0, places, values), union
