"""The shift of an adapter that trains entries of the layer's own weight, as something that can be written."""

from typing import Any

import torch
from torch import Tensor

from holdfast.fitting.move import Move
from holdfast.layers import LayerKind
from holdfast.shifts.shift import Reader, Shift


class EntriesMove(Move):
    """SIFT in one of PEFT's layers: D = sum over its active adapters of what their entries are away from the base.

    Args:
        layer: the adapter's.
        kind: of its base layer.
        reader: of its shift.
    """

    def __init__(self, layer: Any, kind: LayerKind, reader: Reader) -> None:
        self.layer, self.kind, self.reader = layer, kind, reader
        here = layer.places["weight"].entries if "weight" in layer.places else {}
        active = [] if layer.disable_adapters else layer.active_adapters
        self.entries = {adapter: here[adapter] for adapter in active if adapter in here}
        self.adapters = len(self.entries)
        self.came = {adapter: one.values.detach().clone() for adapter, one in self.entries.items()}

    def shift(self) -> Shift:
        return self.reader()

    def scale(self, factor: float) -> None:
        for adapter, one in self.entries.items():
            came, base = self.came[adapter], one.at_base()
            _write(one, came if factor == 1 else base if factor == 0 else base + factor * (came - base))

    def put(self, delta: Tensor) -> float:
        """D' at the entries: all that the layer can hold, and the nearest to D'."""
        ((_, one),) = self.entries.items()
        kept = delta[self.kind.entries(self.layer.base_layer, one.indices)]
        _write(one, one.at_base() + kept)
        whole = float(delta.square().sum())
        return max(1 - float(kept.square().sum()) / whole, 0.0) if whole else 0.0


def _write(entries: Any, values: Tensor) -> None:
    with torch.no_grad():
        entries.values.copy_(values)
    entries.write()
