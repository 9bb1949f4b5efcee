"""Stored samples over all layers at once: what layers do to an example together, cross terms included."""

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from holdfast.curvature.curvature import Coupled, Movement
from holdfast.curvature.examples import Examples
from holdfast.curvature.identity import Identity
from holdfast.curvature.statistic import LayerSize, Statistic
from holdfast.curvature.stored import Stored
from holdfast.errors import HoldfastError


class SamplesJoint(Stored, Coupled):
    """q = rows/(N items) * sum over N examples of (sum over layers and t of g_lnt^T D_l x_lnt)^2.

    The squared derivative of an example's loss along the shift of all layers together, so products between layers
    stay: moves of two layers that undo each other cost nothing, moves that add up cost more than their sum. Layers
    keep the same examples, drawn as for "samples". Per sequence (the default) with sampled labels this is an unbiased
    estimate of the Fisher of all layers' weights, exact for `keep` at or above the number of sequences; per token,
    products between positions are left out, and every layer must have the same rows: no strided convolutions, no
    pooled heads. Of rank N over all layers: damping (each layer's own mean eigenvalue) prices the rest. Squares of N
    examples make an estimate whose relative error along a shift is sqrt(2 / N) or more, so it takes hundreds of
    sequences (or draws of their labels).
    """

    kind = "samples-joint"
    holds = False  # a shift finds what the samples did not see
    paper = "natural gradient, arXiv 1412.1193"
    per = "sequence"

    @classmethod
    def statistics(cls) -> dict[str, type[Statistic]]:
        return {"examples": Examples}

    @classmethod
    def link(cls, sums: Mapping[str, Mapping[str, Statistic]]) -> dict[str, dict[str, Statistic]]:
        """No further receivers; each layer is told of the first, whose examples it must have."""
        leader: tuple[str, Examples] | None = None
        for name, own in sums.items():
            examples = own["examples"]
            assert isinstance(examples, Examples)
            examples.peer = leader
            leader = leader or (name, examples)
        return {}

    @classmethod
    def from_sums(cls, size: LayerSize, sums: Mapping[str, Statistic], items: int) -> Self:
        """Raises HoldfastError where another layer has other examples."""
        examples = sums["examples"]
        assert isinstance(examples, Examples)
        if examples.peer is not None:
            name, peer = examples.peer
            if examples.rows != peer.rows or not torch.equal(examples.names, peer.names):
                raise _apart(f"a layer has {examples.rows} examples that are not the {peer.rows} of layer {name!r}")
        return cls.estimated(size, examples, items)

    @classmethod
    def joint(cls, curvatures: Mapping[str, Self], shifts: Mapping[str, Movement]) -> Tensor:
        first = next(iter(curvatures.values()))
        scores, ridges = [], []
        for name, curvature in curvatures.items():
            if curvature.names != first.names:
                raise _apart(f"layer {name!r} keeps other examples than layer {next(iter(curvatures))!r}")
            scores.append(shifts[name].projected(curvature.inputs, curvature.gradients).to(first.gradients.device))
            if curvature.raised:
                length = shifts[name].priced(Identity.of_shape(*curvature.shape))
                ridges.append(length.to(first.gradients.device) * curvature.raised)
        return torch.stack(scores).sum(dim=0).square().sum() + sum(ridges)


def _apart(what: str) -> HoldfastError:
    return HoldfastError(
        f"{SamplesJoint.kind} adds up what all layers do to the same examples: {what}",
        causes=["per='token', and layers with other numbers of rows", "a layer that some of the source never reaches"],
        remedy="measure per='sequence', leave such layers out of the targets, or ask for curvature='samples'",
    )
