"""`holdfast anchor` on the user's own model and data."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from holdfast import catalogue
from holdfast.anchor import Anchor
from holdfast.anchors.file import check_destination
from holdfast.anchors.options import check_keep, check_options
from holdfast.anchors.recipe import AnchorRecipe
from holdfast.batches import Row, collate
from holdfast.curvature.curvature import Curvature
from holdfast.curvature.statistic import Reading
from holdfast.data import check_tokenizer
from holdfast.errors import HoldfastError
from holdfast.files import output_folder, require_folder
from holdfast.language_model import load_model, load_tokenizer
from holdfast.measuring.stopping import check_extent
from holdfast.plan import Plan, make
from holdfast.plan.shapes import Shapes, of_config
from holdfast.sides import SELF, read_side, sampled_side

STORAGES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def anchor_on(
    recipe: AnchorRecipe, out: Path, *, resume: bool = False, first: bool = True, say: Callable[[str], None]
) -> dict[str, Any]:
    """Estimate and save an anchor; returns what it is and what it cost.

    The sums so far are kept beside `out` while they are collected (`partial`), for `resume` to go on from.

    Args:
        recipe: what was asked for.
        out: the anchor's folder.
        resume: go on with what was interrupted.
        first: whether this process writes; of several that measure together one does.
        say: for lines to read.

    Raises:
        HoldfastError: options that do not go together, bad data, a model that can't be loaded, no space, nothing to
            go on with.
    """
    check(recipe)
    require_folder(out)
    check_destination(out)
    started = time.perf_counter()
    with output_folder(out.parent), _sums(out, resume) as sums:
        model, tokenizer = load_model(recipe.model, recipe.dtype), load_tokenizer(recipe.model)
        check_tokenizer(tokenizer, model, length=recipe.length)
        rows, about = _source(recipe, model, tokenizer)
        if about:
            say(f"source: {about['description']}")
        measured = _measured(recipe, model, rows, sums)
        measured.facts |= {"base_model": recipe.model, "source": about, "recipe": recipe.model_dump(mode="json")}
        if first:
            measured.save(out, STORAGES[recipe.storage])
    return (_summary(measured, out, started) | {"source": about}) if first else {}


def partial(out: Path) -> Path:
    """Where the sums of an interrupted measurement are."""
    return out.with_name(f"{out.name}.partial")


@contextmanager
def _sums(out: Path, resume: bool) -> Iterator[Path]:
    """The folder of the sums so far; hours of an earlier run are not thrown away unasked."""
    folder = partial(out)
    passes = list(folder.glob("pass-*"))
    if resume and not passes:
        raise HoldfastError(
            f"there is nothing to go on from in {folder}",
            causes=[
                "the measurement was interrupted before its first batch was through",
                "--out names another folder",
            ],
            remedy="start again without --resume",
        )
    if passes and not resume:
        raise HoldfastError(
            f"an interrupted measurement is kept in {folder}",
            remedy="go on with it by --resume, or delete that folder to begin anew",
        )
    try:
        yield folder
    finally:
        with suppress(OSError):  # there are sums in it
            folder.rmdir()


def merge_on(folders: Sequence[Path], out: Path, storage: str) -> dict[str, Any]:
    """Merge anchors of different data and save the one they make; returns what it is.

    Raises:
        HoldfastError: a folder that is no anchor, anchors that do not add up (see `Anchor.merge`), no space.
    """
    _check_target(out, storage)
    started = time.perf_counter()
    merged = Anchor.load(folders[0])
    for folder in folders[1:]:  # one by one: two are in memory at a time, however many there are
        merged = Anchor.merge([merged, Anchor.load(folder)])
    return _written(merged, out, storage, started) | {"parts": merged.facts["parts"]}


def accumulate_on(old: Path, new: Path, out: Path, storage: str, decay: float) -> dict[str, Any]:
    """Add a new task's anchor to that of the tasks before and save the sum; returns what it is.

    Raises:
        HoldfastError: a folder that is no anchor, anchors that do not add up (see `Anchor.accumulate`), no space.
    """
    _check_target(out, storage)
    started = time.perf_counter()
    found = Anchor.accumulate(Anchor.load(old), Anchor.load(new), decay)
    told = {"tasks": found.facts["tasks"], "approximation": found.facts.get("approximation")}
    return _written(found, out, storage, started) | told


def _check_target(out: Path, storage: str) -> None:
    if storage not in STORAGES:
        raise HoldfastError(f"--storage {storage}", wanted=f"one of {', '.join(STORAGES)}")
    require_folder(out)
    check_destination(out)


def _written(anchor: Anchor, out: Path, storage: str, started: float) -> dict[str, Any]:
    with output_folder(out.parent):
        anchor.save(out, STORAGES[storage])
    return _summary(anchor, out, started)


def _summary(anchor: Anchor, out: Path, started: float) -> dict[str, Any]:
    return {
        "curvature": anchor.kind,
        "layers": len(anchor.curvatures),
        "items": anchor.items,
        "item": anchor.facts.get("item") or "token",
        "agreement": anchor.facts.get("agreement"),
        "captured": _captured(anchor),
        "seconds": time.perf_counter() - started,
        "megabytes": sum(file.stat().st_size for file in out.iterdir()) / 1e6,
        "out": str(out),
    }


def _captured(anchor: Anchor) -> dict[str, Any] | None:
    """Of the traces of sketched sides, what share lies along directions: the mean, the least, and of which layer."""
    shares = {(n, side): share for n, own in anchor.facts.get("captured", {}).items() for side, share in own.items()}
    if not shares:
        return None
    layer, side = min(shares, key=lambda key: shares[key])
    return {"mean": sum(shares.values()) / len(shares), "least": shares[layer, side], "layer": layer, "side": side}


def _measured(recipe: AnchorRecipe, model: Any, rows: list[Row], sums: Path) -> Anchor:
    size, rows = recipe.batch_size, _mixed(rows, recipe.seed)
    return Anchor.estimate(
        model,
        None if recipe.source is None else [collate(rows[i : i + size]) for i in range(0, len(rows), size)],
        curvature=recipe.curvature,
        targets=recipe.targets,
        fisher=recipe.fisher,
        draws=recipe.draws,
        per=recipe.per,
        keep=recipe.keep,
        max_items=recipe.items,
        until=recipe.until,
        dtype=_products(recipe),
        memory=recipe.memory,
        storage=recipe.factors,
        offload=recipe.offload,
        fraction=recipe.fraction,
        seed=recipe.seed,
        checkpoint=None if recipe.source is None else sums,
        shard=recipe.shard,
    )


def _mixed(rows: list[Row], seed: int) -> list[Row]:
    """In a random order, the same for one seed: what is read until it is enough is of all the data, not their head."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return [rows[place] for place in order.tolist()]


