"""What a model's shifts cost at one anchor: where a shift and a curvature meet."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.anchor import Anchor
from holdfast.curvature.curvature import Coupled, Curvature
from holdfast.errors import HoldfastError
from holdfast.layers import device_of, own_precision
from holdfast.parts import Part, parts_in
from holdfast.penalties.since import readers_since
from holdfast.shifts.shift import Form, Shift

BETWEEN = "between layers"  # in `Prices.per_layer`: what a coupled curvature adds to its layers' own prices


def quadratic_form(shift: Shift, curvature: Curvature) -> Tensor:
    """<D, C D>, 0-d, differentiable once in the shift's parts; D itself is not formed where C has a thin form."""
    return homogeneous_form(shift, curvature, curvature.shape, degree=2)


def homogeneous_form(shift: Shift, form: Form, shape: tuple[int, int], *, degree: int) -> Tensor:
    """<D, C D>, 0-d, of that degree in D, where C D is 1/degree of its gradient; differentiable once."""
    if shift.shape != shape:
        raise HoldfastError(f"a shift of shape {shift.shape} meets a curvature of shape {shape}")
    return shift.priced(form, degree)


class Prices:
    """The curvatures of one anchor beside the shifts of one model.

    Args:
        model: as `readers_since` needs it, unless readers are given.
        anchor: measured on the same base model.
        damping: of what `form` returns, a share of the mean curvature.
        readers: layer name -> a function that reads its shift, of layers that the anchor holds; None: `readers_since`.

    Attributes:
        readers: layer name -> a function that reads its shift since the anchor.
        curvatures: layer name -> its curvature, undamped, on the layer's device.
    """

    def __init__(
        self,
        model: nn.Module,
        anchor: Anchor,
        damping: float,
        readers: Mapping[str, Callable[[], Shift]] | None = None,
    ) -> None:
        self.model, self.anchor, self.damping = model, anchor, damping
        self.readers = readers_since(model, anchor) if readers is None else readers
        self.curvatures = {name: anchor.curvatures[name] for name in self.readers}
        self._device: torch.device | None = None
        self._follow_model()

    def _follow_model(self) -> None:
        """Place the curvatures beside the weights, again where a Trainer has moved the model since."""
        if self._device == device_of(self.model):
            return
        self._device = device_of(self.model)
        with torch.no_grad():
            dtypes = {name: reader().parts[0].dtype for name, reader in self.readers.items()}
        self.curvatures = _placed(parts_in(self.model, self.anchor.space), self.curvatures, dtypes)
        self._damped = {name: c.damped(self.damping) for name, c in self.curvatures.items()}

    def beside_weights(self, *, damped: bool = True) -> dict[str, Curvature]:
        """Layer name -> its curvature, on the layer's present device."""
        self._follow_model()
        return self._damped if damped else self.curvatures

    def shift(self, name: str) -> Shift:
        """How far a layer is from the anchor now, in its parameters' own precision."""
        with own_precision(device_of(self.model)):
            return self.readers[name]()

    def form(self, *, damped: bool = True) -> Tensor:
        """q, summed over layers, and between them where the curvature couples them: 0-d, differentiable."""
        curvatures = self.beside_weights(damped=damped)
        kind: Any = type(next(iter(curvatures.values())))
        if issubclass(kind, Coupled):
            with own_precision(device_of(self.model)):
                return kind.joint(curvatures, {name: self.shift(name) for name in curvatures})
        forms = [quadratic_form(self.shift(name), curvature) for name, curvature in curvatures.items()]
        return torch.stack([form.to(forms[0].device) for form in forms]).sum()

    @torch.no_grad()
    def per_layer(self) -> dict[str, float]:
        """1/2 q_l of each layer, undamped; a coupled curvature adds what lies between layers."""
        self._follow_model()
        own = {n: 0.5 * float(quadratic_form(self.shift(n), c)) for n, c in self.curvatures.items()}
        if any(isinstance(curvature, Coupled) for curvature in self.curvatures.values()):
            own[BETWEEN] = 0.5 * float(self.form(damped=False)) - sum(own.values())
        return own

    @property
    def forecasts(self) -> bool:
        """Whether 1/2 q is in nats."""
        return next(iter(self.curvatures.values())).forecasts

    def reached(self) -> set[int]:
        """The ids of the parameters that the shifts depend on."""
        return {id(leaf) for reader in self.readers.values() for leaf in leaves(reader())}


def leaves(shift: Shift) -> list[Tensor]:
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


def _placed(
    parts: Mapping[str, Part], curvatures: dict[str, Curvature], dtypes: Mapping[str, torch.dtype]
) -> dict[str, Curvature]:
    """Each curvature on its layer's device, in the precision of its shift; shared tensors stay so."""
    moved: dict[tuple[int, torch.device, torch.dtype], Tensor] = {}
    placed = {}
    for name, curvature in curvatures.items():
        weight, dtype = parts[name].tensor, dtypes[name]
        tensors = {}
        for part, tensor in curvature.tensors().items():
            key = (id(tensor), weight.device, dtype)
            if key not in moved:
                moved[key] = tensor.to(weight.device, dtype if tensor.is_floating_point() else tensor.dtype)
            tensors[part] = moved[key]
        placed[name] = type(curvature).from_tensors(tensors)
    return placed
