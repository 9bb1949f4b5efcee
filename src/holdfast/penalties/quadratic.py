"""The quadratic penalty: strength/2 times the price of every layer's shift."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.anchor import Anchor
from holdfast.curvature.curvature import Curvature
from holdfast.errors import HoldfastError
from holdfast.layers import device_of, require_kind
from holdfast.penalties.regularizer import Regularizer
from holdfast.shifts.low_rank import LowRank
from holdfast.shifts.read import Kept, active_of, effective, factors, has_magnitude, readers
from holdfast.shifts.shift import Shift
from holdfast.targets import base_layers, canonical


class _Form(torch.autograd.Function):
    """q = <D, C D> as a function of the shift's parts, with the gradient written down.

    Autograd over the same products would multiply by the symmetric factors once more.
    """

    @staticmethod
    def forward(ctx: Any, shift: Shift, curvature: Curvature, *parts: Tensor) -> Tensor:
        products = shift.products(curvature)
        ctx.save_for_backward(*products)
        return (parts[0] * products[0]).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(2 * upstream * product for product in ctx.saved_tensors)


def quadratic_form(shift: Shift, curvature: Curvature) -> Tensor:
    """<D, C D>, 0-d, differentiable once in the shift's parts; D itself is not formed where C has a thin form."""
    if shift.shape != curvature.shape:
        raise HoldfastError(f"a shift of shape {shift.shape} meets a curvature of shape {curvature.shape}")
    return _Form.apply(shift, curvature, *shift.parts)


class Penalty(Regularizer):
    """strength/2 * sum over layers <D_l, C_l D_l>, D_l the shift since the anchor (arXiv 2402.12220, eq. of sec. III).

    Build it when the model stands at its start: adapters injected, nothing trained, resumed weights not yet loaded.
    At strength 1 a nat of predicted forgetting per source item costs as much as a nat of target loss per target item.

    Args:
        model: a PEFT model, or a bare model whose trainable weights are fully fine-tuned.
        anchor: measured on the same base model.
        strength: 0 or more.
        damping: adds this share of the curvature's mean eigenvalue to it; the forecast stays undamped.

    Raises:
        HoldfastError: an anchor of another model, an adapted layer without curvature, or nothing in common.
    """

    name = "quadratic"
    paper = "Bayesian PEFT, arXiv 2402.12220; EWC, arXiv 1612.00796"

    def __init__(self, model: nn.Module, anchor: Anchor, strength: float = 1.0, damping: float = 0.0) -> None:
        _check_number("strength", strength)
        _check_number("damping", damping)
        self.model, self.anchor, self.strength, self.damping = model, anchor, strength, damping
        self.readers = _anchored_readers(model, anchor)
        self.curvatures = {name: anchor.curvatures[name] for name in self.readers}
        self._device: torch.device | None = None
        self._follow_model()
        self._value: float | Tensor = 0.0
        self._warn_of_unpriced()

    def __call__(self) -> Tensor:
        """strength/2 * sum of q_l, a 0-d tensor."""
        self._follow_model()
        total = self._sum(self._priced) * (self.strength / 2)
        self._value = total.detach()
        return total

    def _follow_model(self) -> None:
        """Place the curvatures beside the weights, again where a Trainer has moved the model since."""
        if self._device == device_of(self.model):
            return
        self._device = device_of(self.model)
        self.curvatures = _placed(self.model, self.curvatures)
        self._priced = {name: c.damped(self.damping) for name, c in self.curvatures.items()}

    def _sum(self, curvatures: dict[str, Curvature]) -> Tensor:
        forms = [quadratic_form(self.readers[name](), curvature) for name, curvature in curvatures.items()]
        return torch.stack([form.to(forms[0].device) for form in forms]).sum()

    @property
    def predicted_forgetting(self) -> float | None:
        """1/2 sum of q_l without damping, in nats per source item; None for a curvature that predicts nothing."""
        if not next(iter(self.curvatures.values())).forecasts:
            return None
        self._follow_model()
        with torch.no_grad():
            return 0.5 * float(self._sum(self.curvatures))

    def per_layer(self) -> dict[str, float]:
        """1/2 q_l of each layer, undamped."""
        self._follow_model()
        with torch.no_grad():
            return {n: 0.5 * float(quadratic_form(self.readers[n](), c)) for n, c in self.curvatures.items()}

    def report(self) -> dict[str, float]:
        """The penalty as it joined the loss, and the forecast."""
        forecast = self.predicted_forgetting
        known = {} if forecast is None else {"predicted_forgetting": forecast}
        return {"penalty": float(self._value), **known}

    def _warn_of_unpriced(self) -> None:
        reached = {id(leaf) for reader in self.readers.values() for leaf in _leaves(reader())}
        free = [n for n, p in self.model.named_parameters() if p.requires_grad and id(p) not in reached]
        if free:
            warnings.warn(
                f"{len(free)} trainable tensors carry no penalty ({', '.join(map(canonical, free[:3]))}"
                f"{', ...' if len(free) > 3 else ''}): they may move at no price",
                stacklevel=3,
            )


