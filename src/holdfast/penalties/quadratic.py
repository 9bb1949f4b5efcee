"""The quadratic penalty: strength/2 times the price of every layer's shift."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from holdfast.anchor import Anchor
from holdfast.errors import HoldfastError
from holdfast.penalties.anchored import Anchored, check_number
from holdfast.penalties.regularizer import Accepted, check_alone


class Penalty(Anchored):
    """strength/2 * sum over layers <D_l, C_l D_l>, D_l the shift since the anchor (arXiv 2402.12220, eq. of sec. III).

    Build it when the model stands at its start: adapters injected, nothing trained, resumed weights not yet loaded.
    At strength 1 a nat of predicted forgetting per source item costs as much as a nat of target loss per target item.
    Several anchors, each with a weight, are summed exactly.

    Args:
        model: a PEFT model, or a bare model whose trainable weights are fully fine-tuned.
        anchor: measured on the same base model; or a list of them.
        strength: 0 or more.
        damping: adds this share of the curvature's mean eigenvalue to it; the forecast stays undamped.
        weights: how much each anchor counts; None: 1 each.
        forecast: an anchor that only forecasts; "samples-joint" is the one that stays true under a penalty.
        budget: nats per source item or a text such as "1%": the strength is then set step by step so that forgetting
            stays within it, here by the forecast alone; `keep_within` also measures. One for each anchor, or for all.
        prior: for anchors of the adapter's own parameters theta, adds prior/2 |theta - theta_0|^2, which strength
            does not scale. Absolute, since at B = 0 the curvature of LoRA's A is 0 and so is any share of its mean
            (see `holdfast.penalties.factors`).

    Raises:
        HoldfastError: an anchor of another model, an adapted layer without curvature, nothing in common, or a prior
            without an anchor of the adapter's parameters.
    """

    name = "quadratic"
    paper = "Bayesian PEFT, arXiv 2402.12220; EWC, arXiv 1612.00796"

    def __init__(
        self,
        model: nn.Module,
        anchor: Anchor | Sequence[Anchor],
        strength: float = 1.0,
        damping: float = 0.0,
        *,
        weights: Sequence[float] | None = None,
        forecast: Anchor | None = None,
        budget: Accepted | Sequence[Accepted] | None = None,
        prior: float = 0.0,
    ) -> None:
        check_number("prior", prior)
        super().__init__(model, anchor, strength, damping, weights=weights, forecast=forecast)
        self.prior = prior
        of_adapter = [one.readers for one in self.prices if one.anchor.space == "adapter"]
        self._moved = {name: reader for readers in of_adapter for name, reader in readers.items()}
        if prior and not self._moved:
            raise HoldfastError(
                f"prior={prior} is a precision of the adapter's own parameters, and the anchor is of the weights",
                remedy="measure it with space='adapter', or add an anchor of curvature='identity' to the list",
            )

        if budget is not None:
            check_alone("strength", strength, 1.0)
            self.keep_within(budget)

    def __call__(self) -> Tensor:
        """strength/2 * sum of q_l + prior/2 * |theta - theta_0|^2, a 0-d tensor."""
        self.steer()
        total = self.forms() * (self.strength / 2)
        if self.prior:
            total = total + self.prior / 2 * self._squared_length().to(total.device)
        self._value = total.detach()
        return total

    def _squared_length(self) -> Tensor:
        """|theta - theta_0|^2 over the adapter's parameters, each once."""
        lengths = [reader().matrix().square().sum() for reader in self._moved.values()]
        return torch.stack([length.to(lengths[0].device) for length in lengths]).sum()
