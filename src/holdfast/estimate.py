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
from holdfast.files import require_writable
from holdfast.language_model import load_model, load_tokenizer
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
    """Estimate and save an anchor; returns what it is and what it cost."""
    catalogue.curvature(curvature)
    require_writable(out.parent)
    check_destination(out)
    model, tokenizer = load_model(name, dtype), load_tokenizer(name)
    check_tokenizer(tokenizer, model, length=length)
    rows: list[Row] | None = None
    about: dict[str, Any] = {}
    if source is not None:
        side = (
            sampled_side(model, samples, min(SAMPLE_LENGTH, length), seed, 0.0)
            if source.path == SELF
            else read_side(source, tokenizer, length)
        )
        rows, about = side.rows, side.about
        say(f"source: {about['description']}")
    started = time.perf_counter()
    measured = Anchor.estimate(
        model,
        None if rows is None else [collate(rows[i : i + batch_size]) for i in range(0, len(rows), batch_size)],
        curvature=curvature,
        targets=targets,
        fisher=fisher,
        max_items=max_items,
        fraction=fraction,
        seed=seed,
    )
    measured.facts["base_model"] = name
    measured.facts["source"] = about
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
