"""The sums that a curvature asks for, filled batch by batch."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.batches import to_device
from holdfast.curvature.curvature import Coupled, Curvature
from holdfast.curvature.statistic import LayerSize, Reading, Statistic
from holdfast.errors import HoldfastError
from holdfast.layers import device_of
from holdfast.likelihood import Fisher, Items, LabelSampler, Scored, passes
from holdfast.measuring.sharding import Post, Routed
from holdfast.statistics import GradientsHiddenError, InputsDivergedError, Recorder


@dataclass(frozen=True)
class Sampling:
    """Which labels and positions the sums are taken over."""

    fisher: Fisher = "sampled"
    draws: int = 1
    fraction: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Watch:
    """How a model is watched: the cheapest way that sees everything.

    Attributes:
        share: layers that are given the same tensor share their sums over it.
        stems: outputs of modules that are no target require a gradient.
        groups: which layers share, where it is known before the first batch (`holdfast.rows.sharing`).
    """

    share: bool = True
    stems: bool = False
    groups: Mapping[str, str] | None = None

    def after(self, error: InputsDivergedError | GradientsHiddenError) -> "Watch":
        """The way that sees what this one did not.

        Raises:
            HoldfastError: there is none.
        """
        if isinstance(error, InputsDivergedError):  # a layer is called in ways its neighbours are not
            return replace(self, share=False, groups=None)
        if not self.stems:
            return replace(self, stems=True)
        raise HoldfastError(
            str(error),
            causes=[
                "reentrant gradient checkpointing of a part whose inputs need no gradient",
                "torch.no_grad inside",
            ],
            remedy="use checkpointing with use_reentrant=False, or leave these layers out of the targets",
        ) from error


class Summation(ABC):
    """The sums of every layer's statistics, with the scored items that they came from."""

    sizes: dict[str, LayerSize]
    kind: type[Curvature]
    sampler: LabelSampler
    items: int = 0
    batches: int = 0

    @property
    @abstractmethod
    def sums(self) -> dict[str, dict[str, Statistic]]:
        """Layer -> name -> statistic; layers that are given the same inputs share the statistics of inputs."""

    @property
    @abstractmethod
    def groups(self) -> dict[str, str]:
        """Layer -> the first of the layers that it shares with, for those that were called."""

    @abstractmethod
    def follow(self, groups: Mapping[str, str]) -> None:
        """Let layers that were not called here share as they do elsewhere."""

    @abstractmethod
    def put(self, old: Statistic, new: Statistic) -> None:
        """A statistic in another's place, when no more rows come: what links it to other layers is in its state."""

    @abstractmethod
    def place(self, layer: str) -> torch.device:
        """Where a layer's rows are."""

    @abstractmethod
    def add(self, batch: Any, number: int | None = None) -> None:
        """One batch; `number` is its place in the data, where it is not the batches before it that were added here.

        Raises:
            InputsDivergedError, GradientsHiddenError: the model has to be watched in another way (see `Watch.after`);
                the sums are then of no use.
        """

    def curvatures(self, layers: Collection[str] | None = None, *, last: bool = False) -> dict[str, Curvature]:
        """What was measured so far of all layers or of some, normalised by the scored items.

        With `last` each sum is let go of as soon as nothing more is to be made of it: sums and curvatures are then
        never in memory all together.

        Raises:
            HoldfastError: a layer was never called, or no scored item depends on it.
        """
        sums = {layer: own for layer, own in self.sums.items() if layers is None or layer in layers}
        self._check_reached(sums)
        ends = {id(statistic): (layer, statistic) for layer, own in sums.items() for statistic in own.values()}
        spent: dict[str, list[Statistic]] = {}  # layer -> sums that no layer after it needs
        for layer, statistic in ends.values():
            # Where layers are coupled, one's curvature may be made of another's sums.
            spent.setdefault(next(reversed(sums)) if issubclass(self.kind, Coupled) else layer, []).append(statistic)
        found = {}
        for layer, own in sums.items():
            found[layer] = self.kind.from_sums(self.sizes[layer], own, self.items)
            for statistic in spent.get(layer, []) if last else ():
                statistic.release()
        return found

    @staticmethod
    def _check_reached(sums: Mapping[str, Mapping[str, Statistic]]) -> None:
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


