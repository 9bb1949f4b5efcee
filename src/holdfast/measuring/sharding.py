"""Sums that are too large for every process to hold: each has one owner, and rows go to it from inside the hooks."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.batches import to_device
from holdfast.curvature.curvature import Coupled, Curvature
from holdfast.curvature.statistic import LayerSize, Reading, Statistic
from holdfast.errors import HoldfastError
from holdfast.layers import device_of
from holdfast.likelihood import Items
from holdfast.measuring.ranks import Op, Ranks
from holdfast.rows.origin import Origin
from holdfast.statistics import sharing_in

Call = tuple[tuple[Tensor, ...], Origin | None]


class Post:
    """Brings rows to the owners of the sums.

    Args:
        ranks: all of them; in each exchange any rank may bring rows for any sum.
        owners: layer -> the rank that holds its sums.
        device: where rows arrive.
    """

    def __init__(self, ranks: Ranks, owners: Mapping[str, int], device: torch.device) -> None:
        self.ranks, self.owners, self.device = ranks, owners, device
        self.sinks: list[Routed] = []
        ranks.carry = self.carry

    def route(self, layer: str, statistic: Statistic) -> "Routed":
        """What stands in for a statistic in the hooks; all ranks must ask for the same in one order."""
        self.sinks.append(Routed(self, len(self.sinks), self.owners[layer], statistic))
        return self.sinks[-1]

    def deliver(self, number: int, calls: list[Call]) -> None:
        """Rows of one statistic, call by call."""
        self.ranks.exchange(Op.ROWS, number, parcel=calls)

    def carry(self, said: list[list[int]], parcel: list[Call] | None) -> None:
        """Take part in what all ranks said that they bring."""
        arrived: list[tuple[Routed, list[Call]]] = []
        for sender, (op, number, *_) in enumerate(said):
            if op != Op.ROWS:
                continue
            sink, mine = self.sinks[number], sender == self.ranks.rank
            if mine:
                assert parcel is not None
            if sink.owner == self.ranks.rank:
                arrived.append((sink, parcel if mine and parcel is not None else self._take(sender)))
            elif mine and parcel is not None:
                self._give(sink.owner, parcel)
        for sink, calls in arrived:  # after all have come, so that no sender waits for one that fails
            sink.take(calls)

    def _give(self, owner: int, calls: list[Call]) -> None:
        about = [(len(rows), origin) for rows, origin in calls]
        self.ranks.give(owner, about, [tensor for rows, _ in calls for tensor in rows])

    def _take(self, sender: int) -> list[Call]:
        about, tensors = self.ranks.take(sender, self.device)
        calls: list[Call] = []
        for count, origin in about:
            calls.append((tuple(tensors[:count]), origin))
            del tensors[:count]
        return calls


class Routed:
    """A statistic as its layer sees it on every rank; the sum itself is on the owner alone."""

    def __init__(self, post: Post, number: int, owner: int, statistic: Statistic) -> None:
        self.post, self.number, self.owner, self.statistic = post, number, owner, statistic
        self._held: list[Call] = []

    @property
    def reads(self) -> str:
        """As the statistic."""
        return self.statistic.reads

    @property
    def shared(self) -> bool:
        """As the statistic."""
        return self.statistic.shared

    @property
    def grouped(self) -> bool:
        """As the statistic."""
        return self.statistic.grouped

    def add(self, *rows: Tensor, origin: Origin | None = None) -> None:
        """Send rows; where sequences are put together from all calls of a pass, at its end."""
        if self.grouped and self.reads != "inputs":
            self._held.append((rows, origin))
        else:
            self.post.deliver(self.number, [(rows, origin)])

    def flush(self) -> None:
        """Every call of this pass is in."""
        if self._held:
            held, self._held = self._held, []
            self.post.deliver(self.number, held)

    def take(self, calls: list[Call]) -> None:
        """On the owner: one rank's rows."""
        for rows, origin in calls:
            self.statistic.add(*rows, origin=origin)
        self.statistic.flush()


def groups_in(reader: Items, layers: dict[str, nn.Module], batch: Any) -> dict[str, str]:
    """Which layers share their inputs, from one forward pass without gradients."""
    return sharing_in(layers, lambda: reader.read(to_device(batch, device_of(reader.model))))


def owners_of(
    groups: Mapping[str, str],
    sizes: Mapping[str, LayerSize],
    kinds: Sequence[type[Curvature]],
    reading: Reading,
    world: int,
) -> dict[str, int]:
    """Layer -> rank, balanced by the numbers that the sums take; layers that share are together."""
    load: dict[str, int] = {}
    for layer, size in sizes.items():
        leader = groups.get(layer, layer)
        amounts = [made.amount(size, reading) for kind in kinds for made in kind.statistics().values()]
        own = sum(amount.measured for amount in amounts if layer == leader or not amount.shared)
        load[leader] = load.get(leader, 0) + own
    held = [0] * world
    owner: dict[str, int] = {}
    for leader in sorted(load, key=lambda name: -load[name]):  # the largest first
        owner[leader] = held.index(min(held))
        held[owner[leader]] += load[leader]
    return {layer: owner[groups.get(layer, layer)] for layer in sizes}


def check_shardable(kind: type[Curvature]) -> None:
    """Raise HoldfastError for a curvature whose sums can't be apart."""
    if issubclass(kind, Coupled):
        raise HoldfastError(
            f"curvature {kind.kind!r} sums over layers together, and shard=True puts them on different ranks",
            remedy="leave shard off: ranks then share the work, and each holds all sums",
        )


def finished(
    own: Mapping[str, Curvature], owners: Mapping[str, int], kind: type[Curvature], ranks: Ranks
) -> dict[str, Curvature]:
    """All layers' curvatures in the CPU's memory of rank 0, none on the others; shared tensors stay shared.

    Args:
        own: those of the layers that this rank owns.
        owners: layer -> rank.
        kind: of all of them.
        ranks: all of them.
    """
    held = {layer: curvature.tensors() for layer, curvature in own.items()}  # alive, so that no address comes twice
    first: dict[tuple[int, torch.Size], str] = {}
    names = {
        layer: {name: first.setdefault((t.data_ptr(), t.shape), f"{layer}/{name}") for name, t in tensors.items()}
        for layer, tensors in held.items()
    }
    labels = {layer: known for part in ranks.gathered(names) for layer, known in part.items()}
    found: dict[str, Curvature] = {}
    arrived: dict[str, Tensor] = {}
    for layer, owner in owners.items():
        new = [name for name, label in labels[layer].items() if label == f"{layer}/{name}"]
        state = ranks.moved({name: held[layer][name] for name in new} if layer in held else None, owner, 0)
        if state is not None:
            arrived |= {f"{layer}/{name}": tensor.cpu() for name, tensor in state.items()}
            found[layer] = kind.from_tensors({name: arrived[label] for name, label in labels[layer].items()})
    return found
