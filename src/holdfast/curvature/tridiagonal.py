"""Block-tridiagonal Kronecker curvature: KFAC with the terms between neighbouring layers."""

import math
from collections.abc import Mapping, Sequence
from itertools import chain, pairwise
from typing import NamedTuple, Self

import torch
from torch import Tensor

from holdfast.curvature.curvature import Coupled, Movement
from holdfast.curvature.kronecker import Kronecker
from holdfast.curvature.moments import InputMoment
from holdfast.curvature.neighbours import (
    GradientsBefore,
    InputsBefore,
    Link,
    Next,
    NextGradients,
    NextInputs,
    linkable,
)
from holdfast.curvature.statistic import LayerSize, Reading, Statistic
from holdfast.factors.amount import Amount


class Cross(NamedTuple):
    """The block between a layer and the next: S' = E[x x'^T], (in, in'), and G' = E[g g'^T], (out, out')."""

    inputs: Tensor
    gradients: Tensor


class Tridiagonal(Coupled):
    """q = sum_l <D_l, G_l D_l S_l> + 2 tau sum_l <D_l, G_l' D_(l+1) S_l'^T>: KFAC with its neighbouring blocks.

    G_l' = 1/items * sum over rows g_l g_(l+1)^T and S_l' = 1/rows * sum over rows x_l x_(l+1)^T for layers l and l + 1
    that follow each other in the model's order (arXiv 1503.05671 sec. 3: E[x_i x_j^T] kron E[g_i g_j^T] for each pair
    of layers). With D_l = c_l B_l A_l a cross term is 2 c_l c_(l+1) sum((B_l^T G_l' B_(l+1)) * (A_l S_l' A_(l+1)^T)):
    r x r, no D. Exact, with tau = 1 and up to what lies between layers further apart, where Kronecker is: for a linear
    network with squared error, and for one row; a linear network of two layers has its whole Fisher.

    The band is that of the precision, the Fisher itself. Martens & Grosse (sec. 4.3) make the inverse tridiagonal
    instead: that suits steps, which need the inverse; a penalty needs products with the Fisher, which would cost dense
    solves along the whole chain, with nothing in the size of an adapter's rank.

    **Taper.** Blocks of all pairs make a positive semi-definite whole, since they are those of a Kronecker product of
    two Gram matrices; cut to a band it need not be. Multiplying the blocks by the entries of a positive semi-definite
    matrix T keeps it so (Schur's product theorem). T with 1 on the diagonal, tau beside it and 0 elsewhere has
    the eigenvalues 1 + 2 tau cos(k pi / (n + 1)) for a chain of n layers, so the largest tau is

        tau = 1 / (2 cos(pi / (n + 1))),

    1 for two layers, 0.71 for three, towards 1/2 for many: the default. `joint(..., taper=False)` is the plain band.

    **Chains.** Rows of two layers must match one to one. Layers with other rows (strided or pooled, modules called
    more often), embeddings, and layers whose factors are not stored in full have no block with their neighbours, nor
    have the neighbours of a layer without a shift: the chain is broken there, and each piece has a tau of its own. In
    the space of an adapter (LaLoRA's block-tridiagonal KFAC) the two factors of each module are a chain of their own,
    so that tau is 1: with both measured at one start it is the whole form of the linearised shift.
    Anchors of this kind are not stored in bfloat16, where blocks would be rounded one by one.
    """

    kind = "tridiagonal"
    paper = "KFAC, arXiv 1503.05671 sec. 3 and 4.3; LaLoRA, arXiv 2512.17720"
    linear = False
    rounds = False  # blocks that are rounded one by one are no longer those of one positive matrix

    def __init__(self, own: Kronecker, place: Tensor, cross: Cross | None = None) -> None:
        self.own = own  # the diagonal block
        self.place = place  # (1,), number of the layer in the model's order
        self.cross = cross  # with the layer at the next place; None where the chain ends
        self.number = int(place)

    @classmethod
    def statistics(cls) -> dict[str, type[Statistic]]:
        return Kronecker.statistics() | {"next_inputs": NextInputs, "next_gradients": NextGradients}

    @classmethod
    def link(cls, sums: Mapping[str, Mapping[str, Statistic]]) -> dict[str, dict[str, Statistic]]:
        """Each layer's rows go to the layer before it as well, unless one of the two can't be linked."""
        further: dict[str, dict[str, Statistic]] = {}
        for place, name in enumerate(chain.from_iterable(_by_chain(sums))):
            for half in _halves(sums[name]):
                half.place = place
        for before, name in chain.from_iterable(map(pairwise, _by_chain(sums))):
            inputs, gradients = _halves(sums[before])
            size, reading = _halves(sums[name])[0].size, inputs.reading
            if linkable(inputs.size) and linkable(size):
                inputs.link, gradients.link = Link(reading), Link(reading)
                further[name] = {
                    "inputs_before": InputsBefore(size, reading, link=inputs.link),
                    "gradients_before": GradientsBefore(size, reading, link=gradients.link),
                }
        return further

    @classmethod
    def numbers(cls, size: LayerSize, reading: Reading, following: LayerSize | None = None) -> dict[str, Amount]:
        own = Kronecker.numbers(size, reading)
        if following is None or not (linkable(size) and linkable(following)):
            return own
        counts = {"next.inputs": size.inn * following.inn, "next.gradients": size.out * following.out}
        return own | {name: Amount(count * reading.halves, count, count) for name, count in counts.items()}

    @classmethod
    def from_sums(cls, size: LayerSize, sums: Mapping[str, Statistic], items: int) -> Self:
        inputs = sums["inputs"]
        assert isinstance(inputs, InputMoment)
        x, g = (half.matched() for half in _halves(sums))
        cross = None if x is None or g is None else Cross(x / max(inputs.rows, 1), g / items)
        return cls(Kronecker.from_sums(size, sums, items), torch.tensor([_halves(sums)[0].place]), cross)

    @classmethod
    def joint(cls, curvatures: Mapping[str, Self], shifts: Mapping[str, Movement], *, taper: bool = True) -> Tensor:
        first = next(iter(curvatures.values())).own.gradients.diagonal().device
        terms = [shifts[name].priced(curvature.own) for name, curvature in curvatures.items()]
        for layers in chains(curvatures):
            tau = 1 / (2 * math.cos(math.pi / (len(layers) + 1))) if taper else 1.0
            for name, following in pairwise(layers):
                cross = curvatures[name].cross
                assert cross is not None
                between = shifts[name].between(shifts[following], cross.gradients, cross.inputs)
                terms.append(2 * tau * between)
        return torch.stack([term.to(first) for term in terms]).sum()

    def apply(self, delta: Tensor) -> Tensor:
        return self.own.apply(delta)

    def thin(self, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        return self.own.thin(up, down)

    def sparse(self, values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        return self.own.sparse(values, rows, columns)

    def damped(self, damping: float) -> Self:
        """Own blocks as Kronecker's: ridges on both factors of a block matrix leave it positive."""
        return type(self)(self.own.damped(damping), self.place, self.cross)

    @classmethod
    def merged(cls, parts: Sequence[Self], shares: Sequence[float]) -> Self:
        """As Kronecker, S and S' by rows, G and G' by scored items; without a block where a part has none."""
        own = Kronecker.merged([part.own for part in parts], shares)
        crosses = [part.cross for part in parts if part.cross is not None]
        if len(crosses) < len(parts):
            return cls(own, parts[0].place)
        by_rows = [float(part.own.rows) / float(own.rows) for part in parts]
        inputs = torch.stack([c.inputs * weight for c, weight in zip(crosses, by_rows, strict=True)]).sum(dim=0)
        gradients = torch.stack([c.gradients * share for c, share in zip(crosses, shares, strict=True)]).sum(dim=0)
        return cls(own, parts[0].place, Cross(inputs, gradients))

    def captured(self) -> dict[str, float]:
        return self.own.captured()

    def tensors(self) -> dict[str, Tensor]:
        cross = {} if self.cross is None else self.cross._asdict()
        return self.own.tensors() | {"place": self.place} | {f"next.{name}": tensor for name, tensor in cross.items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Self:
        own = {name: tensor for name, tensor in tensors.items() if name != "place" and not name.startswith("next.")}
        linked = "next.inputs" in tensors
        cross = Cross(tensors["next.inputs"], tensors["next.gradients"]) if linked else None
        return cls(Kronecker.from_tensors(own), tensors["place"], cross)

    @property
    def shape(self) -> tuple[int, int]:
        return self.own.shape


def chains(curvatures: Mapping[str, Tridiagonal]) -> list[list[str]]:
    """The layers in the model's order, in pieces whose neighbours have a block between them."""
    found: list[list[str]] = []
    for name in sorted(curvatures, key=lambda one: curvatures[one].number):
        before = curvatures[found[-1][-1]] if found else None
        if before is not None and before.cross is not None and before.number + 1 == curvatures[name].number:
            found[-1].append(name)
        else:
            found.append([name])
    return found


def _by_chain(sums: Mapping[str, Mapping[str, Statistic]]) -> list[list[str]]:
    """The layers of each chain that `LayerSize.chain` names, in the model's order."""
    found: dict[str, list[str]] = {}
    for name, own in sums.items():
        found.setdefault(_halves(own)[0].size.chain, []).append(name)
    return list(found.values())


def _halves(sums: Mapping[str, Statistic]) -> tuple[Next, Next]:
    inputs, gradients = sums["next_inputs"], sums["next_gradients"]
    assert isinstance(inputs, Next)
    assert isinstance(gradients, Next)
    return inputs, gradients
