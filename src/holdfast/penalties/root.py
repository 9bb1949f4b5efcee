"""The root penalty: strength times the length of the shift, as the curvature measures it (REWC)."""

import math

from torch import Tensor

from holdfast.penalties.anchored import Anchored

EPSILON = 1e-8  # of q, in nats per item: smooth below a shift of about 1e-8 nats, straight above


class Root(Anchored):
    """strength * (sqrt(q + eps) - sqrt(eps)), q = sum over layers <D_l, C_l D_l>, eps = 1e-8 (REWC, arXiv 2402.12220).

    The quadratic penalty pulls the harder the further a shift has gone; this one pulls alike from everywhere: small
    shifts cost more, large ones less. The root is of the sum over all layers, so it grows with the distance in the
    curvature's metric, whatever path led there. It is 0 and stationary at the anchor, where eps makes it smooth.
    The strength is in loss per square root of a nat; `predicted_forgetting` is 1/2 q without damping, as ever.

    Build it, and choose its arguments, as for `holdfast.Penalty`; any curvature serves.

    Raises:
        HoldfastError: an anchor of another model, an adapted layer without curvature, or nothing in common.
    """

    name = "root"
    paper = "REWC, Bayesian PEFT, arXiv 2402.12220"

    def __call__(self) -> Tensor:
        """strength * (sqrt(q + eps) - sqrt(eps)), a 0-d tensor."""
        self.steer()
        q = self.forms().clamp_min(0)  # rounding can leave it below 0 near the anchor
        # The difference of the roots, multiplied out: exact at q = 0, without cancellation above it.
        total = self.strength * q / ((q + EPSILON).sqrt() + math.sqrt(EPSILON))
        self._value = total.detach()
        return total
