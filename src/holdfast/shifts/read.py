"""Reading shifts from a model: LoRA and SIFT in PEFT's layers, or full fine-tuning against stored weights."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.errors import HoldfastError
from holdfast.layers import LayerKind, is_weight_normed, kind_of, require_kind
from holdfast.shifts.dense import Dense
from holdfast.shifts.in_place import is_sparse, sparse_reader
from holdfast.shifts.kept import Kept
from holdfast.shifts.low_rank import LowRank
from holdfast.shifts.scaling import is_scaling, scaling_reader, unread_scaling
from holdfast.shifts.shift import Reader, Shift, precise
from holdfast.targets import base_layers, canonical, pretrained_weights

ELSEWHERE = (
    "hold on to the adapter's own parameters, by Anchor.estimate(model, source, curvature='diagonal', "
    "space='adapter'), or in function space: holdfast.Distill needs no shift"
)


def shifts(model: nn.Module, reference: Mapping[str, Tensor] | None = None) -> dict[str, Shift]:
    """Layer name -> shift, for every layer that can move.

    LoRA (any scaling, rank and alpha patterns, several active adapters summed) gives low-rank shifts; DoRA, and
    LoRA whose initialisation changed the base weight, give dense ones, and so does IA3; SIFT gives sparse ones; a
    model without adapters gives dense shifts of its trainable weights against `reference`.

    Args:
        model: a PEFT model or a bare one.
        reference: layer name -> weight at the anchor, as `snapshot` gives it; needed for full fine-tuning and for
            initialisations that change the base weight.

    Raises:
        HoldfastError: merged adapters, a tuner whose shift is not known, or a missing reference.
    """
    return {name: reader() for name, reader in readers(model, reference).items()}


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Layer name -> a copy of its weight now, without adapters, for `shifts(model, reference)`."""
    return {name: weight.detach().clone() for name, weight in pretrained_weights(model)}


def readers(model: nn.Module, reference: Mapping[str, Tensor] | None = None) -> dict[str, Reader]:
    """Layer name -> a function that reads its shift from the live parameters."""
    adapted = {n: m for n, m in model.named_modules() if hasattr(m, "base_layer") and hasattr(m, "active_adapters")}
    if adapted:
        return {name: _adapter_reader(name, m, reference) for name, m in _readable(adapted).items()}
    refuse_weightless(model)
    if reference is None:
        raise HoldfastError(
            "the model has no adapter, so its shifts can't be told from its weights alone",
            wanted="a PEFT model, or the weights at the anchor",
            remedy="wrap it with peft.get_peft_model, or pass reference=holdfast.snapshot(model) of before training",
        )
    trainable = {n: m for n, m in base_layers(model).items() if m.weight.requires_grad}
    if not trainable:
        raise HoldfastError("no layer of the model is trainable", remedy="set requires_grad on what should move")
    for name, module in trainable.items():
        _refuse_weight_norm(name, module)
        if name not in reference:
            raise HoldfastError(f"the trainable layer {name!r} is not in the reference")
    return {n: _full_reader(require_kind(n, m), m, reference[n]) for n, m in trainable.items()}


def _readable(adapted: Mapping[str, Any]) -> dict[str, Any]:
    """Canonical name -> adapter layer, without those that train in place in what is no matrix, such as a norm.

    What these train moves the model at no shift; penalties warn of it.
    """
    found = {
        canonical(name): layer
        for name, layer in adapted.items()
        if not is_sparse(layer) or kind_of(layer.base_layer) is not None
    }
    if not found:
        kinds = sorted({type(layer.base_layer).__name__ for layer in adapted.values()})
        raise HoldfastError(
            f"the adapter trains in {', '.join(kinds)} alone, whose weights are not read as matrices",
            remedy=ELSEWHERE,
        )
    return found


def _full_reader(kind: LayerKind, module: Any, anchored: Tensor) -> Reader:
    kept = Kept(anchored)
    return lambda: Dense(kind.matrix(module, precise(module.weight) - kept.beside(module.weight)))


def _adapter_reader(name: str, layer: Any, reference: Mapping[str, Tensor] | None) -> Reader:
    check_readable(name, layer)
    base = layer.base_layer
    _refuse_weight_norm(name, base)
    kind = require_kind(name, base)
    anchored = None if reference is None else reference.get(name)
    if is_sparse(layer):
        return sparse_reader(layer, kind, anchored)
    _refuse_merged(name, layer)
    if anchored is not None and torch.equal(anchored, base.weight):
        anchored = None  # the base weight is the anchor: the adapter alone is the shift

    if is_scaling(layer):
        return scaling_reader(layer, kind, lambda: unpacked(name, base), anchored)

    def read() -> Shift:
        _refuse_merged(name, layer)
        active = active_of(layer)
        if not active:  # all of this layer's adapters are off: a shift of rank zero
            out, inn = kind.size(base)
            like = next(parameter for parameter in layer.parameters() if parameter.is_floating_point())
            return LowRank(like.new_zeros(out, 0), like.new_zeros(0, inn))
        if anchored is not None or any(has_magnitude(layer, a) for a in active):
            weight = unpacked(name, base) if anchored is None else anchored.to(base.weight.device)
            return Dense(effective(name, layer, kind, active) - kind.matrix(base, weight))
        return LowRank.stacked([factors(layer, adapter) for adapter in active])

    return read


