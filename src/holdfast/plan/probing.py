"""The plan for a model at hand: its first batch shows which layers read the same tensor."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import torch

from holdfast.curvature.curvature import Curvature
from holdfast.curvature.statistic import LayerSize, Reading
from holdfast.likelihood import Items
from holdfast.measuring.sharding import groups_in
from holdfast.parts import Part
from holdfast.plan.choosing import make
from holdfast.plan.plan import FLOAT, Plan
from holdfast.plan.shapes import Shapes


def for_model(
    reader: Items,
    parts: Mapping[str, Part],
    sizes: dict[str, LayerSize],
    kind: type[Curvature],
    reading: Reading,
    batches: Iterable[Any],
    *,
    memory: int | str | None = None,
    storage: str | None = None,
) -> tuple[Plan, Iterable[Any]]:
    """The plan, and the batches with nothing missing; without a budget no batch is looked at.

    Raises:
        HoldfastError: as for `holdfast.plan.make`.
    """
    found: dict[str, str] = {}
    modules = {name: part.module for name, part in parts.items() if part.kind is not None}
    if memory is not None and len(modules) == len(parts):
        first, batches = _peeked(batches)
        if first:
            found = groups_in(reader, modules, first[0])
            reading = replace(reading, length=_length(first[0], reading.length))
    double = torch.float64 in (reading.dtype, *(part.tensor.dtype for part in parts.values()))
    plan = make(
        Shapes(sizes, found), kind, reading, memory=memory, storage=storage, each=2 * FLOAT if double else FLOAT
    )
    return plan, batches


def _length(batch: Any, usual: int) -> int:
    """Tokens of a sequence, which stored samples of whole sequences take room for."""
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
    return usual if ids is None else int(ids.shape[-1])


def _peeked(batches: Iterable[Any]) -> tuple[list[Any], Iterable[Any]]:
    """The first batch, if there is one, and all of them; what is drawn at random afterwards is drawn as without it."""
    with torch.random.fork_rng(devices=[]):
        iterator = iter(batches)
        first = list(islice(iterator, 1))
    return first, chain(first, iterator) if isinstance(batches, Iterator) else batches
