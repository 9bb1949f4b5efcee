"""The quadratic penalty: strength/2 times the price of every layer's shift."""

from torch import Tensor

from holdfast.penalties.anchored import Anchored


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

    Raises:
        HoldfastError: an anchor of another model, an adapted layer without curvature, or nothing in common.
    """

    name = "quadratic"
    paper = "Bayesian PEFT, arXiv 2402.12220; EWC, arXiv 1612.00796"

    def __call__(self) -> Tensor:
        """strength/2 * sum of q_l, a 0-d tensor."""
        total = self.forms() * (self.strength / 2)
        self._value = total.detach()
        return total
