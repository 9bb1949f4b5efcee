"""A model's modules without its weights, on which what a method trains is counted at no cost."""

import copy
from typing import Any

import torch
from torch import Tensor, nn


def weightless(model: nn.Module) -> nn.Module:
    """A copy of every module, with each parameter and buffer on the meta device; what is tied stays tied.

    No weight is copied: the copier is told that each tensor's copy is there already.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for tensor in module._parameters.values():
            if tensor is not None and id(tensor) not in memo:
                memo[id(tensor)] = _parameter(tensor)
        for buffer in module._buffers.values():
            if buffer is not None and id(buffer) not in memo:
                memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo)


def _parameter(tensor: Tensor) -> nn.Parameter:
    empty = torch.empty_like(tensor.detach(), device="meta")
    return nn.Parameter(empty, requires_grad=tensor.requires_grad)
