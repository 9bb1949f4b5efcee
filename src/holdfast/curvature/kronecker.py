"""Kronecker-factored curvature (KFAC): input directions times output directions."""

from collections.abc import Mapping
from typing import Self

from holdfast.curvature.moments import GradientMoment, InputMoment
from holdfast.curvature.statistic import LayerSize, Statistic
from holdfast.curvature.two_sided import TwoSided


class Kronecker(TwoSided):
    """C D = G D S: KFAC of the weight shift (arXiv 1503.05671 sec. 3; arXiv 2402.12220, KFAC penalty).

    G = 1/items * sum over rows g g^T, (out, out); S = 1/rows * sum over rows x x^T, (in, in), or its exact
    diagonal (in,) for an embedding. With D = up @ down,

        <D, C D> = sum((up^T G up) * (down S down^T)),

    so D is never formed: O(r (out^2 + in^2)). Approximations: inputs independent of gradients, layers independent
    of each other, positions independent of each other ("expand", arXiv 2311.00636); per sequence, x is the
    sequence's mean input and g its summed gradient ("reduce"; a re-used module's inputs have a mean for each call).
    "Reduce" prices no key of attention without rotary positions: keys that all move alike change nothing, so their
    gradients sum to zero. Exact for a linear network with squared error, and for one row.
    """

    kind = "kronecker"
    paper = "KFAC, arXiv 1503.05671; Bayesian PEFT, arXiv 2402.12220"

    @classmethod
    def statistics(cls) -> dict[str, type[Statistic]]:
        return {"inputs": InputMoment, "gradients": GradientMoment}

    @classmethod
    def from_sums(cls, size: LayerSize, sums: Mapping[str, Statistic], items: int) -> Self:
        inputs, gradients = sums["inputs"], sums["gradients"]
        assert isinstance(inputs, InputMoment)
        assert isinstance(gradients, GradientMoment)
        priced = gradients.factor(1 / items)
        return cls(inputs.mean, priced, priced.diagonal().new_full((1,), inputs.rows))
