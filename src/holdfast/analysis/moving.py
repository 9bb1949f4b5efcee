"""Moving a model's weights along directions and bringing them back, to the last bit."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from holdfast.analysis.directions import Direction, Place, places
from holdfast.errors import HoldfastError
from holdfast.pretrained import check_whole, evaluating
from holdfast.shifts.shift import precise


class Moving:
    """theta + sum over i of alpha_i d_i: summed in float32 or better, written in the weights' own precision."""

    def __init__(self, known: Sequence[Place]) -> None:
        self.places = list(known)
        self.kept: list[Tensor] = [place.parameter.detach().clone() for place in self.places]
        self.digest = self._hash()

    @torch.no_grad()
    def to(self, steps: Sequence[tuple[float, Direction]]) -> None:
        """Write the weights at these steps from theta; where nothing moves them they are theta's own bits."""
        for place, kept in zip(self.places, self.kept, strict=True):
            moved = None
            for alpha, direction in steps:
                along = direction.at(place, kept) if alpha else None
                if along is not None:
                    moved = (precise(kept) if moved is None else moved) + alpha * along
            place.parameter.copy_(kept if moved is None else moved)

    @torch.no_grad()
    def restore(self) -> None:
        """Theta again, from the copy.

        Raises:
            HoldfastError: what stands there now is not what stood there, by a hash of all bytes.
        """
        for place, kept in zip(self.places, self.kept, strict=True):
            place.parameter.copy_(kept)
        if self._hash() != self.digest:
            raise HoldfastError(
                "the weights after the analysis are not those of before",
                causes=["something else wrote into the model meanwhile", "a fault of the memory"],
                remedy="load the model again",
            )

    def _hash(self) -> str:
        digest = hashlib.sha256()
        for place in self.places:
            flat = place.parameter.detach().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).cpu().numpy().data)
        return digest.hexdigest()


@contextmanager
def moving(model: nn.Module) -> Iterator[Moving]:
    """The model in eval mode with weights that move; they are brought back at the end, whatever ends the block.

    Raises:
        HoldfastError: no weight to move, adapters on the model, or sharded parameters.
    """
    check_whole(model, "landscapes", "analyse the model before it is sharded")
    found = Moving(places(model))
    with evaluating(model):
        try:
            yield found
        finally:
            found.restore()
