"""What a layer's shift is worth: its length, or what the target's own curvature says that it gained."""

from collections.abc import Iterable
from typing import Any

from holdfast.anchor import Anchor
from holdfast.curvature.curvature import Coupled
from holdfast.fitting.moving import Moving
from holdfast.penalties.prices import Prices

ITEMS = 100_000  # scored target items that a curvature is measured on, at most


def by_length(moving: Moving) -> dict[str, float]:
    """Layer name -> |D_l|_F^2 of what stands in the model."""
    return moving.squared_lengths()


def by_gain(moving: Moving, target: Iterable[Any], *, progress: bool = True) -> dict[str, float]:
    """Layer name -> 1/2 <D_l, T_l D_l>, nats per target item, of the shifts as they came.

    T is the Fisher from the target's own labels at the base weights. To second order it is what the target's loss
    rises by where the layer's finished shift, at which that loss is least, is taken away; it is measured at the other
    end of the shift, where the labels still surprise the model, so only its shares among the layers mean something.

    Args:
        moving: the model.
        target: batches with labels.
        progress: show a bar.
    """
    curvatures = moving.anchor.curvatures.values()
    plain = all(curvature.forecasts and not isinstance(curvature, Coupled) for curvature in curvatures)
    moving.scale(0.0)
    measured = Anchor.estimate(
        moving.model,
        target,
        curvature=moving.anchor.kind if plain else "kronecker",
        targets=list(moving.moves),
        fisher="data",
        max_items=ITEMS,
        progress=progress,
    )
    moving.scale(1.0)
    readers = {name: move.shift for name, move in moving.moves.items()}
    return Prices(moving.model, measured, 0.0, readers).per_layer()
