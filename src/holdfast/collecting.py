"""Passes over source data: as many batches as asked for, once or twice."""

from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

from holdfast.curvature.curvature import Curvature
from holdfast.curvature.statistic import LayerSize, Reading
from holdfast.errors import HoldfastError
from holdfast.likelihood import Items
from holdfast.measurement import Measurement, Sampling
from holdfast.progress import track


def measure(
    reader: Items,
    layers: Mapping[str, Any],
    sizes: dict[str, LayerSize],
    kind: type[Curvature],
    batches: Iterable[Any],
    *,
    reading: Reading,
    sampling: Sampling,
    max_items: int | None = None,
    progress: bool = True,
    by: Any = Measurement,
) -> tuple[dict[str, Curvature], Measurement]:
    """The curvature of every layer, and what it was measured on.

    `by` is what sums, and says what `layers` are. A kind that comes `after` another takes two passes, over the same
    batches with the same drawn labels.

    Raises:
        HoldfastError: no scored item, a layer that no item depends on, data that can be read only once but must be
            read twice.
    """
    first: dict[str, Curvature] | None = None
    if kind.after is not None:
        if isinstance(batches, Iterator):
            raise HoldfastError(
                f"curvature {kind.kind!r} reads the source twice, and this one is used up after one pass",
                remedy="pass a list of batches, a DataLoader or a dataset instead of a generator",
            )
        first, _ = measure(
            reader, layers, sizes, kind.after, batches,
            reading=reading, sampling=sampling, max_items=max_items, progress=progress,
        )  # fmt: skip
    measured = by(reader, layers, sizes, kind, reading, sampling, first)
    collect(measured, batches, max_items, progress)
    if measured.items == 0:
        raise HoldfastError(
            "the source data has no scored item",
            causes=["the iterable is empty or was already used up", "every label is -100 or padding"],
            remedy="pass batches with input_ids and, where only part is scored, labels",
        )
    return measured.curvatures(), measured


def collect(measured: Measurement, batches: Iterable[Any], max_items: int | None, progress: bool) -> None:
    """All batches, or as many as hold `max_items` scored items."""
    total = len(batches) if isinstance(batches, Sized) else None
    with track("anchor", total, shown=progress) as advance:
        for batch in batches:
            if max_items is not None and measured.items >= max_items:
                break
            measured.add(batch)
            advance()
