"""A stand-in for an accelerator's tensors, with numbers: it says that it is one, and mixes with no plain tensor."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cuda", 0)
SAYS: dict[Any, Any] = {torch.Tensor.device.__get__: DEVICE, torch.Tensor.is_cuda.__get__: True}


class Elsewhere(Tensor):
    """On the accelerator, as far as it says."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in SAYS:
            return SAYS[func]
        leaves = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
        if any(not isinstance(leaf, Elsewhere) and leaf.dim() for leaf in leaves):
            raise RuntimeError(f"{func.__name__}: expected all tensors to be on the same device")
        found = super().__torch_function__(func, types, args, kwargs)
        return tree_map(lambda made: made.as_subclass(Tensor).clone(), found) if func is torch.Tensor.cpu else found


def elsewhere(tensor: Tensor) -> Elsewhere:
    """The same numbers, in the same memory."""
    return tensor.as_subclass(Elsewhere)
