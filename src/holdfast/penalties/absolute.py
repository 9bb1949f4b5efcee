"""The absolute penalty: strength times every weight's move, at its own price (AEWC)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from holdfast.curvature.absolute import Absolute as AbsoluteCurvature
from holdfast.penalties.anchored import Anchored
from holdfast.penalties.prices import homogeneous_form
from holdfast.shifts.shift import Shift


def absolute_form(shift: Shift, curvature: AbsoluteCurvature) -> Tensor:
    """sum F |D|, 0-d, differentiable once in the shift's parts; of D, only some rows at a time are formed."""
    return homogeneous_form(shift, curvature.slope, curvature.shape, degree=1)


class Absolute(Anchored):
    """strength * sum over layers and weights F_ij |D_ij|, F the mean size of the weight's gradient (AEWC).

    arXiv 2402.12220. Without a factor of 1/2: it is of the first degree in D, and F |D| is the mean size of the
    source loss' first-order change if each weight moved alone. That is no forecast of the loss, whose mean gradient
    is small at the anchor, so `predicted_forgetting` is None. It pulls alike from everywhere, towards shifts that
    leave many weights alone; at D = 0 its gradient is taken as 0.

    Build it, and choose its arguments, as for `holdfast.Penalty`, with anchors of curvature "absolute".

    Raises:
        HoldfastError: an anchor of another model or curvature, an adapted layer without curvature, or nothing in
            common.
    """

    name = "absolute"
    paper = "AEWC, Bayesian PEFT, arXiv 2402.12220"
    needs = AbsoluteCurvature

    def __call__(self) -> Tensor:
        """strength * sum F |D|, a 0-d tensor."""
        forms = [form for _, form in self._priced(damped=True)]
        total = self.strength * torch.stack([form.to(forms[0].device) for form in forms]).sum()
        self._value = total.detach()
        return total

    @torch.no_grad()
    def per_layer(self) -> dict[str, float]:
        """sum F |D| of each layer, undamped, summed over the anchors by weight; a forecaster's instead."""
        if self._forecaster is not None:
            return super().per_layer()
        total: dict[str, float] = {}
        for name, form in self._priced(damped=False):
            total[name] = total.get(name, 0.0) + float(form)
        return total

    def _priced(self, *, damped: bool) -> Iterator[tuple[str, Tensor]]:
        """Each layer's name and sum F |D|, for one anchor after the other, times its weight."""
        for weight, prices in zip(self.weights, self.prices, strict=True):
            for name, curvature in prices.beside_weights(damped=damped).items():
                assert isinstance(curvature, AbsoluteCurvature)
                yield name, weight * absolute_form(prices.shift(name), curvature)
