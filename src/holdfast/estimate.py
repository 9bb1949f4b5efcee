"""`holdfast anchor` on the user's own model and data."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from holdfast import catalogue
from holdfast.anchor import Anchor
from holdfast.anchor_file import check_destination
from holdfast.batches import Row, collate
from holdfast.data import check_tokenizer
from holdfast.errors import HoldfastError
from holdfast.files import output_folder, require_folder
from holdfast.language_model import load_model, load_tokenizer
from holdfast.likelihood import FISHERS
from holdfast.recipe import SAMPLE_LENGTH, DataSettings
from holdfast.sides import SELF, read_side, sampled_side


def anchor_on(
    name: str,
    source: DataSettings | None,
    out: Path,
    *,
    curvature: str,
    targets: str | list[str],
    fisher: Any,
    max_items: int,
    fraction: float,
    length: int,
    samples: int,
    batch_size: int,
    dtype: str,
    seed: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Estimate and save an anchor; returns what it is and what it cost.

    Raises:
        HoldfastError: options that do not go together, bad data, a model that can't be loaded, no space.
    """
    _check(curvature, source, fisher, fraction)
    require_folder(out)
    check_destination(out)
    with output_folder(out.parent):
        model, tokenizer = load_model(name, dtype), load_tokenizer(name)
        check_tokenizer(tokenizer, model, length=length)
        rows, about = _source(source, model, tokenizer, length=length, samples=samples, seed=seed)
        if about:
            say(f"source: {about['description']}")
        started = time.perf_counter()
        measured = Anchor.estimate(
            model,
            None if source is None else [collate(rows[i : i + batch_size]) for i in range(0, len(rows), batch_size)],
            curvature=curvature,
            targets=targets,
            fisher=fisher,
            max_items=max_items,
            fraction=fraction,
            seed=seed,
        )
        measured.facts |= {"base_model": name, "source": about}
        measured.save(out)
    return {
        "curvature": curvature,
        "layers": len(measured.curvatures),
        "items": measured.items,
        "item": "token",
        "seconds": time.perf_counter() - started,
        "megabytes": sum(file.stat().st_size for file in out.iterdir()) / 1e6,
        "source": about,
        "out": str(out),
    }


def _source(
    source: DataSettings | None, model: Any, tokenizer: Any, *, length: int, samples: int, seed: int
) -> tuple[list[Row], dict[str, Any]]:
    if source is None:
        return [], {}
    if source.path == SELF:
        side = sampled_side(model, samples, min(SAMPLE_LENGTH, length), seed, 0.0)
    else:
        side = read_side(source, tokenizer, length)
    return side.rows, side.about


def _check(curvature: str, source: DataSettings | None, fisher: str, fraction: float) -> None:
    """What can be known before anything is loaded."""
    measured = bool(catalogue.curvature(curvature).statistics())
    if fisher not in FISHERS:
        raise HoldfastError(f"--fisher {fisher}", wanted=f"one of {', '.join(FISHERS)}")
    if not 0 < fraction <= 1:
        raise HoldfastError(f"--fraction {fraction}", wanted="a share of the positions, above 0 and at most 1")
    if measured and source is None:
        raise HoldfastError(
            f"--curvature {curvature} is measured on source data, and none is named",
            remedy="pass --source DATA, or --source self for text sampled from the model",
        )
    if not measured and source is not None:
        raise HoldfastError(f"--curvature {curvature} needs no source data", remedy="leave --source out")
