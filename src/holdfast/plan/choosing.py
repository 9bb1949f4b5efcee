"""How each layer's curvature is kept: in full where that fits, in smaller structures where it does not."""

from dataclasses import replace
from typing import Any, NamedTuple

from holdfast import catalogue, factors
from holdfast.curvature.curvature import Curvature
from holdfast.curvature.statistic import LayerSize, Reading
from holdfast.errors import HoldfastError
from holdfast.factors.amount import Amount
from holdfast.memory import bytes_of, text_of
from holdfast.plan.plan import FLOAT, Plan, kept, suits
from holdfast.plan.shapes import Shapes, of_config
from holdfast.targets import ALL_LINEAR, Targets

WIDEST = 30_000  # a side that may have to be kept in full: above the MLPs of known models, below vocabularies


class _Side(NamedTuple):
    """One factor: of a layer's output gradients, or of the inputs of all layers that share them."""

    width: int
    name: str
    layers: tuple[str, ...]


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
        _check_suits(plan, storage)
        plan = replace(plan, sizes={n: _narrowed(s, storage, 0) if plan.sided else s for n, s in plan.sizes.items()})
    if budget is not None and plan.bytes > budget:
        plan = _fitted(plan, ladder[1:], budget)
    return replace(plan, notes=(*plan.notes, *_broken(plan)))


def _check_suits(plan: Plan, storage: str) -> None:
    if not suits(plan, storage):
        names = dict.fromkeys(name.split(":")[0] for name in (*plan.kind.ladder, "blocks"))
        raise HoldfastError(
            f"storage={storage!r} is nothing that curvature {plan.kind.kind!r} can be kept in",
            wanted=f"one of {', '.join(names)}" if plan.sided else "",
            causes=[] if plan.sided else ["it has no factor on each side of a layer, which a storage is of"],
            remedy="leave it out, or choose another curvature, kronecker say",
        )


def _broken(plan: Plan) -> tuple[str, ...]:
    """What is lost where sides are not full: blocks between neighbours."""
    lost = sum(not linked for linked in plan.links.values())
    if not lost:
        return ()
    return (
        f"{lost} of {len(plan.links)} blocks between neighbouring layers are left out: they need all four sides full",
    )


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
            sizes |= {name: kept(sizes[name], side.name, storage) for name in side.layers}
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


def _narrowed(size: LayerSize, name: str, above: int) -> LayerSize:
    """The size with sides of more numbers than `above` in that storage, where it is the smaller one."""
    storage = factors.storage(name)
    for side, width in (("inputs", size.inn), ("gradients", size.out)):
        if width > above and storage.numbers(width) < getattr(size, side).numbers(width):
            size = kept(size, side, storage)
    return size


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
        f"curvature {plan.kind.kind!r} of {len(plan.sizes)} layers takes at least {text_of(plan.bytes)} "
        f"({plan.bytes} bytes) in the storages it has, and the budget is {text_of(budget)} ({budget} bytes)",
        wanted="a budget that holds the running sums and the finished curvature",
        remedy=f"give that much or more, or fewer targets{instead}",
    )


def _smallest(plan: Plan, kind: type[Curvature]) -> Plan:
    sizes = {name: _narrowed(size, kind.ladder[-1], 0) for name, size in plan.sizes.items()}
    return replace(plan, kind=kind, sizes=sizes, reading=replace(plan.reading, per=kind.per))
