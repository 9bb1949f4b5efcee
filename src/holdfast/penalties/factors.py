"""LaLoRA's penalties on LoRA's two factors, from an anchor of the weights: no anchor of the adapter is measured."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.anchor import Anchor
from holdfast.curvature.curvature import Coupled
from holdfast.errors import HoldfastError
from holdfast.layers import require_kind
from holdfast.penalties.anchored import check_number, warn_of_unpriced
from holdfast.penalties.prices import Prices, leaves, quadratic_form
from holdfast.penalties.regularizer import Regularizer
from holdfast.shifts.kept import Kept
from holdfast.shifts.low_rank import LowRank
from holdfast.shifts.read import active_of, factors, has_magnitude
from holdfast.targets import canonical


@dataclass
class _Pair:
    """One adapter of one layer: its factors now and at the start."""

    name: str  # of the layer
    layer: Any
    adapter: str
    up: Kept  # B_0: (out, r)
    down: Kept  # A_0: (r, in)

    def moved(self) -> tuple[LowRank, LowRank, LowRank]:
        """The factors now; the factors at the start; how far each has moved since: B, A; B_0, A_0; dB, dA."""
        now = factors(self.layer, self.adapter)
        up, down = self.up.beside(now.up), self.down.beside(now.down)
        return now, LowRank(up, down, now.scale), LowRank(now.up - up, now.down - down, now.scale)


class FactorPenalty(Regularizer):
    """strength/2 * sum over LoRA's factors <d, P d> + prior/2 * |d|^2, d = (dB, dA) since the start.

    P is the Laplace precision of LoRA's factors (LaLoRA, arXiv 2512.17720), derived from a Kronecker anchor (G, S) of
    the weights W by the chain rule: with c = alpha/r, h = A_0 x and the gradient c B_0^T g at h,

        block-KFAC:            c^2 tr(dB^T G dB A_0 S A_0^T) + c^2 tr(dA^T (B_0^T G B_0) dA S)
        neighbours=True adds:  2 c^2 tr(dA^T (B_0^T G) dB (A_0 S)),        block-tridiagonal KFAC, which is then
                               <L, G L S> of the linearised shift L = c (dB A_0 + B_0 dA).

    Equal to the anchor measured on the factors themselves (`Anchor.estimate(..., space="adapter")`) with the same
    data and labels, where the adapted model starts as the anchored one; from any other curvature of single layers it
    is the same blocks of that form. All products are r thin; nothing of the size of W is made.

    **At B_0 = 0**, LoRA's usual start, gradients of A vanish for every input, so every block that touches A is
    exactly zero: both forms are c^2 sum((dB^T G dB) * (A_0 S A_0^T)), the penalty on the weight's shift with the A_0
    of the start in place of A. A is free, and the form loses sight of the shift as A trains; no damping helps, since
    the mean eigenvalue of A's block is 0 too. What makes it sound, best first:

    1. `holdfast.Penalty` on the same anchor: the price of the shift itself, as cheap, and blind to no drift of A.
    2. `refresh=True`: blocks at the factors as they are now, A S A^T and B^T G B. At B_0 = 0 the first term is then
       the exact price of the shift, and the second keeps A where B makes use of it.
    3. A frozen A (`--method lora-fa`): the first term is then the exact price of the shift.
    4. `prior`: an isotropic precision of the factors, the only force on A.
    5. A start with B_0 != 0 and the base compensated for it (PiSSA, arXiv 2404.02948): the linearised shift, exact to
       first order.
    6. A short warm-up before estimating in the adapter's own space; the anchor then is not the pre-trained model.

    With `refresh` the blocks are part of what is differentiated: the value is the penalty that is minimised.

    Build it when the model stands at its start. `predicted_forgetting` and `per_layer` are those of the shift itself,
    from the same anchor: beside the penalty they show what it does not see.

    Args:
        model: a PEFT model with LoRA.
        anchor: of the weights (space="weights").
        strength: 0 or more.
        neighbours: the block between each A and its B as well.
        refresh: blocks at the present factors instead of the first.
        prior: precision of both factors, in nats per squared unit; strength does not scale it.

    Raises:
        HoldfastError: an anchor of the adapter's own parameters, of another model or of a curvature that couples
            layers; a model without LoRA; DoRA, whose magnitudes are no factor.
    """

    name = "factors"
    paper = "LaLoRA, arXiv 2512.17720"

    def __init__(
        self,
        model: nn.Module,
        anchor: Anchor,
        strength: float = 1.0,
        *,
        neighbours: bool = False,
        refresh: bool = False,
        prior: float = 0.0,
    ) -> None:
        check_number("strength", strength)
        check_number("prior", prior)
        _check_anchor(anchor)
        self.model, self.strength, self.prior = model, strength, prior
        self.neighbours, self.refresh = neighbours, refresh
        self.pairs = _pairs(model)
        self.prices = Prices(model, anchor, damping=0.0)
        self._value: float | Tensor = 0.0
        reached = {id(leaf) for pair in self.pairs for leaf in leaves(factors(pair.layer, pair.adapter))}
        warn_of_unpriced(model, reached)

    def __call__(self) -> Tensor:
        """The value, a 0-d tensor."""
        curvatures = self.prices.beside_weights()
        forms, lengths = [], []
        for pair in self.pairs:
            now, start, moved = pair.moved()
            at = now if self.refresh else start
            forms += [quadratic_form(shift, curvatures[pair.name]) for shift in self._blocks(moved, at)]
            lengths.append(moved.up.square().sum() + moved.down.square().sum())
        total = self.strength / 2 * _sum(forms) + self.prior / 2 * _sum(lengths)
        self._value = total.detach()
        return total

    def _blocks(self, moved: LowRank, at: LowRank) -> list[LowRank]:
        """What each block of P prices as a shift of the weight: c dB A and c B dA, or their sum."""
        by_up, by_down = LowRank(moved.up, at.down, at.scale), LowRank(at.up, moved.down, at.scale)
        return [LowRank.stacked([by_up, by_down])] if self.neighbours else [by_up, by_down]

    @property
    @torch.no_grad()
    def predicted_forgetting(self) -> float | None:
        """1/2 q of the shift itself, in nats per source item; None where the curvature predicts nothing."""
        return 0.5 * float(self.prices.form(damped=False)) if self.prices.forecasts else None

    def per_layer(self) -> dict[str, float]:
        """1/2 q_l of each layer's shift."""
        return self.prices.per_layer()

    def report(self) -> dict[str, float]:
        """The penalty as it joined the loss, and the forecast."""
        forecast = self.predicted_forgetting
        known = {} if forecast is None else {"predicted_forgetting": forecast}
        return {"penalty": float(self._value), **known}


