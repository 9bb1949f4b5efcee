"""A model whose shifts can be written, beside the anchor that prices them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.anchor import Anchor
from holdfast.curvature.curvature import Coupled
from holdfast.curvature.identity import Identity
from holdfast.errors import HoldfastError
from holdfast.fitting.in_place import EntriesMove
from holdfast.fitting.move import AdapterMove, Move, WeightMove
from holdfast.fitting.refusals import check_adapters, check_reference, unknown_price
from holdfast.layers import require_kind
from holdfast.penalties.prices import Prices
from holdfast.penalties.since import readers_since
from holdfast.shifts.in_place import is_sparse
from holdfast.shifts.shift import Reader, Shift
from holdfast.targets import base_layers, canonical, trained_in_place

SETTLING = 4  # corrections of a forecast that the precision of the weights left above its limit
ROUNDING = 1e-6  # relative, above which it is


class Moving:
    """Layer name -> move, and the price of them all.

    Args:
        model: a PEFT model with LoRA or SIFT, loaded; or a wholly tuned model together with `reference`.
        anchor: of the base model's weights.
        reference: layer name -> weight of the base model (`holdfast.snapshot`), for a wholly tuned model.

    Raises:
        HoldfastError: an anchor of another model, an adapter that can't be scaled, layers without curvature.
    """

    def __init__(self, model: nn.Module, anchor: Anchor, reference: Mapping[str, Tensor] | None = None) -> None:
        self.model, self.anchor = model, anchor
        self.moves: dict[str, Move] = _whole(model, anchor, reference) if reference else _adapted(model, anchor)
        readers = {name: move.shift for name, move in self.moves.items()}
        self.prices = Prices(model, anchor, 0.0, readers) if readers else None

    def shift(self, name: str) -> Shift:
        """What stands in the model for a layer now."""
        return self.moves[name].shift()

    def scale(self, factors: Mapping[str, float] | float) -> None:
        """Write a_l times each layer's shift as it came."""
        for name, move in self.moves.items():
            move.scale(factors if isinstance(factors, (int, float)) else factors[name])

    @torch.no_grad()
    def forecast(self) -> float:
        """1/2 q of what stands in the model, undamped, between layers too, nats."""
        return 0.0 if self.prices is None else 0.5 * float(self.prices.form(damped=False))

    def per_layer(self) -> dict[str, float]:
        """1/2 q_l of what stands in the model; see `Prices.per_layer`."""
        return {} if self.prices is None else self.prices.per_layer()

    @torch.no_grad()
    def squared_lengths(self) -> dict[str, float]:
        """|D_l|_F^2 of what stands in the model."""
        return {name: squared_length(move.shift()) for name, move in self.moves.items()}

    def settle(self, factors: dict[str, float], limit: float) -> dict[str, float]:
        """Write factors; scale them down together until what the model's precision makes of them is the limit."""
        self.scale(factors)
        for _ in range(SETTLING):
            if (forecast := self.forecast()) <= limit * (1 + ROUNDING):
                break
            share = (limit / forecast) ** 0.5
            factors = {name: share * factor for name, factor in factors.items()}
            self.scale(factors)
        return factors

    @property
    def coupled(self) -> bool:
        """Whether the price has terms between layers."""
        return any(isinstance(curvature, Coupled) for curvature in self.anchor.curvatures.values())

    def coupling(self) -> Tensor:
        """P, (L, L) in float64: 1/2 q of the shifts a_l D_l is a^T P a.

        Column m is 1/4 of the gradient of q at a = e_m, since q = 2 a^T P a: L evaluations instead of L^2 / 2.
        """
        assert self.prices is not None
        curvatures = self.prices.beside_weights(damped=False)
        kind: Any = type(next(iter(curvatures.values())))
        live = {name: move.shift() for name, move in self.moves.items()}
        columns = []
        for unit in torch.eye(len(live), dtype=torch.float64):
            factors = unit.requires_grad_()
            scaled = {
                name: shift.scaled(factor.to(shift.parts[0]))
                for (name, shift), factor in zip(live.items(), factors, strict=True)
            }
            columns.append(torch.autograd.grad(kind.joint(curvatures, scaled), factors)[0] / 4)
        form = torch.stack(columns)
        return (form + form.T) / 2


def squared_length(shift: Shift) -> float:
    """|D|_F^2; of a low-rank shift without forming it."""
    return float(shift.priced(Identity.of_shape(*shift.shape)))


def _adapted(model: nn.Module, anchor: Anchor) -> dict[str, Move]:
    if not hasattr(model, "peft_config"):
        raise HoldfastError(
            "the model has no adapter, so its shifts can't be told from its weights alone",
            wanted="a PEFT model, or a tuned model with reference=holdfast.snapshot(base)",
            remedy="load the adapter: PeftModel.from_pretrained(base, DIR)",
        )
    check_adapters(model)
    layers = {canonical(name): layer for name, layer in model.named_modules() if hasattr(layer, "base_layer")}
    readers = readers_since(model, anchor)
    if unpriced := [name for name in trained_in_place(model) if name not in readers]:
        raise unknown_price([f"{name}.weight" for name in unpriced])
    return {name: _move(name, layers[name], reader) for name, reader in readers.items()}


def _move(name: str, layer: Any, reader: Reader) -> Move:
    if is_sparse(layer):
        return EntriesMove(layer, require_kind(name, layer.base_layer), reader)
    return AdapterMove(layer, reader)


def _whole(model: nn.Module, anchor: Anchor, reference: Mapping[str, Tensor]) -> dict[str, Move]:
    layers = base_layers(model)
    moved = check_reference(model, anchor, reference, layers)
    kinds = {name: require_kind(name, layers[name]) for name in moved}
    return {name: WeightMove(kinds[name], layers[name], reference[name]) for name in moved}
