"""What a layer's shift is worth: its length, or what the target's own curvature says that it gained."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from holdfast.anchor import Anchor
from holdfast.curvature.curvature import Coupled
from holdfast.fitting.in_place import EntriesMove
from holdfast.fitting.move import AdapterMove, WeightMove
from holdfast.fitting.moving import Moving
from holdfast.layers import require_kind
from holdfast.likelihood import ForwardLoss, bare
from holdfast.penalties.prices import Prices

ITEMS = 100_000  # scored target items that a curvature is measured on, at most


def by_length(moving: Moving) -> dict[str, float]:
    """Layer name -> |D_l|_F^2 of what stands in the model."""
    return moving.squared_lengths()


def by_gain(
    moving: Moving, target: Iterable[Any], forward_loss: ForwardLoss | None = None, *, progress: bool = True
) -> dict[str, float]:
    """Layer name -> 1/2 <D_l, T_l D_l>, nats per target item, of the shifts as they came.

    T is the Fisher from the target's own labels at the finished weights, where the target's loss is about least: to
    second order, what that loss rises by where the layer's shift is taken away. Base weights that are packed can't be
    moved there, and stay as they are while T is measured.

    Args:
        moving: the model, its shifts as they came.
        target: batches with labels.
        forward_loss: as for `Anchor.estimate`.
        progress: show a bar.
    """
    curvatures = moving.anchor.curvatures.values()
    plain = all(curvature.forecasts and not isinstance(curvature, Coupled) for curvature in curvatures)
    with _finished(moving) as model:
        measured = Anchor.estimate(
            model,
            target,
            curvature=moving.anchor.kind if plain else "kronecker",
            targets=list(moving.moves),
            fisher="data",
            max_items=ITEMS,
            forward_loss=forward_loss,
            progress=progress,
        )
    readers = {name: move.shift for name, move in moving.moves.items()}
    return Prices(moving.model, measured, 0.0, readers).per_layer()


@contextmanager
def _finished(moving: Moving) -> Iterator[Any]:
    """A model with the shifts in the weights themselves, where a curvature of the weights is measured."""
    if any(isinstance(move, EntriesMove) for move in moving.moves.values()):
        yield bare(moving.model)  # it is in the weights, and without PEFT's wrapper nothing switches adapters off
        return
    merged: list[WeightMove] = []
    try:
        for name, move in moving.moves.items():
            if isinstance(move, AdapterMove) and move.layer.base_layer.weight.is_floating_point():
                base = move.layer.base_layer
                merged.append(WeightMove(require_kind(name, base), base, base.weight))
                with torch.no_grad():
                    merged[-1].put(move.shift().matrix())
        yield moving.model
    finally:
        for weight in reversed(merged):  # two layers may share one
            weight.scale(1.0)
