"""One pass over source data: which sums a curvature asks for, filled batch by batch."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.batches import to_device
from holdfast.curvature.curvature import LayerSize, Statistic
from holdfast.errors import HoldfastError
from holdfast.layers import device_of
from holdfast.likelihood import Fisher, Items, LabelSampler, backward
from holdfast.progress import track
from holdfast.statistics import GradientsHiddenError, InputsDivergedError, Recorder


class Measurement:
    """The sums of every layer's statistics, with the scored items and the data that they came from."""

    def __init__(
        self,
        reader: Items,
        layers: dict[str, nn.Module],
        sizes: dict[str, LayerSize],
        statistics: dict[str, type[Statistic]],
        fisher: Fisher,
        dtype: torch.dtype | None,
        fraction: float,
        seed: int,
    ) -> None:
        self.reader, self.layers, self.sizes, self.statistics = reader, layers, sizes, statistics
        self.fisher, self.dtype, self.fraction, self.seed = fisher, dtype, fraction, seed
        self.device = device_of(reader.model)
        self.share, self.stems = True, False
        self._reset()

    def _reset(self) -> None:
        self.sums: dict[str, dict[str, Statistic]] = {
            layer: {name: make(size, self.dtype) for name, make in self.statistics.items()}
            for layer, size in self.sizes.items()
        }
        sinks: dict[str, dict[str, Any]] = dict(self.sums)
        targeted = {id(layer) for layer in self.layers.values()}
        modules = self.reader.model.modules() if self.stems else []
        leaves = [m for m in modules if next(m.children(), None) is None and id(m) not in targeted]
        self.recorder = Recorder(
            self.layers,
            sinks,
            stems=leaves,
            share=self.share,
            fraction=self.fraction,
            seed=self.seed,
        )
        self.sampler = LabelSampler(self.seed)
        self.items, self.digest = 0, hashlib.sha256()

    def over(self, batches: Iterable[Any], max_items: int | None, progress: bool) -> None:
        """All batches, or as many as hold `max_items` scored items."""
        stream: Iterator[Any] = iter(batches)
        first = next(stream, None)
        if first is None:
            return
        self._first(first)
        total = len(batches) if isinstance(batches, Sized) else None
        with track("anchor", total, shown=progress) as advance:
            advance()
            for batch in stream:
                if max_items is not None and self.items >= max_items:
                    break
                self._batch(batch)
                advance()

    def _first(self, batch: Any) -> None:
        """The first batch shows how the model has to be watched: the cheapest way that sees everything."""
        while True:
            try:
                return self._batch(batch)
            except InputsDivergedError:  # a layer is called in ways its neighbours are not: count every layer alone
                self.share = False
            except GradientsHiddenError as error:
                if self.stems:
                    raise _hidden(error) from error
                self.stems = True
            self._reset()

    def _batch(self, batch: Any) -> None:
        batch = to_device(batch, self.device)
        with self.recorder, torch.enable_grad():
            self.recorder.positions = self.reader.positions(batch)
            scored = self.reader.run(batch)
            backward(scored, self.fisher, self.sampler)
            self.recorder.end_batch(backpropagated=scored.items > 0)
        self.items += scored.items
        for tensor in _tensors(batch):
            self.digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())

    def check_reached(self) -> None:
        """Raise HoldfastError when a layer was never called, or no scored item depends on it."""
        for layer, sums in self.sums.items():
            if any(statistic.sum is None for statistic in sums.values()):
                raise HoldfastError(
                    f"no scored item of the source depends on layer {layer!r}",
                    causes=["the model does not use it for this loss", "the source never reaches it (an expert)"],
                    remedy="leave this layer out of the targets, or pass source data that reaches it",
                )


def _hidden(error: GradientsHiddenError) -> HoldfastError:
    return HoldfastError(
        str(error),
        causes=["reentrant gradient checkpointing of a part whose inputs need no gradient", "torch.no_grad inside"],
        remedy="use checkpointing with use_reentrant=False, or leave these layers out of the targets",
    )


def _tensors(batch: Any) -> list[Tensor]:
    values = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else [batch]
    return [v for v in values if isinstance(v, Tensor) and v.dtype != torch.bfloat16]
