"""A factor for each layer, the dear ones shrunk most."""

from collections.abc import Mapping

import torch

from holdfast.errors import HoldfastError
from holdfast.fitting import shrinkage
from holdfast.fitting.coupled import coupled_layers
from holdfast.fitting.move import WeightMove
from holdfast.fitting.moving import Moving
from holdfast.fitting.way import Way


class Layers(Way):
    """D'_l = a_l D_l, the minimum of sum n_l (1 - a_l)^2 under a forecast of B (`shrinkage.layers`, `coupled`).

    Raises:
        HoldfastError: two layers that share a weight which was tuned whole: it can have one factor only.
    """

    name = "layers"
    what = "each layer by a factor of its own"

    def __init__(self, moving: Moving, worths: Mapping[str, float]) -> None:
        super().__init__(moving, worths)
        check_apart(moving)
        moving.scale(1.0)
        self.form = moving.coupling() if moving.coupled and moving.moves else None
        self.own = {} if self.form is not None else moving.per_layer()

    def aim(self, limit: float) -> dict[str, float]:
        if self.form is None:
            factors = shrinkage.layers({name: self.worths[name] for name in self.own}, self.own, limit)
        else:
            worths = torch.tensor([self.worths[name] for name in self.moving.moves], dtype=torch.float64)
            found = coupled_layers(worths, self.form, limit).tolist()
            factors = dict(zip(self.moving.moves, found, strict=True))
        return self.moving.settle(factors, limit)


def check_apart(moving: Moving) -> None:
    """Raise HoldfastError where two layers share one weight that was tuned whole."""
    owners: dict[int, str] = {}
    for name, move in moving.moves.items():
        if not isinstance(move, WeightMove):
            continue
        other = owners.setdefault(id(move.weight), name)
        if other != name:
            raise HoldfastError(
                f"the layers {other!r} and {name!r} share one weight, which can't be shrunk in two ways",
                remedy="--how scale gives all layers one factor",
            )
