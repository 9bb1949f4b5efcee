"""What all penalties on shifts from anchors have in common: the anchors, their weights, the forecast."""

import inspect
import warnings
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from holdfast.anchor import Anchor
from holdfast.curvature.curvature import Curvature
from holdfast.errors import HoldfastError
from holdfast.penalties.prices import Prices
from holdfast.penalties.regularizer import Handle, Regularizer
from holdfast.targets import canonical


class Anchored(Regularizer):
    """A price of every layer's shift since one anchor or several.

    Args:
        model: a PEFT model, or a bare model whose trainable weights are fully fine-tuned; at its start.
        anchor: measured on the same base model; several of them add up.
        strength: 0 or more.
        damping: adds this share of the curvature's mean eigenvalue to it; the forecast stays undamped.
        weights: how much each anchor counts; None: 1 each.
        forecast: an anchor that only forecasts. A penalty drives the shift to where its own curvature sees least, so
            its own forecast is low; one of "samples-joint" sees what layers do together.

    Raises:
        HoldfastError: an anchor of another model or of a curvature that the penalty can't use, an adapted layer
            without curvature, or nothing in common.
    """

    needs: ClassVar[type[Curvature] | None] = None  # the only curvature that it can price shifts by

    def __init__(
        self,
        model: nn.Module,
        anchor: Anchor | Sequence[Anchor],
        strength: float = 1.0,
        damping: float = 0.0,
        *,
        weights: Sequence[float] | None = None,
        forecast: Anchor | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise HoldfastError(
                f"the model is a {type(model).__name__}", wanted=f"{type(self).__name__}(model, anchor, strength)"
            )
        check_number("strength", strength)
        check_number("damping", damping)
        self.model, self.strength, self.damping = model, strength, damping
        self.anchors = [anchor] if isinstance(anchor, Anchor) else list(anchor)
        self.weights = [1.0] * len(self.anchors) if weights is None else list(weights)
        self.multipliers = [1.0] * len(self.anchors)  # what budgets of single anchors set; else 1
        if not self.anchors or len(self.weights) != len(self.anchors):
            raise HoldfastError(f"{len(self.weights)} weights for {len(self.anchors)} anchors", wanted="one for each")
        for weight in self.weights:
            check_number("weights", weight)
        for one in self.anchors:
            self._check_kind(one)
        self.prices = [Prices(model, one, damping) for one in self.anchors]
        self._forecaster = None if forecast is None else Prices(model, forecast, 0.0)
        self._value: float | Tensor = 0.0
        warn_of_unpriced(model, set().union(*(one.reached() for one in self.prices)))

    def __repr__(self) -> str:
        kinds = " + ".join(one.kind for one in self.anchors)
        return f"{type(self).__name__}({kinds}, strength={self.strength}, {len(self.prices[0].readers)} layers)"

    @classmethod
    def check_squares(cls, kind: type[Curvature]) -> None:
        """Raise HoldfastError for prices of |D| under a penalty of squares: they would mean nothing."""
        if cls.needs is None and not kind.squares:
            raise HoldfastError(
                f"curvature {kind.kind!r} prices the size of a move, and the {cls.name} penalty its square",
                remedy=f"the {kind.kind} penalty (--set form={kind.kind}), or another curvature",
            )

    def _check_kind(self, anchor: Anchor) -> None:
        needs = self.needs
        for kind in {type(curvature) for curvature in anchor.curvatures.values()}:
            self.check_squares(kind)
        if needs is not None and not all(isinstance(curvature, needs) for curvature in anchor.curvatures.values()):
            raise HoldfastError(
                f"the {self.name} penalty can't use an anchor of curvature {anchor.kind!r}",
                wanted=f"one estimated with curvature={needs.kind!r}",
                remedy="estimate it so, or choose another penalty: holdfast methods lists them",
            )

    def forms(self) -> Tensor:
        """sum over anchors of multiplier * weight * q, damped: 0-d, differentiable."""
        factors = [multiplier * weight for multiplier, weight in zip(self.multipliers, self.weights, strict=True)]
        forms = [factor * one.form() for factor, one in zip(factors, self.prices, strict=True)]
        return torch.stack([form.to(forms[0].device) for form in forms]).sum()

    @property
    @torch.no_grad()
    def predicted_forgetting(self) -> float | None:
        """1/2 q without damping, in nats per source item: with several anchors, their mean by weight.

        Where there is an anchor that only forecasts, its own. None where a curvature predicts nothing.
        """
        if self._forecaster is not None:
            return 0.5 * float(self._forecaster.form(damped=False)) if self._forecaster.forecasts else None
        if not all(one.forecasts for one in self.prices) or not sum(self.weights):
            return None
        halves = [0.5 * float(one.form(damped=False)) for one in self.prices]
        return sum(w * half for w, half in zip(self.weights, halves, strict=True)) / sum(self.weights)

    def _handles(self, count: int) -> list[Handle]:
        """The strength for one budget, or each anchor's own multiplier for as many budgets as anchors."""
        if count == 1 or count != len(self.prices):
            return super()._handles(count)
        return [(lambda i=i: self._half(i), lambda strength, i=i: self._multiply(i, strength)) for i in range(count)]  # type: ignore[misc]

    @torch.no_grad()
    def _half(self, number: int) -> float:
        return 0.5 * float(self.prices[number].form(damped=False))

    def _multiply(self, number: int, strength: float) -> None:
        self.multipliers[number] = strength

    def per_layer(self) -> dict[str, float]:
        """1/2 q_l of each layer, undamped: of the anchor that only forecasts, else summed by weight."""
        if self._forecaster is not None:
            return self._forecaster.per_layer()
        total: dict[str, float] = {}
        for weight, one in zip(self.weights, self.prices, strict=True):
            for name, half in one.per_layer().items():
                total[name] = total.get(name, 0.0) + weight * half
        return total

    def report(self) -> dict[str, float]:
        """The penalty as it joined the loss, and the forecast."""
        forecast = self.predicted_forgetting
        known = {} if forecast is None else {"predicted_forgetting": forecast}
        return {"penalty": float(self._value), **known}


def warn_of_unpriced(model: nn.Module, reached: set[int]) -> None:
    """Name the trainable tensors that are not among those ids, in a warning on whoever builds the penalty."""
    level, frame = 2, inspect.currentframe()
    while frame is not None and frame.f_back is not None and frame.f_back.f_code.co_name == "__init__":
        level, frame = level + 1, frame.f_back  # constructors call one another
    free = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in reached]
    if free:
        warnings.warn(
            f"{len(free)} trainable tensors carry no penalty ({', '.join(map(canonical, free[:3]))}"
            f"{', ...' if len(free) > 3 else ''}): they may move at no price",
            stacklevel=level,
        )


def check_number(name: str, value: float) -> None:
    """Raise HoldfastError unless the value is a finite number of at least 0."""
    if not (value >= 0 and value < float("inf")):
        raise HoldfastError(f"{name}={value}", wanted="a number of at least 0")