def _leaves(shift: Shift) -> list[Tensor]:
    """The parameters that a shift's gradient reaches."""
    found: list[Tensor] = []
    seen: set[Any] = set()
    stack: list[Any] = [part if part.grad_fn is None else part.grad_fn for part in shift.parts]
    while stack:
        node = stack.pop()
        if isinstance(node, Tensor):
            found.append(node)
        elif node is not None and node not in seen:
            seen.add(node)
            if hasattr(node, "variable"):
                found.append(node.variable)
            stack.extend(following for following, _ in node.next_functions)
    return found


def _placed(model: nn.Module, curvatures: dict[str, Curvature]) -> dict[str, Curvature]:
    """Each curvature on its layer's device, in the model's precision but at least float32; shared tensors stay so."""
    layers = base_layers(model)
    moved: dict[tuple[int, torch.device, torch.dtype], Tensor] = {}
    placed = {}
    for name, curvature in curvatures.items():
        weight: Any = layers[name].weight
        dtype = torch.promote_types(weight.dtype if weight.is_floating_point() else torch.float32, torch.float32)
        tensors = {}
        for part, tensor in curvature.tensors().items():
            key = (id(tensor), weight.device, dtype)
            if key not in moved:
                moved[key] = tensor.to(weight.device, dtype)
            tensors[part] = moved[key]
        placed[name] = type(curvature).from_tensors(tensors)
    return placed


def _anchored_readers(model: nn.Module, anchor: Anchor) -> dict[str, Callable[[], Shift]]:
    """How to read each layer's shift since the anchor."""
    adapted = {canonical(n): m for n, m in model.named_modules() if hasattr(m, "lora_A") and hasattr(m, "base_layer")}
    if not adapted and not any(hasattr(m, "base_layer") for m in model.modules()):
        anchor.check(model)
        trainable = {n: m for n, m in base_layers(model).items() if m.weight.requires_grad}
        reference = {n: m.weight.detach().clone() for n, m in trainable.items()}
        found = readers(model, reference)
    else:
        found = readers(model)
        found = {n: _since(n, adapted[n], found[n], anchor) if n in anchor.weights else r for n, r in found.items()}
    _check_coverage(list(found), anchor)
    return found


def _since(name: str, layer: Any, plain: Callable[[], Shift], anchor: Anchor) -> Callable[[], Shift]:
    """The shift of an adapted layer since the anchor, also where the initialisation changed the base weight."""
    base: Any = layer.base_layer
    if anchor.is_at(name, base.weight):
        return plain
    kind, active = require_kind(name, base), active_of(layer)
    with torch.no_grad():
        now = kind.matrix(base, effective(layer, kind, active))  # in the weight's own layout
    born = [factors(layer, adapter) for adapter in active]
    unmoved = not any(bool(piece.up.any()) for piece in born)  # then the weight alone should be the anchored one
    dora = any(has_magnitude(layer, adapter) for adapter in active)
    if unmoved or dora or not anchor.is_at(name, now, exactly=False):
        raise anchor.foreign(f"{name}.weight differs from the anchored weight, with the adapter and without it")
    # W = W_res + s B A and W_anchor = W_res + s B0 A0, so D = s B A - s B0 A0 (PiSSA, arXiv 2404.02948).
    start = [(Kept(-piece.up.detach()), Kept(piece.down.detach().clone()), piece.scale) for piece in born]

    def read() -> Shift:
        now = [factors(layer, adapter) for adapter in active_of(layer)]
        negative = [LowRank(up.beside(base.weight), down.beside(base.weight), scale) for up, down, scale in start]
        return LowRank.stacked([*now, *negative])

    return read


def _check_coverage(adapted: list[str], anchor: Anchor) -> None:
    missing = [name for name in adapted if name not in anchor.curvatures]
    if len(missing) == len(adapted):
        raise HoldfastError(
            "the model's trainable layers and the anchor's layers have nothing in common: the penalty would be empty",
            causes=[f"the anchor holds {', '.join(list(anchor.curvatures)[:3])} ...", f"trained: {adapted[0]} ..."],
            remedy="estimate the anchor with the adapter's target_modules as targets",
        )
    if missing:
        raise HoldfastError(
            f"{len(missing)} trainable layers have no curvature in the anchor: {', '.join(missing[:3])}",
            wanted="a curvature for every layer that can move",
            remedy='estimate the anchor with targets that include them (".*" takes every layer), or freeze them',
        )


def _check_number(name: str, value: float) -> None:
    if not (value >= 0 and value < float("inf")):
        raise HoldfastError(f"{name}={value}", wanted="a number of at least 0")