def refuse_weightless(model: nn.Module) -> None:
    """Raise HoldfastError for an adapter that stands around no layer: prefixes and prompts move no weight."""
    kinds = [str(config.peft_type).rpartition(".")[2] for config in getattr(model, "peft_config", {}).values()]
    if kinds and not any(hasattr(module, "base_layer") for module in model.modules()):
        raise HoldfastError(f"an adapter of {', '.join(kinds)} moves no weight of the model", remedy=ELSEWHERE)


def check_readable(name: str, layer: Any) -> None:
    """Raise HoldfastError for adapters whose effect is not known to be a shift of the layer's weight."""
    if is_sparse(layer):
        return
    if is_scaling(layer):
        if not (what := unread_scaling(layer)):
            return
        raise _unread(name, what)
    variants = {type(variant).__name__ for variant in getattr(layer, "lora_variant", {}).values()}
    if not isinstance(getattr(layer, "lora_A", None), nn.ModuleDict) or hasattr(layer, "parameter_name"):
        what = f"an adapter ({type(layer).__module__.split('.')[-2]}, {type(layer).__name__})"
    elif any(not variant.startswith(("Dora", "MiCA")) for variant in variants):
        what = f"a LoRA variant ({', '.join(sorted(variants))})"
    elif any(_unlike(layer.base_layer, down) for down in layer.lora_A.values()):
        what = "a convolution that PEFT adapts without its dilation or its padding mode"
    else:
        return
    raise _unread(name, what)


def _unread(name: str, what: str) -> HoldfastError:
    return HoldfastError(
        f"layer {name!r} carries {what}, whose shift is not read yet",
        wanted="LoRA (with rsLoRA, DoRA, PiSSA ...), IA3 on linear layers, SIFT or full fine-tuning",
        remedy=f"{ELSEWHERE}; or use LoRA",
    )


def _refuse_merged(name: str, layer: Any) -> None:
    if getattr(layer, "merged", False):
        raise HoldfastError(
            f"the adapter on {name!r} is merged into the weight", remedy="call model.unmerge_adapter() first"
        )


def _refuse_weight_norm(name: str, base: nn.Module) -> None:
    if is_weight_normed(base):
        raise HoldfastError(
            f"the weight of {name!r} is weight-normed: computed anew at every pass, so a shift put into it is lost",
            wanted="a plain weight",
            remedy="call holdfast.adapters.weight_norm.fold_weight_norm(model, names) before anything else, or leave "
            "this layer out of the targets",
        )


def _unlike(base: Any, down: Any) -> bool:
    """Whether an adapter's convolution walks over its input in another way than the layer it adapts."""
    return any(
        getattr(base, setting, None) != getattr(down, setting, None) for setting in ("dilation", "padding_mode")
    )


def active_of(layer: Any) -> list[str]:
    """The active LoRA adapters of a layer."""
    return [a for a in layer.active_adapters if a in layer.scaling and not layer.disable_adapters]


def factors(layer: Any, adapter: str) -> LowRank:
    """One adapter's B (out, r), A (r, in) and scaling, live: gradients reach the adapter's own parameters.

    Conv1D stores its adapter as a Linear does; a convolution's A is (r, channels, *kernel), its B (out, r, 1, 1);
    an embedding's shift W^T is B A as well.
    """
    scale = float(layer.scaling[adapter])
    embedded = layer.lora_embedding_A
    if adapter in embedded:
        return LowRank(layer.lora_embedding_B[adapter], embedded[adapter], scale)
    down, up = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    if down.dim() > 2:
        down, up = down.flatten(1), up.flatten(1)
    return LowRank(up, down, scale)


def has_magnitude(layer: Any, adapter: str) -> bool:
    """Whether the adapter is a DoRA one."""
    return adapter in getattr(layer, "lora_magnitude_vector", {})


def unpacked(name: str, base: Any) -> Tensor:
    """A base layer's weight as numbers, of its own shape; what bitsandbytes and others packed is unpacked by PEFT.

    Raises:
        HoldfastError: a weight that PEFT does not know how to unpack.
    """
    if base.weight.is_floating_point():
        return base.weight
    from peft.utils.integrations import dequantize_module_weight

    found = dequantize_module_weight(base)
    if not found.is_floating_point():
        raise HoldfastError(
            f"the weight of {name!r} is packed ({base.weight.dtype}), and its numbers are needed for this adapter",
            wanted="a weight in floating point, or one that PEFT can unpack",
            remedy="use LoRA without use_dora and with the default initialisation: it needs no weight",
        )
    return found.detach()


def effective(name: str, layer: Any, kind: LayerKind, adapters: list[str]) -> Tensor:
    """The layer's effective weight, (out, in), differentiable.

    DoRA: m / ||W + s B A|| * (W + s B A), norms over each output's row (arXiv 2402.09353 eq. 5).
    """
    weight = kind.matrix(layer.base_layer, unpacked(name, layer.base_layer))
    magnitudes = [a for a in adapters if has_magnitude(layer, a)]
    if magnitudes and len(adapters) > 1:
        raise HoldfastError("several active adapters of which one is DoRA", remedy="activate one adapter at a time")
    for adapter in adapters:
        weight = weight + factors(layer, adapter).matrix()
    for adapter in magnitudes:
        magnitude = layer.lora_magnitude_vector[adapter].weight.flatten()
        weight = (magnitude / weight.norm(dim=1))[:, None] * weight
    return weight
