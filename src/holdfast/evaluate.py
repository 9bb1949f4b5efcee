"""`holdfast evaluate`: losses of a model with and without an adapter."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from holdfast.data import check_tokenizer
from holdfast.evaluation import mean_loss
from holdfast.language_model import check_adapter, is_model, load_adapter, load_model, load_tokenizer
from holdfast.machine import machine, peak_memory_mb, versions
from holdfast.recipe import DataSettings
from holdfast.sides import limited, read_side


def evaluate(
    name: str,
    adapter: Path | None,
    sides: Mapping[str, DataSettings | None],
    *,
    length: int,
    max_items: int,
    dtype: str,
) -> dict[str, Any]:
    """Losses of the base model and, with an adapter, of the adapted one.

    `adapter` may also be a model that was tuned whole, as `holdfast tune --method full` leaves it.

    Raises:
        HoldfastError: a model, an adapter or data that can't be read, or a loss that is not finite.
    """
    whole = adapter is not None and is_model(adapter)
    if adapter is not None and not whole:
        check_adapter(adapter)
    started = time.perf_counter()
    model, tokenizer = load_model(name, dtype), load_tokenizer(name)
    check_tokenizer(tokenizer, model, length=length)
    read_sides = {key: None if data is None else read_side(data, tokenizer, length) for key, data in sides.items()}
    rows = {key: [] if side is None else limited(side.rows, max_items) for key, side in read_sides.items()}
    before = _losses(model, rows, "before")
    after = before
    if adapter is not None:
        tuned = load_model(str(adapter), dtype) if whole else load_adapter(model, str(adapter))
        after = _losses(tuned, rows, "after")
    row: dict[str, Any] = {
        "method": "none" if adapter is None else "model" if whole else "adapter",
        "penalty": str(adapter or "base model"),
        "strength": None,
        "seed": 0,
        "predicted_forgetting": None,
        "seconds": time.perf_counter() - started,
        "peak_memory_mb": peak_memory_mb(),
        "trainable_parameters": 0,
    }
    for key in ("source", "target"):
        row |= {f"{key}_before": before[key], f"{key}_after": after[key]}
    about = {key: None if side is None else side.about for key, side in read_sides.items()}
    return {"schema": 1, "machine": machine(), "versions": versions(), **about, "rows": [row]}


def _losses(model: Any, rows: Mapping[str, list[Any]], when: str) -> dict[str, float | None]:
    return {
        key: mean_loss(model, part, name=f"{key} {when}", progress=True).nats if part else None
        for key, part in rows.items()
    }
