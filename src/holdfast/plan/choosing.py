"""How each layer's curvature is kept: in full where that fits, in smaller structures where it does not."""

from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import pairwise
from typing import Any, NamedTuple

from holdfast import catalogue, factors
from holdfast.curvature.curvature import Curvature
from holdfast.curvature.statistic import LayerSize, Reading
from holdfast.errors import HoldfastError
from holdfast.factors.amount import Amount
from holdfast.factors.factor import Storage
from holdfast.memory import bytes_of, text_of
from holdfast.plan.shapes import Shapes, of_config
from holdfast.targets import ALL_LINEAR, Targets

WIDEST = 30_000  # a side that may have to be kept in full: above the MLPs of known models, below vocabularies
FLOAT = 4  # bytes of a number of the sums
SIDES = ("inputs", "gradients")


class _Side(NamedTuple):
    """One factor: of a layer's output gradients, or of the inputs of all layers that share them."""

    width: int
    name: str
    layers: tuple[str, ...]


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

    @property
    def total(self) -> Amount:
        """What all layers take together."""
        return sum(self.layers.values(), Amount())

    @property
    def bytes(self) -> int:
        """The most that is in memory at a time."""
        return self.total.held * self.each

    @property
    def sided(self) -> bool:
        """Whether the kind's memory depends on the storages of the sides."""
        return any(_sided(self.kind, size, self.reading) for size in set(self.sizes.values()))

    def facts(self) -> dict[str, Any]:
        """The plan as it is recorded in an anchor."""
        layers = {name: {side: getattr(size, side).name for side in SIDES} for name, size in self.sizes.items()}
        return {"budget": self.budget, "bytes": self.bytes, "notes": list(self.notes)} | (
            {"layers": layers} if self.sided else {}
        )


def make(
    shapes: Shapes,
    kind: type[Curvature],
    reading: Reading | None = None,
    *,
    memory: int | str | None = None,
    storage: str | None = None,
    each: int = FLOAT,
) -> Plan:
    """Choose how both sides of every layer are stored.

    Without a budget all are full, but for sides wider than `WIDEST` (a vocabulary's), which are diagonal. With one,
    sides go down the kind's ladder of storages until the sums and the finished curvature fit: all of them one rung
    before any goes to the next; the widest first; of one width, the model's last first.

    Args:
        shapes: the layers.
        kind: of curvature.
        reading: how rows are read.
        memory: the budget: bytes, or "4GiB".
        storage: of every side that takes fewer numbers so than in full ("blocks:1024"); None: as above.
        each: bytes of a number in memory.

    Raises:
        HoldfastError: no such storage, or a budget that the smallest choice is too large for.
    """
    reading, budget = reading or Reading(), None if memory is None else bytes_of(memory)
    plan = Plan(kind, shapes.sizes, shapes.leaders, reading, budget, each)
    ladder = kind.ladder if plan.sided and storage is None else ()
    if ladder:
        sizes = {name: _narrowed(size, ladder[-1], WIDEST) for name, size in shapes.sizes.items()}
        plan = replace(plan, sizes=sizes, notes=_notes(shapes.sizes, sizes))
    elif storage is not None:
        factors.storage(storage)  # refused where no side is asked for its storage, too
        plan = replace(plan, sizes={n: _narrowed(s, storage, 0) if plan.sided else s for n, s in plan.sizes.items()})
    return plan if budget is None or plan.bytes <= budget else _fitted(plan, ladder[1:], budget)


def from_config(
    name: str,
    targets: Targets = ALL_LINEAR,
    kind: str = "kronecker",
    *,
    memory: int | str | None = None,
    storage: str | None = None,
    reading: Reading | None = None,
) -> Plan:
    """The plan for a model of which only the configuration is known (`holdfast.plan.shapes.of_config`).

    Raises:
        HoldfastError: as there, and as for `make`.
    """
    return make(of_config(name, targets), catalogue.curvature(kind), reading, memory=memory, storage=storage)


