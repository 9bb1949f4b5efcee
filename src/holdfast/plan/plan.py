"""A plan: how each layer's curvature is kept, and what that takes."""

from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import pairwise
from typing import Any

from holdfast import factors
from holdfast.curvature.curvature import Curvature
from holdfast.curvature.statistic import LayerSize, Reading
from holdfast.factors.amount import Amount
from holdfast.factors.factor import Storage

FLOAT = 4  # bytes of a number of the sums
SIDES = ("inputs", "gradients")
FULL = factors.storage("full")


@dataclass(frozen=True)
class Plan:
    """How each layer's curvature is kept.

    Attributes:
        kind: of curvature.
        sizes: layer -> its size, with the storages of both sides.
        leaders: as in `holdfast.plan.shapes.Shapes`.
        reading: how rows are read.
        budget: bytes, where there is one.
        each: bytes of a number in memory.
        notes: what was decided without being asked for.
    """

    kind: type[Curvature]
    sizes: dict[str, LayerSize]
    leaders: dict[str, str]
    reading: Reading
    budget: int | None = None
    each: int = FLOAT
    notes: tuple[str, ...] = ()

    @property
    def layers(self) -> dict[str, Amount]:
        """Layer -> what it takes; what layers share is counted with the first of them."""
        return {name: self.amount(name) for name in self.sizes}

    def amount(self, layer: str) -> Amount:
        """What one layer takes."""
        leads, after = self.leaders.get(layer, layer) == layer, self.following.get(layer)
        return _amount(self.kind, self.sizes[layer], self.reading, leads, None if after is None else self.sizes[after])

    @cached_property
    def following(self) -> dict[str, str]:
        """Layer -> the next one of its chain."""
        chains: dict[str, list[str]] = {}
        for name, size in self.sizes.items():
            chains.setdefault(size.chain, []).append(name)
        return {before: name for chain in chains.values() for before, name in pairwise(chain)}

    @cached_property
    def links(self) -> dict[str, bool]:
        """Layer -> whether it has a block with the next of its chain, for kinds that have such blocks at all."""
        full = {name: replace(size, inputs=FULL, gradients=FULL) for name, size in self.sizes.items()}

        def linked(size: LayerSize, after: LayerSize) -> bool:
            together, alone = (_amount(self.kind, size, self.reading, True, other) for other in (after, None))
            return together != alone

        return {
            name: linked(self.sizes[name], self.sizes[after])
            for name, after in self.following.items()
            if linked(full[name], full[after])
        }

    @property
    def total(self) -> Amount:
        """What all layers take together."""
        return sum(self.layers.values(), Amount())

    @property
    def bytes(self) -> int:
        """The most that is in memory at a time."""
        return self.total.held * self.each

    @cached_property
    def sided(self) -> bool:
        """Whether the kind's memory depends on the storages of the sides."""
        return any(_sided(self.kind, size, self.reading) for size in set(self.sizes.values()))

    def facts(self) -> dict[str, Any]:
        """The plan as it is recorded in an anchor."""
        layers = {name: {side: getattr(size, side).name for side in SIDES} for name, size in self.sizes.items()}
        return {"budget": self.budget, "bytes": self.bytes, "notes": list(self.notes)} | (
            {"layers": layers} if self.sided else {}
        )


def suits(plan: Plan, storage: str) -> bool:
    """Whether the kind keeps its sides in such a structure; every kind is full where nothing else is said."""
    structures = {factors.storage(name).structure for name in (*plan.kind.ladder, "blocks:1")}
    return factors.storage(storage) == FULL or (plan.sided and factors.storage(storage).structure in structures)


def uncoupled(plan: Plan) -> bool:
    """Whether the kind has blocks between neighbours, and none of the plan's layers is kept so that it has one."""
    return bool(plan.links) and not any(plan.links.values())


def kept(size: LayerSize, side: str, storage: Storage) -> LayerSize:
    """The size with one of its `SIDES` in that storage."""
    return replace(size, inputs=storage) if side == SIDES[0] else replace(size, gradients=storage)


@cache
def _amount(
    kind: type[Curvature], size: LayerSize, reading: Reading, leads: bool, following: LayerSize | None
) -> Amount:
    """What a layer takes, without what it shares with a layer before it."""
    return sum((a for a in kind.numbers(size, reading, following).values() if leads or not a.shared), Amount())


@cache
def _sided(kind: type[Curvature], size: LayerSize, reading: Reading) -> bool:
    narrow, full = (
        replace(size, inputs=storage, gradients=storage) for storage in map(factors.storage, ("diagonal", "full"))
    )
    return kind.numbers(narrow, reading) != kind.numbers(full, reading)
