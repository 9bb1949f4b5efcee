"""How far each layer has moved since an anchor was measured, read off the live model."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from holdfast.anchor import Anchor
from holdfast.errors import HoldfastError
from holdfast.layers import require_kind
from holdfast.parts import Part, parts_in, select_parts
from holdfast.shifts.dense import Dense
from holdfast.shifts.kept import Kept
from holdfast.shifts.low_rank import LowRank
from holdfast.shifts.read import active_of, effective, factors, has_magnitude, readers, refuse_weightless
from holdfast.shifts.shift import Shift
from holdfast.targets import ALL_LINEAR, base_layers, canonical, trained_in_place


def readers_since(model: nn.Module, anchor: Anchor) -> dict[str, Callable[[], Shift]]:
    """Layer name -> a function that reads its shift since the anchor.

    Call it when the model stands at its start: adapters injected, nothing trained, resumed weights not yet loaded. For
    an anchor of the adapter's own parameters, these are the layers, and their shifts are dense.

    A weight that several layers use (tied embeddings) has one shift, read in each layer's layout, and the price of
    each use on it. Products between the uses are left out, but for a curvature that couples layers ("samples-joint").

    Raises:
        HoldfastError: an anchor of another model, an adapted layer without curvature, or nothing in common.
    """
    if anchor.space == "adapter":
        return _parts_since(model, anchor)
    adapted = {canonical(n): m for n, m in model.named_modules() if hasattr(m, "lora_A") and hasattr(m, "base_layer")}
    if not adapted and not any(hasattr(m, "base_layer") for m in model.modules()):
        refuse_weightless(model)
        anchor.check(model)
        trainable = {n: m for n, m in base_layers(model).items() if m.weight.requires_grad}
        once = {id(module.weight): module.weight.detach().clone() for module in trainable.values()}
        found = readers(model, {name: once[id(module.weight)] for name, module in trainable.items()})
    else:
        found, within = readers(model), trained_in_place(model)
        for name in found.keys() & within.keys() & anchor.weights.keys():
            if not anchor.is_at(name, within[name].pretrained_weight()):
                raise anchor.foreign(f"{name}.weight, without its adapter, differs from the anchored weight")
        priced = [name for name in found if name in anchor.weights and name not in within]
        found |= {name: _since(name, adapted[name], found[name], anchor) for name in priced}
    _check_coverage(list(found), anchor, base_layers(model))
    return found


def _parts_since(model: nn.Module, anchor: Anchor) -> dict[str, Callable[[], Shift]]:
    """Part name -> a reader of theta - theta_0, theta_0 the adapter's parameters as they are now."""
    anchor.check(model)
    _check_coverage(list(select_parts(model, ALL_LINEAR, anchor.space)), anchor)
    parts = parts_in(model, anchor.space)
    return {name: _part_reader(parts[name], curvature.shape) for name, curvature in anchor.curvatures.items()}


def _part_reader(part: Part, shape: tuple[int, int]) -> Callable[[], Shift]:
    kept = Kept(part.tensor.detach().clone())
    return lambda: Dense(part.matrix(part.tensor - kept.beside(part.tensor)).reshape(shape))


def _since(name: str, layer: Any, plain: Callable[[], Shift], anchor: Anchor) -> Callable[[], Shift]:
    """The shift of an adapted layer since the anchor, also where the initialisation changed the base weight."""
    base: Any = layer.base_layer
    if anchor.is_at(name, base.weight):
        return plain
    if not base.weight.is_floating_point():  # packed: nothing can be said of a difference
        raise anchor.foreign(f"{name}.weight differs from the anchored weight")
    kind, active = require_kind(name, base), active_of(layer)
    with torch.no_grad():
        now = kind.matrix(base, effective(name, layer, kind, active)).reshape(base.weight.shape)  # in its own layout
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


def _check_coverage(adapted: list[str], anchor: Anchor, layers: Mapping[str, Any] | None = None) -> None:
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
            causes=_tied(missing, anchor, layers or {}),
            remedy='estimate the anchor with targets that include them (".*" takes every layer), or freeze them',
        )


def _tied(missing: list[str], anchor: Anchor, layers: Mapping[str, Any]) -> list[str]:
    """Layers of the anchor that share their weight with one that is missing."""
    known = {id(layers[name].weight): name for name in anchor.curvatures if name in layers}
    pairs = [(name, known.get(id(layers[name].weight))) for name in missing if name in layers]
    return [
        f"{other!r} and {name!r} share one weight, and both uses of it have a price" for name, other in pairs if other
    ]
