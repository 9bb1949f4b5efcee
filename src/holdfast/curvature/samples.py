"""Stored samples: the Fisher of a layer from examples themselves, without a Kronecker assumption."""

from collections.abc import Mapping
from typing import Self

from holdfast.curvature.examples import Examples
from holdfast.curvature.statistic import LayerSize, Statistic
from holdfast.curvature.stored import Stored


class Samples(Stored):
    """C D = 1/items * rows/N * sum over N examples of <M_n, D> M_n, M_n = sum over t of g_nt x_nt^T (stored samples).

    <D, C D> is then the mean of squared directional derivatives of single examples, each `rows/N` times for those
    that were not kept: the form of the layer's own Fisher as the natural gradient has it (arXiv 1412.1193),
    which Kronecker (arXiv 1503.05671) replaces by a product of means. N, `keep`, examples are drawn from all with the
    same probability, so the estimate is unbiased; with `keep` at or above their number it is exact. Of rank N: shifts
    outside the span of the M_n cost nothing, unless damped.

    Per token an example is a position, with all calls of the layer: exact where the layer's output at one position
    reaches no other position's loss; products between positions are left out elsewhere. Per sequence it is a whole
    sequence, with sampled labels the Fisher block of the layer itself; t is then the number of positions, and N
    sequences of t positions take N t (out + in) numbers.
    """

    kind = "samples"
    paper = "natural gradient, arXiv 1412.1193; KFAC, arXiv 1503.05671 sec. 2"

    @classmethod
    def statistics(cls) -> dict[str, type[Statistic]]:
        return {"examples": Examples}

    @classmethod
    def from_sums(cls, size: LayerSize, sums: Mapping[str, Statistic], items: int) -> Self:
        examples = sums["examples"]
        assert isinstance(examples, Examples)
        return cls.estimated(size, examples, items)
