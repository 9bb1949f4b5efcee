"""A folder of anchors that several runs share: what one has measured, the others read."""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.errors import HoldfastError
from holdfast.files import locked
from holdfast.tune_recipe import MEASURING, TuneRecipe

if TYPE_CHECKING:
    from holdfast.anchor import Anchor

# Beside how a curvature is measured: what it is measured of. The adapter's own parameters start as these say.
ANCHORED = ("model", "dtype", "targets", "curvature", "seed", *MEASURING)
STARTED = ("method", "rank", "alpha")
SECONDS = "measuring_seconds"  # in an anchor's facts


class Store:
    """Anchors by what they were measured of and how: model, layers, curvature, rows and seed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def kept(
        self, recipe: TuneRecipe, model: Any, rows: list[Any] | None, measured: Callable[[], "tuple[Anchor, float]"]
    ) -> "tuple[Anchor, float]":
        """The anchor that the recipe asks for and the seconds that it took, measured now if nobody has.

        Of several processes that ask for the same one, one measures and the others wait for it.

        Args:
            recipe: names a curvature.
            model: the anchor has to be of its weights.
            rows: what is measured on.
            measured: measures it.

        Raises:
            HoldfastError: nothing can be written there, and whatever measuring raises.
        """
        from holdfast.anchor import Anchor

        folder = self.folder / name_of(recipe, rows)
        with locked(self.folder / f".{folder.name}.lock"):
            started = time.perf_counter()
            try:
                found = Anchor.load(folder)
                found.check(model)
            except HoldfastError:  # none yet, a broken one, or one of weights that have changed since
                found, _ = measured()
                found.facts[SECONDS] = time.perf_counter() - started
                found.save(folder)
        return found, float(found.facts[SECONDS])


def name_of(recipe: TuneRecipe, rows: list[Any] | None) -> str:
    """`kronecker-0f3a...`: the curvature, and a hash of all that makes the anchor what it is."""
    keys = [*ANCHORED, *(STARTED if recipe.space == "adapter" else ())]
    digest = hashlib.sha256(json.dumps([recipe.model_dump(mode="json")[key] for key in keys]).encode())
    for row in rows or ():
        for name in ("input_ids", "labels"):
            digest.update(row[name].numpy().tobytes() if name in row else b"-")
    return f"{recipe.curvature}-{digest.hexdigest()[:16]}"
