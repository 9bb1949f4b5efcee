"""`holdfast anchor` on the user's own model and data."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from holdfast import catalogue
from holdfast.anchor import Anchor
from holdfast.anchor_file import check_destination
from holdfast.anchor_options import check_options
from holdfast.anchor_recipe import AnchorRecipe
from holdfast.batches import Row, collate
from holdfast.data import check_tokenizer
from holdfast.errors import HoldfastError
from holdfast.files import output_folder, require_folder
from holdfast.language_model import load_model, load_tokenizer
from holdfast.sides import SELF, read_side, sampled_side

STORAGES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def anchor_on(recipe: AnchorRecipe, out: Path, *, say: Callable[[str], None]) -> dict[str, Any]:
    """Estimate and save an anchor; returns what it is and what it cost.

    Raises:
        HoldfastError: options that do not go together, bad data, a model that can't be loaded, no space.
    """
    check(recipe)
    require_folder(out)
    check_destination(out)
    with output_folder(out.parent):
        model, tokenizer = load_model(recipe.model, recipe.dtype), load_tokenizer(recipe.model)
        check_tokenizer(tokenizer, model, length=recipe.length)
        rows, about = _source(recipe, model, tokenizer)
        if about:
            say(f"source: {about['description']}")
        started = time.perf_counter()
        measured = _measured(recipe, model, rows)
        measured.facts |= {"base_model": recipe.model, "source": about, "recipe": recipe.model_dump(mode="json")}
        measured.save(out, STORAGES[recipe.storage])
    return _summary(measured, out, started) | {"source": about}


def merge_on(folders: Sequence[Path], out: Path, storage: str) -> dict[str, Any]:
    """Merge anchors of different data and save the one they make; returns what it is.

    Raises:
        HoldfastError: a folder that is no anchor, anchors that do not add up (see `Anchor.merge`), no space.
    """
    if storage not in STORAGES:
        raise HoldfastError(f"--storage {storage}", wanted=f"one of {', '.join(STORAGES)}")
    require_folder(out)
    check_destination(out)
    started = time.perf_counter()
    merged = Anchor.load(folders[0])
    for folder in folders[1:]:  # one by one: two are in memory at a time, however many there are
        merged = Anchor.merge([merged, Anchor.load(folder)])
    with output_folder(out.parent):
        merged.save(out, STORAGES[storage])
    return _summary(merged, out, started) | {"parts": merged.facts["parts"]}


def _summary(anchor: Anchor, out: Path, started: float) -> dict[str, Any]:
    return {
        "curvature": anchor.kind,
        "layers": len(anchor.curvatures),
        "items": anchor.items,
        "item": anchor.facts.get("item") or "token",
        "seconds": time.perf_counter() - started,
        "megabytes": sum(file.stat().st_size for file in out.iterdir()) / 1e6,
        "out": str(out),
    }


def _measured(recipe: AnchorRecipe, model: Any, rows: list[Row]) -> Anchor:
    size = recipe.batch_size
    asked = {name: getattr(recipe, name) for name in ("until", "memory", "offload")}
    return Anchor.estimate(
        model,
        None if recipe.source is None else [collate(rows[i : i + size]) for i in range(0, len(rows), size)],
        curvature=recipe.curvature,
        targets=recipe.targets,
        fisher=recipe.fisher,
        draws=recipe.draws,
        per=recipe.per,
        keep=recipe.keep,
        max_items=recipe.max_items,
        fraction=recipe.fraction,
        dtype=None if recipe.products == "auto" else getattr(torch, recipe.products),
        seed=recipe.seed,
        **{name: value for name, value in asked.items() if value is not None},
    )


def _source(recipe: AnchorRecipe, model: Any, tokenizer: Any) -> tuple[list[Row], dict[str, Any]]:
    if recipe.source is None:
        return [], {}
    if recipe.source.path == SELF:
        length = min(recipe.sample_length, recipe.length)
        side = sampled_side(model, recipe.samples, length, recipe.seed, 0.0)
    else:
        side = read_side(recipe.source, tokenizer, recipe.length)
    return side.rows, side.about


def check(recipe: AnchorRecipe) -> None:
    """What can be known before anything is loaded.

    Raises:
        HoldfastError: an unknown curvature, data where none is needed or none where it is, options that don't fit.
    """
    kind = catalogue.curvature(recipe.curvature)
    measured = bool(kind.statistics())
    if measured and recipe.source is None:
        raise HoldfastError(
            f"--curvature {recipe.curvature} is measured on source data, and none is named",
            remedy="pass --source DATA, or --source self for text sampled from the model",
        )
    if not measured and recipe.source is not None:
        raise HoldfastError(f"--curvature {recipe.curvature} needs no source data", remedy="leave --source out")
    check_options(recipe.fisher, recipe.draws, recipe.per, recipe.fraction, recipe.source, kind)