class Measurement(Summation):
    """Of layers, from rows of their inputs and of their output gradients.

    Args:
        reader: of the model and its batches.
        layers: name -> module.
        sizes: of the same layers.
        kind: what is to be made of the sums.
        reading: how rows are read.
        sampling: which labels and positions count.
        first: the layers' curvatures of the pass before, where the kind takes two.
        watch: how.
        post: what takes rows to the ranks that own the sums; None: they are kept here.
    """

    def __init__(
        self,
        reader: Items,
        layers: dict[str, nn.Module],
        sizes: dict[str, LayerSize],
        kind: type[Curvature],
        reading: Reading,
        sampling: Sampling,
        first: Mapping[str, Curvature] | None = None,
        *,
        watch: Watch | None = None,
        post: Post | None = None,
    ) -> None:
        self.reader, self.layers, self.sizes, self.kind = reader, layers, sizes, kind
        self.sampling, self.device = sampling, device_of(reader.model)
        self.sampler = LabelSampler(sampling.seed)
        watch, first, made = watch or Watch(), first or {}, kind.statistics()
        self._sinks: dict[str, dict[str, Any]] = {}
        for layer, size in sizes.items():
            own = {name: make(size, reading, first.get(layer)) for name, make in made.items()}
            self._sinks[layer] = {n: s if post is None else post.route(layer, s) for n, s in own.items()}
        if issubclass(kind, Coupled):
            for layer, further in kind.link(self.sums).items():
                self._sinks[layer] |= further
        targeted = {id(layer) for layer in layers.values()}
        modules = reader.model.modules() if watch.stems else []
        leaves = [m for m in modules if next(m.children(), None) is None and id(m) not in targeted]
        self.recorder = Recorder(
            layers,
            self._sinks,
            stems=leaves,
            share=watch.share,
            groups=watch.groups,
            fraction=sampling.fraction,
            seed=sampling.seed,
        )

    @property
    def sums(self) -> dict[str, dict[str, Statistic]]:
        names = self.kind.statistics()
        return {
            layer: {name: s.statistic if isinstance(s := sinks[name], Routed) else s for name in names}
            for layer, sinks in self._sinks.items()
        }

    @property
    def groups(self) -> dict[str, str]:
        return self.recorder.groups

    def follow(self, groups: Mapping[str, str]) -> None:
        known = self.groups
        for layer, leader in groups.items():
            if layer not in known:
                common = {n: s for n, s in self._sinks[leader].items() if s.reads == "inputs" and s.shared}
                self._sinks[layer].update(common)

    def put(self, old: Statistic, new: Statistic) -> None:
        for sinks in self._sinks.values():
            sinks.update({name: new for name, sink in sinks.items() if sink is old})

    def place(self, layer: str) -> torch.device:
        module: Any = self.layers[layer]
        return module.weight.device

    def add(self, batch: Any, number: int | None = None) -> None:
        keys = self.reader.keys(batch)  # of the data where they are: from a device they would come back one by one
        batch = to_device(batch, self.device)
        with self.recorder, torch.enable_grad():
            self.recorder.begin_batch(self.reader.positions(batch), keys, number)
            scored = Scored(self.reader.read(batch), keys)
            for _ in passes(scored, self.sampling.fisher, self.sampler, self.sampling.draws):
                self.recorder.end_pass()
            self.recorder.end_batch(backpropagated=scored.items > 0)
        self.items += scored.items
        self.batches += 1


def digest(known: Any, batch: Any) -> None:
    """Add the bytes of a batch's tensors to a hash, in their order."""
    if isinstance(batch, Tensor):
        known.update(batch.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(batch, (Mapping, tuple, list)):
        for value in batch.values() if isinstance(batch, Mapping) else batch:
            digest(known, value)
