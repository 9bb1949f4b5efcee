"""The sums that a curvature asks for, filled batch by batch."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.batches import to_device
from holdfast.curvature.curvature import Coupled, Curvature
from holdfast.curvature.statistic import LayerSize, Reading, Statistic
from holdfast.errors import HoldfastError
from holdfast.layers import device_of
from holdfast.likelihood import Fisher, Items, LabelSampler, passes
from holdfast.rows import RowSink
from holdfast.statistics import GradientsHiddenError, InputsDivergedError, Recorder


@dataclass(frozen=True)
class Sampling:
    """Which labels and positions the sums are taken over."""

    fisher: Fisher = "sampled"
    draws: int = 1
    fraction: float = 1.0
    seed: int = 0


class Measurement:
    """The sums of every layer's statistics, with the scored items and the data that they came from."""

    def __init__(
        self,
        reader: Items,
        layers: dict[str, nn.Module],
        sizes: dict[str, LayerSize],
        kind: type[Curvature],
        reading: Reading,
        sampling: Sampling,
        first: Mapping[str, Curvature] | None = None,
    ) -> None:
        self.reader, self.layers, self.sizes, self.kind = reader, layers, sizes, kind
        self.reading, self.sampling, self.first = reading, sampling, first or {}
        self.device = device_of(reader.model)
        self.share, self.stems = True, False
        self.items, self.batches = 0, 0
        self._reset()

    def _reset(self) -> None:
        made = self.kind.statistics()
        self._sinks: dict[str, dict[str, Any]] = {
            layer: {name: make(size, self.reading, self.first.get(layer)) for name, make in made.items()}
            for layer, size in self.sizes.items()
        }
        if issubclass(self.kind, Coupled):
            for layer, further in self.kind.link(self.sums).items():
                self._sinks[layer] |= further
        targeted = {id(layer) for layer in self.layers.values()}
        modules = self.reader.model.modules() if self.stems else []
        leaves = [m for m in modules if next(m.children(), None) is None and id(m) not in targeted]
        sinks: dict[str, dict[str, RowSink]] = self._sinks
        self.recorder = Recorder(
            self.layers,
            sinks,
            stems=leaves,
            share=self.share,
            fraction=self.sampling.fraction,
            seed=self.sampling.seed,
        )
        self.sampler = LabelSampler(self.sampling.seed)
        self.digest = hashlib.sha256()

    @property
    def sums(self) -> dict[str, dict[str, Statistic]]:
        """Layer -> name -> statistic; layers that are given the same inputs share the statistics of inputs."""
        names = self.kind.statistics()
        return {layer: {name: sinks[name] for name in names} for layer, sinks in self._sinks.items()}

    def add(self, batch: Any) -> None:
        """One batch. The first shows how the model has to be watched: the cheapest way that sees everything."""
        while True:
            try:
                return self._add(batch)
            except InputsDivergedError:  # a layer is called in ways its neighbours are not: count every layer alone
                if self.batches:
                    raise
                self.share = False
            except GradientsHiddenError as error:
                if self.stems or self.batches:
                    raise _hidden(error) from error
                self.stems = True
            self._reset()

    def _add(self, batch: Any) -> None:
        batch = to_device(batch, self.device)
        with self.recorder, torch.enable_grad():
            self.recorder.begin_batch(self.reader.positions(batch), self.reader.keys(batch))
            scored = self.reader.run(batch)
            for _ in passes(scored, self.sampling.fisher, self.sampler, self.sampling.draws):
                self.recorder.end_pass()
            self.recorder.end_batch(backpropagated=scored.items > 0)
        self.items += scored.items
        self.batches += 1
        digest(self.digest, batch)

    def curvatures(self) -> dict[str, Curvature]:
        """What was measured so far, normalised by the scored items.

        Raises:
            HoldfastError: a layer was never called, or no scored item depends on it.
        """
        return finished(self.kind, self.sizes, self.sums, self.items)


def finished(
    kind: type[Curvature], sizes: Mapping[str, LayerSize], sums: Mapping[str, Mapping[str, Statistic]], items: int
) -> dict[str, Curvature]:
    """The curvatures that those sums make.

    Raises:
        HoldfastError: nothing was added to one of them.
    """
    found = {}
    for layer, own in sums.items():
        if any(statistic.sum is None for statistic in own.values()):
            raise HoldfastError(
                f"no scored item of the source depends on layer {layer!r}",
                causes=[
                    "the model does not use it for this loss",
                    "the source never reaches it (an expert)",
                    "checkpointing with use_reentrant=True keeps its gradient back",
                ],
                remedy="leave this layer out of the targets, or pass source data that reaches it",
            )
        found[layer] = kind.from_sums(sizes[layer], own, items)
    return found


def _hidden(error: GradientsHiddenError) -> HoldfastError:
    return HoldfastError(
        str(error),
        causes=["reentrant gradient checkpointing of a part whose inputs need no gradient", "torch.no_grad inside"],
        remedy="use checkpointing with use_reentrant=False, or leave these layers out of the targets",
    )


def digest(known: Any, batch: Any) -> None:
    """Add a batch's tensors to a hash."""
    values = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else [batch]
    for tensor in values:
        if isinstance(tensor, Tensor) and tensor.dtype != torch.bfloat16:
            known.update(tensor.detach().cpu().contiguous().numpy().tobytes())