def _fitted(plan: Plan, ladder: tuple[str, ...], budget: int) -> Plan:
    """The plan with its sides as far down the ladder as the budget asks for."""
    plan = replace(plan, sizes=dict(plan.sizes))
    sizes, total = plan.sizes, plan.total
    before = {name: layer for layer, name in plan.following.items()}
    for storage in map(factors.storage, ladder):
        for side in _sides(plan):
            if storage.numbers(side.width) >= getattr(sizes[side.layers[0]], side.name).numbers(side.width):
                continue
            touched = {*side.layers, *(before[name] for name in side.layers if name in before)}
            total -= sum(map(plan.amount, touched), Amount())
            sizes |= {name: _kept(sizes[name], side.name, storage) for name in side.layers}
            total += sum(map(plan.amount, touched), Amount())
            if total.held * plan.each <= budget:
                return plan
    raise _too_large(plan, budget)


def _sides(plan: Plan) -> list[_Side]:
    """Every factor on its own, the widest first, of one width the last first.

    Where it is not known which layers share their inputs, those of one width are taken together: those that turn out
    to share are then stored alike.
    """
    shared = any(a.shared for size in set(plan.sizes.values()) for a in plan.kind.numbers(size, plan.reading).values())
    together: dict[Any, list[str]] = {}
    for name, size in plan.sizes.items():
        leader = plan.leaders.get(name, name) if plan.leaders else size.inn
        together.setdefault((size.inn, leader if shared else name), []).append(name)
    found = [_Side(width, "inputs", tuple(names)) for (width, _), names in together.items()]
    found += [_Side(size.out, "gradients", (name,)) for name, size in plan.sizes.items()]
    order = list(plan.sizes)
    return sorted(found, key=lambda side: (-side.width, -order.index(side.layers[0])))


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


def _narrowed(size: LayerSize, name: str, above: int) -> LayerSize:
    """The size with sides of more numbers than `above` in that storage, where it is the smaller one."""
    storage = factors.storage(name)
    for side, width in (("inputs", size.inn), ("gradients", size.out)):
        if width > above and storage.numbers(width) < getattr(size, side).numbers(width):
            size = _kept(size, side, storage)
    return size


def _kept(size: LayerSize, side: str, storage: Storage) -> LayerSize:
    """The size with one of its `SIDES` in that storage."""
    return replace(size, inputs=storage) if side == SIDES[0] else replace(size, gradients=storage)


def _notes(before: dict[str, LayerSize], after: dict[str, LayerSize]) -> tuple[str, ...]:
    return tuple(
        f"{name}: its {side} have {width} numbers, more than {WIDEST}: stored as {getattr(after[name], side).name}"
        for name, size in before.items()
        for side, width in (("inputs", size.inn), ("gradients", size.out))
        if getattr(after[name], side) != getattr(size, side)
    )


def _too_large(plan: Plan, budget: int) -> HoldfastError:
    """The error for a budget below the smallest choice."""
    others = [
        kind
        for kind in map(catalogue.curvature, catalogue.names("curvature"))
        if kind.forecasts and _smallest(plan, kind).bytes <= budget
    ]
    instead = f", or curvature={' or '.join(repr(kind.kind) for kind in others)}" if others else ""
    return HoldfastError(
        f"curvature {plan.kind.kind!r} of {len(plan.sizes)} layers takes at least {plan.bytes} bytes "
        f"({text_of(plan.bytes)}) in the storages it has, and the budget is {budget} ({text_of(budget)})",
        wanted="a budget that holds the running sums and the finished curvature",
        remedy=f"give {plan.bytes} bytes or more, fewer targets{instead}",
    )


def _smallest(plan: Plan, kind: type[Curvature]) -> Plan:
    sizes = {name: _narrowed(size, kind.ladder[-1], 0) for name, size in plan.sizes.items()}
    return replace(plan, kind=kind, sizes=sizes)