def _pairs(model: nn.Module) -> list[_Pair]:
    found = []
    for path, layer in model.named_modules():
        if not (hasattr(layer, "lora_A") and hasattr(layer, "base_layer")):
            continue
        name = canonical(path)
        for adapter in active_of(layer):
            if has_magnitude(layer, adapter):
                raise HoldfastError(
                    f"layer {name!r} is adapted by DoRA, whose magnitudes are no factor of a low-rank shift",
                    remedy="hold on by holdfast.Penalty, which prices DoRA's whole shift",
                )
            require_kind(name, layer.base_layer)
            born = factors(layer, adapter)
            kept = Kept(born.up.detach().clone()), Kept(born.down.detach().clone())
            found.append(_Pair(name, layer, adapter, *kept))
    if not found:
        raise HoldfastError(
            "the model has no LoRA whose factors could be priced", wanted="a PEFT model with an active LoRA adapter"
        )
    return found


def _check_anchor(anchor: Anchor) -> None:
    if anchor.space != "weights":
        raise HoldfastError(
            "this anchor was measured on the adapter's own parameters, and its blocks need no deriving",
            remedy="give it to holdfast.Penalty",
        )
    if any(isinstance(curvature, Coupled) for curvature in anchor.curvatures.values()):
        raise HoldfastError(
            f"curvature {anchor.kind!r} couples layers, and the blocks of factors are of single layers",
            remedy="estimate the anchor with curvature='kronecker'",
        )


def _sum(terms: list[Tensor]) -> Tensor:
    return torch.stack([term.to(terms[0].device) for term in terms]).sum()
