"""One layer's shift in a model, as something that can be written: scaled, or put in another's place."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from holdfast.layers import LayerKind
from holdfast.shifts.dense import Dense
from holdfast.shifts.read import active_of
from holdfast.shifts.shift import Reader, Shift, precise


class Move(ABC):
    """A layer's shift D as it came, (out, in), and what stands in the model in its place.

    Attributes:
        adapters: how many make it together; 1 where the weight itself does.
    """

    adapters: int = 1

    @abstractmethod
    def shift(self) -> Shift:
        """What stands in the model now."""

    @abstractmethod
    def scale(self, factor: float) -> None:
        """Write a D; 1 writes back what came, bit for bit, and 0 the anchor's own weight."""

    @abstractmethod
    def put(self, delta: Tensor) -> float:
        """Write another D', (out, in): the nearest that the layer can hold.

        Returns:
            |D' - what was written|^2 / |D'|^2.
        """


class AdapterMove(Move):
    """LoRA in one of PEFT's layers: D = sum over its active adapters of s B A, so that a B A s = a D exactly."""

    def __init__(self, layer: Any, reader: Reader) -> None:
        self.layer, self.reader = layer, reader
        self.halves = {adapter: _halves(layer, adapter) for adapter in active_of(layer)}
        self.adapters = len(self.halves)
        self.came = {adapter: [half.detach().clone() for half in pair] for adapter, pair in self.halves.items()}

    def shift(self) -> Shift:
        return self.reader()

    @torch.no_grad()
    def scale(self, factor: float) -> None:
        for adapter, (up, down) in self.halves.items():
            born_up, born_down = self.came[adapter]
            up.copy_(born_up if factor == 1 else born_up * factor)
            down.copy_(born_down)

    @torch.no_grad()
    def put(self, delta: Tensor) -> float:
        """The best of the adapter's rank, D'_r = U_r S_r V_r^T (Eckart-Young), both halves of one length."""
        ((adapter, (up, down)),) = self.halves.items()
        rank = min(self.came[adapter][1].shape[0], *delta.shape)
        left, values, right = torch.linalg.svd(delta, full_matrices=False)
        roots = (values[:rank] / abs(self.layer.scaling[adapter])).sqrt()
        sign = 1 if self.layer.scaling[adapter] > 0 else -1
        up.zero_()
        down.zero_()
        up.flatten(1)[:, :rank].copy_(sign * left[:, :rank] * roots)  # flattened: a view, (out, r)
        down.flatten(1)[:rank].copy_(roots[:, None] * right[:rank])
        squares = values.square()
        return float(squares[rank:].sum() / squares.sum()) if squares.any() else 0.0


class WeightMove(Move):
    """A layer that was trained whole: D = W - W_anchor."""

    def __init__(self, kind: LayerKind, module: Any, anchored: Tensor) -> None:
        self.kind, self.module = kind, module
        self.weight: Tensor = module.weight
        self.came = self.weight.detach().clone()
        self.anchored = anchored.detach().to(self.weight.device)

    def shift(self) -> Shift:
        return Dense(self.kind.matrix(self.module, precise(self.weight) - precise(self.anchored)))

    @torch.no_grad()
    def scale(self, factor: float) -> None:
        if factor == 1:
            self.weight.copy_(self.came)
            return
        anchored = precise(self.anchored)
        self.weight.copy_(anchored + factor * (precise(self.came) - anchored))

    @torch.no_grad()
    def put(self, delta: Tensor) -> float:
        moved = torch.zeros_like(precise(self.anchored), memory_format=torch.contiguous_format)
        self.kind.matrix(self.module, moved).copy_(delta)
        self.weight.copy_(precise(self.anchored) + moved)
        return 0.0


def _halves(layer: Any, adapter: str) -> tuple[Tensor, Tensor]:
    """The parameters B, (out, r) or (out, r, 1, 1), and A, (r, in) or (r, channels, *kernel)."""
    if adapter in layer.lora_embedding_A:
        return layer.lora_embedding_B[adapter], layer.lora_embedding_A[adapter]
    return layer.lora_B[adapter].weight, layer.lora_A[adapter].weight
