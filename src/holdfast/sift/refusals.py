"""The layers that no entry can be trained in, with the reason."""

from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from holdfast.errors import HoldfastError


def check_target(name: str, module: Any) -> None:
    """Raise HoldfastError for a layer whose weight is not one plain tensor of its own, in floating point."""
    reason, remedy = _reason(module)
    if reason:
        raise HoldfastError(
            f"{name!r} is a {type(module).__name__}{reason}",
            wanted="a layer with a weight of its own in floating point, of at least two bytes",
            remedy=remedy or "leave this layer out of target_modules (exclude_modules)",
        )


def _reason(module: Any) -> tuple[str, str]:
    if isinstance(module, BaseTunerLayer):
        return ", another adapter's layer", "let each adapter have layers of its own (exclude_modules)"
    if is_parametrized(module) or hasattr(module, "weight_g"):
        return " whose weight is computed from others at every use", ""
    if next(module.children(), None) is not None:
        return " made of other layers", "name those in target_modules"
    weight = module._parameters.get("weight")
    if weight is None:
        return " without a weight that is a parameter", ""
    if not weight.is_floating_point() or weight.element_size() < 2 or hasattr(weight, "quant_state"):
        packed = "train sparse entries on the model as it was before it was quantised, or LoRA on this one"
        return f" whose weight is packed ({weight.dtype})", packed
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None:
        return " with max_norm, which rewrites its weight as it looks up", ""
    return "", ""
