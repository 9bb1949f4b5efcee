"""How well a curvature is known: two halves of the data, held against each other along its leading directions."""

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from holdfast.curvature.curvature import Curvature
from holdfast.curvature.statistic import Statistic
from holdfast.measuring.accumulation import copied, over_ranks, parts
from holdfast.measuring.measurement import Summation
from holdfast.measuring.ranks import Ranks

LEADING = 4  # directions of each layer
STEPS = 5  # of power iteration
FIRST = 4  # rounds before the first comparison: two for each half
GROWTH = 1.25  # of the items between two comparisons


def agreement(
    halves: Sequence[Summation], items: Sequence[int], ranks: Ranks, owned: Callable[[str], bool] | None = None
) -> float:
    """The relative standard error of q = <D, C D>, as the root of its mean square over the layers.

    For each layer, D goes through the leading directions of the whole: the first LEADING pairs u v^T of orthonormal u
    and v that alternating power iteration of C D finds. With q_A and q_B of two halves of the data, half their
    difference has the standard deviation of q of the whole, so the layer's error is

        1/2 |q_A - q_B| / |q|,  norms over the directions.

    The mean over layers is taken of squares: the largest of hundreds of such errors is mostly chance, and a forecast
    adds up all layers. Products between layers, where a curvature has some, are not looked at. A layer that one half
    never reached counts as unknown: error 1.

    Args:
        halves: sums over disjoint halves of the batches, in the same groups.
        items: of each half, over all ranks.
        ranks: those that summed together.
        owned: with sharding, whether a layer's sums are here; None: all ranks hold parts of all sums.
    """
    total = torch.zeros(2, dtype=torch.float64)  # sum of squares, layers
    for members in _grouped(halves[0], owned):
        measured = [_whole(half, members, ranks if owned is None else Ranks()) for half in halves]
        for layer in members:
            total += torch.tensor([_error(halves, items, [one[layer] for one in measured], layer) ** 2, 1.0])
    if owned is not None:
        ranks.add_up(total)
    mine = float((total[0] / total[1].clamp_min(1)).sqrt())
    return ranks.gathered(mine)[0]  # one answer for all, whatever rounding does


def _grouped(half: Summation, owned: Callable[[str], bool] | None) -> list[list[str]]:
    """Layers that share sums, together: copies of those are made once."""
    members: dict[str, list[str]] = {}
    for layer in half.sizes:
        if owned is None or owned(layer):
            members.setdefault(half.groups.get(layer, layer), []).append(layer)
    return list(members.values())


def _whole(half: Summation, layers: Collection[str], ranks: Ranks) -> dict[str, dict[str, Statistic]]:
    """Copies of those layers' statistics, summed over the ranks; the originals go on counting."""
    sums = {layer: half.sums[layer] for layer in layers}
    originals = parts(sums)
    made = over_ranks({key: copied(one) for key, one in originals.items()}, ranks, half.place)
    known = {id(one): made[key] for key, one in originals.items()}
    return {layer: {name: known[id(one)] for name, one in own.items()} for layer, own in sums.items()}


def _error(
    halves: Sequence[Summation], items: Sequence[int], sums: Sequence[dict[str, Statistic]], layer: str
) -> float:
    if any(statistic.sum is None for own in sums for statistic in own.values()):
        return 1.0
    kind, size = halves[0].kind, halves[0].sizes[layer]
    made = [_plain(kind.from_sums(size, own, count)) for own, count in zip(sums, items, strict=True)]
    return split_error(made, [count / sum(items) for count in items])


def _plain(curvature: Curvature) -> Curvature:
    """With all its tensors in one precision."""
    tensors = curvature.tensors()
    dtype = torch.float32
    for tensor in tensors.values():
        dtype = torch.promote_types(dtype, tensor.dtype) if tensor.is_floating_point() else dtype
    return type(curvature).from_tensors({name: tensor.to(dtype) for name, tensor in tensors.items()})


def split_error(halves: Sequence[Curvature], shares: Sequence[float]) -> float:
    """1/2 |q_A - q_B| / |q| over the leading directions of the whole, which is `shares` of the halves."""
    ups, downs = _leading(halves, shares)
    prices = torch.stack(
        [torch.stack([(up * half.thin(up, down)[0]).sum() for up, down in _pairs(ups, downs)]) for half in halves]
    ).double()
    whole = (prices * prices.new_tensor(shares)[:, None]).sum(dim=0).norm()
    difference = (prices[0] - prices[1]).norm() / 2
    return 0.0 if float(difference) == 0 else float(difference / whole)


def _leading(halves: Sequence[Curvature], shares: Sequence[float]) -> tuple[Tensor, Tensor]:
    """(out, k) and (in, k), orthonormal: pairs u, v that C u v^T gives back, the largest first."""
    out, inn = halves[0].shape
    count = min(LEADING, out, inn)
    like = next(tensor for tensor in halves[0].tensors().values() if tensor.is_floating_point())
    generator = torch.Generator().manual_seed(0)
    ups, downs = (_orthonormal(torch.randn(n, count, generator=generator).to(like)) for n in (out, inn))
    for _ in range(STEPS):
        new_ups, new_downs = torch.zeros_like(ups), torch.zeros_like(downs)
        for column, (up, down) in enumerate(_pairs(ups, downs)):
            for half, share in zip(halves, shares, strict=True):
                for_up, for_down = half.thin(up, down)  # (C u v^T) v and u^T (C u v^T)
                new_ups[:, column] += share * for_up[:, 0]
                new_downs[:, column] += share * for_down[0]
        ups, downs = _orthonormal(new_ups), _orthonormal(new_downs)
    return ups, downs


def _orthonormal(columns: Tensor) -> Tensor:
    return torch.linalg.qr(columns).Q


def _pairs(ups: Tensor, downs: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Rank-one directions: (out, 1) and (1, in) each."""
    return [(up[:, None], down[None]) for up, down in zip(ups.T, downs.T, strict=True)]
