"""Directions in the space of a model's weights, made tensor by tensor when they are needed: none is stored."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from holdfast.errors import HoldfastError
from holdfast.layers import require_kind
from holdfast.shifts.shift import Shift, precise
from holdfast.targets import base_layers, canonical

Normalise = Literal["none", "layer", "filter"]
TINY = 1e-12
REACH = 0.02  # of theta's norm: a gradient lies in few directions, steep ones, and leaves its valley far sooner


@dataclass(frozen=True)
class Place:
    """A weight tensor that directions move, and the dimension that counts its filters."""

    name: str
    parameter: nn.Parameter
    filters: int


def places(model: nn.Module) -> list[Place]:
    """Every floating-point parameter of two dimensions or more, each once: biases and norms stay (arXiv 1712.09913).

    Raises:
        HoldfastError: there is none; or adapters are on the model, whose weights would move too.
    """
    if any(hasattr(module, "base_layer") for module in model.modules()):
        raise HoldfastError(
            "the model carries adapters", wanted="the bare model", remedy="take the adapter off: model.unload()"
        )
    transposed = {f"{name}.weight" for name, module in base_layers(model).items() if type(module).__name__ == "Conv1D"}
    found = [
        Place(canonical(name), parameter, 1 if canonical(name) in transposed else 0)
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1 and parameter.is_floating_point()
    ]
    if not found:
        raise HoldfastError("the model has no weight matrix in floating point, so there is nothing to move")
    return found


class Direction(ABC):
    """A direction d: one tensor for each place, in float32 or better."""

    name: str

    @abstractmethod
    def at(self, place: Place, weight: Tensor) -> Tensor | None:
        """d at one place, in the shape of its weight; None: it stays.

        Args:
            place: whose.
            weight: theta there, unmoved.
        """


class Gaussian(Direction):
    """Standard normal entries, then scaled (arXiv 1712.09913, section 4).

    - "filter": each filter (row of a layer, kernel, row of an embedding) to the norm of theta's;
    - "layer": each tensor to the norm of theta's;
    - "none": as they were drawn.

    Args:
        seed: with the tensor's name it makes the entries, the same on every device.
        normalise: how.
        beside: a direction that this one is orthogonal to: filter by filter, or tensor by tensor, so that the scaling
            does not undo it; a filter of one entry has no second direction and stays.
    """

    def __init__(self, seed: int, normalise: Normalise = "filter", beside: Direction | None = None) -> None:
        if normalise not in get_args(Normalise):
            raise HoldfastError(f"normalise is {normalise!r}", wanted=f"one of {', '.join(get_args(Normalise))}")
        self.name, self.seed, self.normalise, self.beside = "gaussian", seed, normalise, beside

    def at(self, place: Place, weight: Tensor) -> Tensor:
        key = hashlib.sha256(f"{self.seed}:{place.name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)
        drawn = torch.randn(weight.shape, generator=generator).to(weight.device, precise(weight).dtype)
        over = tuple(d for d in range(weight.dim()) if self.normalise != "filter" or d != place.filters)
        if self.beside is not None:
            other = self.beside.at(place, weight)
            if other is not None:
                share = (drawn * other).sum(over, keepdim=True) / other.square().sum(over, keepdim=True).clamp_min(
                    TINY
                )
                drawn = drawn - share * other
                if len(over) < weight.dim() and weight.numel() == weight.shape[place.filters]:
                    return torch.zeros_like(drawn)
        if self.normalise == "none":
            return drawn
        size = drawn.square().sum(over, keepdim=True).sqrt().clamp_min(TINY)
        return drawn * (precise(weight).square().sum(over, keepdim=True).sqrt() / size)


class Towards(Direction):
    """The way to other weights: theta_tuned - theta_0, of tensors or of layers' shifts; alpha = 1 is there."""

    def __init__(self, model: nn.Module, moved: Mapping[str, Tensor | Shift], name: str = "tuned") -> None:
        self.name, layers = name, base_layers(model)
        self.moved: dict[str, Tensor] = {}
        self.layers: dict[str, tuple[Any, Shift]] = {}
        for key, value in moved.items():
            if isinstance(value, Shift):
                self.layers[f"{key}.weight"] = (layers[key], value)
            else:
                self.moved[key] = value

    def at(self, place: Place, weight: Tensor) -> Tensor | None:
        if place.name in self.layers:
            module, shift = self.layers[place.name]
            matrix = shift.matrix().detach()  # (out, in); the kind turns it into the weight's own layout
            return require_kind(place.name, module).matrix(module, matrix).reshape(weight.shape)
        found = self.moved.get(place.name)
        return None if found is None else precise(found.to(weight.device))

    def check(self, known: list[Place]) -> None:
        """Raise HoldfastError where the tuned weights are of another model."""
        missing = sorted({*self.moved, *self.layers} - {place.name for place in known})
        if missing:
            raise HoldfastError(
                f"{len(missing)} moved weights are not in the model: {', '.join(missing[:3])}",
                causes=["the adapter was trained on another base model", "the layer is tied to one of another name"],
            )


class Steepest(Direction):
    """Minus the gradient at theta, as long as a fiftieth of theta, where a normalised Gaussian is as long as theta.

    A gradient can't be made anew for each point: it is kept, one copy of the weights.
    """

    name = "gradient"

    def __init__(self, gradients: Mapping[str, Tensor], known: list[Place]) -> None:
        self.gradients = gradients
        theta = sum(float(precise(place.parameter.detach()).square().sum()) for place in known) ** 0.5
        size = sum(float(gradient.square().sum()) for gradient in gradients.values()) ** 0.5
        self.scale = REACH * theta / max(size, TINY)

    def at(self, place: Place, weight: Tensor) -> Tensor:
        return -self.scale * self.gradients[place.name]
