"""The layers that no entry can be trained in, with the reason, and copies of layers that none can be trained by."""

from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
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
    numbers = weight.is_floating_point() and weight.element_size() >= 2
    if not numbers or type(weight.data) is not Tensor:  # torchao's and others' kinds of tensors say they are bfloat16
        packed = "train sparse entries on the model as it was before it was quantised, or LoRA on this one"
        return f" whose weight is packed ({type(weight.data).__name__}, {weight.dtype})", packed
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None:
        return " with max_norm, which rewrites its weight as it looks up", ""
    return "", ""


def check_own(layer: nn.Module) -> None:
    """Raise HoldfastError for a copy that torch.nn.DataParallel made of a layer: the entries are in the first's."""
    if getattr(layer, "_is_replica", False):
        raise HoldfastError(
            "torch.nn.DataParallel runs copies of the model, whose weights SIFT does not write",
            causes=["a trainer that sees several accelerators and was not started by torchrun"],
            remedy="start one process for each (torchrun), or show it one accelerator (CUDA_VISIBLE_DEVICES=0)",
        )
