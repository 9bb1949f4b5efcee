"""Sums as wholes: each statistic once, copies of them, and what several processes summed together."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from holdfast.curvature.statistic import Statistic
from holdfast.measuring.ranks import Ranks

Key = tuple[str, str]  # layer, name of the statistic; of layers that share it, the first
Sums = Mapping[str, Mapping[str, Statistic]]
Place = Callable[[str], torch.device | str]  # where a layer's sums are


def parts(sums: Sums) -> dict[Key, Statistic]:
    """Every statistic, once."""
    known: set[int] = set()
    found = {}
    for layer, own in sums.items():
        for name, statistic in own.items():
            if id(statistic) not in known:
                known.add(id(statistic))
                found[layer, name] = statistic
    return found


def copied(statistic: Statistic) -> Statistic:
    """A statistic of its own in the same state."""
    return type(statistic).restored(statistic.size, statistic.reading, statistic.state(), statistic.first)


def placed(state: Mapping[str, Tensor], statistic: Statistic, place: torch.device | str) -> dict[str, Tensor]:
    """A state where its sums belong: beside the layer, or where the reading keeps them."""
    device = "cpu" if statistic.reading.offload is not None else place
    return {name: tensor.to(device) for name, tensor in state.items()}


def over_ranks(statistics: Mapping[Key, Statistic], ranks: Ranks, place: Place) -> dict[Key, Statistic]:
    """What all ranks summed together, on every rank; what adds up is added in place. All ranks must call it.

    The ranks hold the same statistics, though some of them may have seen no row.
    """
    if ranks.world == 1:
        return dict(statistics)
    seen = ranks.gathered({k: (s.sum.shape, s.sum.dtype) for k, s in statistics.items() if s.sum is not None})
    known = {key: shape for one in reversed(seen) for key, shape in one.items()}
    found = {}
    for key, statistic in statistics.items():
        if key not in known:
            found[key] = statistic
        elif statistic.additive:
            found[key] = _added(statistic, known[key], ranks, place(key[0]))
        else:
            found[key] = _merged(statistic, ranks, place(key[0]))
    return found


def _added(
    statistic: Statistic, known: tuple[torch.Size, torch.dtype], ranks: Ranks, place: torch.device | str
) -> Statistic:
    shape, dtype = known
    if statistic.sum is None:
        empty = {"rows": torch.zeros(1), "sum": torch.zeros(shape, dtype=dtype)}
        statistic.merge(placed(empty, statistic, place))
    rows = torch.tensor([statistic.rows])
    ranks.add_up(rows)
    statistic.rows = int(rows)
    ranks.add_up(statistic.result())
    return statistic


def _merged(statistic: Statistic, ranks: Ranks, place: torch.device | str) -> Statistic:
    """Rank by rank in one order, so that all come to the same."""
    whole = type(statistic)(statistic.size, statistic.reading, statistic.first)
    for source in range(ranks.world):
        state = ranks.spread(statistic.state() if ranks.rank == source else None, source)
        whole.merge(placed(state, whole, place))
    return whole


def on_first_rank(
    statistic: Statistic, ranks: Ranks, owner: int | None, place: torch.device | str
) -> dict[str, Tensor]:
    """The state of what all ranks summed, in the CPU's memory of rank 0; empty on the others. All ranks must call it.

    `owner` is the only rank that holds the statistic, if there is one.
    """
    if owner is not None:
        return ranks.moved(_resting(statistic) if ranks.rank == owner else None, owner, 0) or {}
    whole = copied(statistic) if ranks.first and ranks.world > 1 else statistic
    for source in range(1, ranks.world):
        state = ranks.moved(_resting(statistic) if ranks.rank == source else None, source, 0)
        if state is not None:
            whole.merge(placed(state, whole, place))
    return _resting(whole) if ranks.first else {}


def _resting(statistic: Statistic) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in statistic.state().items()}


def taken_in(statistic: Statistic, state: Mapping[str, Tensor], place: torch.device | str) -> None:
    """Add a state that was read from a file or came from another rank."""
    statistic.merge(placed(state, statistic, place))


def groups_together(found: Iterable[Mapping[str, str]]) -> dict[str, str] | None:
    """Which layers share, from what several saw (`holdfast.rows.sharing`); None where they contradict each other."""
    together: dict[str, str] = {}
    for groups in found:
        for layer, leader in groups.items():
            if together.setdefault(layer, leader) != leader:
                return None
    return together