def _products(recipe: AnchorRecipe) -> torch.dtype | None:
    return None if recipe.products == "auto" else getattr(torch, recipe.products)


def planned(recipe: AnchorRecipe) -> tuple[Plan, Shapes]:
    """What the anchor will take, and the layers it is of, from the model's configuration alone.

    Raises:
        HoldfastError: no configuration, targets that match nothing, a budget that is too small.
    """
    kind = catalogue.curvature(recipe.curvature)
    per = recipe.per or kind.per
    halves = 1 if recipe.until is None else 2
    reading = Reading(_products(recipe), per, recipe.keep, recipe.seed, recipe.offload, recipe.length, halves)
    _check_storage(recipe, kind)
    shapes = of_config(recipe.model, recipe.targets)
    return make(shapes, kind, reading, memory=recipe.memory, storage=recipe.factors), shapes


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
    kind: type[Curvature] = catalogue.curvature(recipe.curvature)
    measured = bool(kind.statistics())
    if measured and recipe.source is None:
        raise HoldfastError(
            f"--curvature {recipe.curvature} is measured on source data, and none is named",
            remedy="pass --source DATA, or --source self for text sampled from the model",
        )
    if not measured and recipe.source is not None:
        raise HoldfastError(f"--curvature {recipe.curvature} needs no source data", remedy="leave --source out")
    _check_storage(recipe, kind)
    check_extent(recipe.until, None, recipe.shard, kind)
    check_options(recipe.fisher, recipe.draws, recipe.per or kind.per, recipe.fraction, recipe.source, kind)
    check_keep(recipe.keep, kind)


def _check_storage(recipe: AnchorRecipe, kind: type[Curvature]) -> None:
    if recipe.storage == "bfloat16" and not kind.rounds:
        raise HoldfastError(
            f"--storage bfloat16: curvature {recipe.curvature} would not stay positive semi-definite",
            remedy="store it in float32, or choose --curvature kronecker",
        )
