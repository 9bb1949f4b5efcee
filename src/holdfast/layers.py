"""Layer kinds: the one place that knows how a module holds its weight.

Everywhere else a layer is a matrix W of shape (out, in) that maps rows of inputs to rows of outputs,
y = x W^T. A kind says, for its modules, how to see the weight, the inputs and the output gradients so.

| module              | rows                         | out          | in                        |
|---------------------|------------------------------|--------------|---------------------------|
| nn.Linear           | all leading positions        | out_features | in_features               |
| transformers Conv1D | all leading positions        | nf           | nx (weight is stored W^T) |
| nn.Conv1d, nn.Conv2d| every output position        | out_channels | in_channels * kernel size |
| nn.Embedding        | every looked-up index        | width        | vocabulary                |

Embeddings with a forward of their own, which scale what they look up or shift their indices, are no layers.
"""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm

from holdfast.errors import HoldfastError


class LayerKind(ABC):
    """How modules of one kind are read as y = x W^T."""

    @abstractmethod
    def matrix(self, module: Any, weight: Tensor) -> Tensor:
        """View a tensor of the weight's own shape as (out, in)."""

    @abstractmethod
    def input_rows(self, module: Any, inputs: Tensor) -> Tensor:
        """(rows, in); for an embedding the indices themselves, (rows,), standing for one-hot rows."""

    @abstractmethod
    def gradient_rows(self, module: Any, gradient: Tensor) -> Tensor:
        """(rows, out)."""

    def entries(self, module: Any, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and columns, (k,) each, in `matrix` of what lies at these places of the stored weight, (k,) flat."""
        flat, inn = flat.long(), self.size(module)[1]
        return flat // inn, flat % inn

    def same_rows(self, module: Any, other_kind: "LayerKind", other: Any) -> bool:
        """Whether another layer given the same tensor has the same input rows."""
        return False

    def size(self, module: Any) -> tuple[int, int]:
        """(out, in)."""
        out, inn = self.matrix(module, module.weight).shape
        return out, inn


def _flatten(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


def _transposed(flat: Tensor, out: int) -> tuple[Tensor, Tensor]:
    """Rows and columns of W where W^T, (in, out), is what is stored."""
    flat = flat.long()
    return flat % out, flat // out


class LinearKind(LayerKind):
    """`nn.Linear` and what behaves like it."""

    def matrix(self, module: Any, weight: Tensor) -> Tensor:
        return weight

    def input_rows(self, module: Any, inputs: Tensor) -> Tensor:
        return _flatten(inputs)

    def gradient_rows(self, module: Any, gradient: Tensor) -> Tensor:
        return _flatten(gradient)

    def same_rows(self, module: Any, other_kind: LayerKind, other: Any) -> bool:
        return isinstance(other_kind, LinearKind)

    def size(self, module: Any) -> tuple[int, int]:
        # The features, not the weight: a quantised weight is packed.
        return module.out_features, module.in_features


class TransposedLinearKind(LinearKind):
    """transformers' `Conv1D` (GPT-2), which stores W^T."""

    def matrix(self, module: Any, weight: Tensor) -> Tensor:
        return weight.T

    def entries(self, module: Any, flat: Tensor) -> tuple[Tensor, Tensor]:
        return _transposed(flat, self.size(module)[0])

    def size(self, module: Any) -> tuple[int, int]:
        inn, out = module.weight.shape
        return out, inn


class ConvolutionKind(LayerKind):
    """`nn.Conv1d` and `nn.Conv2d` without groups, as a linear map on unfolded patches."""

    def matrix(self, module: Any, weight: Tensor) -> Tensor:
        return weight.reshape(weight.shape[0], -1)

    def input_rows(self, module: Any, inputs: Tensor) -> Tensor:
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        # The module's own record of its padding, whether it was given as numbers or as "same".
        padded = F.pad(inputs, module._reversed_padding_repeated_twice, mode=mode)
        kernel, dilation, stride = module.kernel_size, module.dilation, module.stride
        if len(kernel) == 1:  # (batch, channels, time) -> (batch, channels, 1, time)
            padded = padded.unsqueeze(-2)
            kernel, dilation, stride = (1, *kernel), (1, *dilation), (1, *stride)
        patches = F.unfold(padded, kernel, dilation=dilation, stride=stride)  # (batch, in, positions)
        return _flatten(patches.transpose(1, 2))

    def gradient_rows(self, module: Any, gradient: Tensor) -> Tensor:
        return _flatten(gradient.movedim(1, -1))


class EmbeddingKind(LayerKind):
    """`nn.Embedding`: one-hot rows, so the second moment of its inputs is exactly diagonal (the counts)."""

    def matrix(self, module: Any, weight: Tensor) -> Tensor:
        return weight.T

    def entries(self, module: Any, flat: Tensor) -> tuple[Tensor, Tensor]:
        return _transposed(flat, self.size(module)[0])

    def input_rows(self, module: Any, inputs: Tensor) -> Tensor:
        return inputs.reshape(-1)

    def gradient_rows(self, module: Any, gradient: Tensor) -> Tensor:
        return _flatten(gradient)


_LINEAR, _TRANSPOSED, _CONVOLUTION, _EMBEDDING = (
    LinearKind(),
    TransposedLinearKind(),
    ConvolutionKind(),
    EmbeddingKind(),
)


def kind_of(module: Any) -> LayerKind | None:
    """The kind of a module, or None when Holdfast does not read it as a matrix."""
    if isinstance(module, nn.Linear):
        return _LINEAR
    if isinstance(module, nn.Embedding):
        return None if has_own_lookup(module) else _EMBEDDING
    if isinstance(module, (nn.Conv1d, nn.Conv2d)):
        return _CONVOLUTION if module.groups == 1 else None
    # By behaviour: GPT-2's Conv1D has `nf` output features and a weight (nx, nf).
    weight = getattr(module, "weight", None)
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf") and isinstance(weight, Tensor):
        return _TRANSPOSED
    return None


def has_own_lookup(module: Any) -> bool:
    """Whether an embedding scales what it looks up, shifts its indices or makes them: its rows are then not known."""
    return isinstance(module, nn.Embedding) and type(module).forward is not nn.Embedding.forward


def require_kind(name: str, module: Any) -> LayerKind:
    """The kind of a module.

    Raises:
        HoldfastError: when the module is not one of the kinds above.
    """
    kind = kind_of(module)
    if kind is None:
        grouped = " with groups" if getattr(module, "groups", 1) != 1 else ""
        own = ", an nn.Embedding whose forward is its own" if has_own_lookup(module) else ""
        raise HoldfastError(
            f"layer {name!r} is a {type(module).__name__}{grouped}{own}",
            wanted="nn.Linear, transformers' Conv1D, nn.Conv1d or nn.Conv2d without groups, or nn.Embedding",
            remedy="leave this layer out of the targets",
        )
    return kind


def is_weight_normed(module: nn.Module) -> bool:
    """Whether a layer's weight is computed from a magnitude and a direction, w = g v / ||v|| (arXiv 1602.07868).

    By torch's new parametrisation or by its old one. Such a weight is no place to put a shift into: it is computed
    anew at every forward pass.
    """
    if parametrize.is_parametrized(module, "weight"):
        return any(isinstance(one, _WeightNorm) for one in module.parametrizations.weight)  # type: ignore[union-attr]
    return any(isinstance(h, WeightNorm) and h.name == "weight" for h in module._forward_pre_hooks.values())


def weight_parameters(module: Any) -> list[nn.Parameter]:
    """The layer's weight, or what it is computed from where it is (magnitude and direction of a weight-normed one)."""
    if parametrize.is_parametrized(module, "weight"):
        return list(module.parametrizations.weight.parameters())
    if is_weight_normed(module):
        return [module.weight_g, module.weight_v]
    return [module.weight]


def is_embedding(kind: LayerKind) -> bool:
    """Whether input rows are indices instead of vectors."""
    return isinstance(kind, EmbeddingKind)


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def watched(output: Tensor) -> Tensor:
    """The tensor to watch: writing into a view, as models do that zero their padding, loses the view's own hooks."""
    base = output._base
    if base is None or base.numel() != output.numel() or not (base.is_contiguous() and output.is_contiguous()):
        return output
    return base if base.requires_grad else output


def own_precision(device: torch.device) -> AbstractContextManager:
    """Autocast off: what is computed inside has the precision of its tensors, whatever the model beside it runs in.

    Hooks are called inside the model's forward pass, which launchers put under autocast, and losses often are too.
    """
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
