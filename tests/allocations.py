"""Which tensors some code made."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """A context manager that looks at the result of every operation inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0  # entries of the largest result
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        given = {leaf.data_ptr() for leaf in tree_leaves((args, kwargs)) if _whole(leaf)}
        for leaf in tree_leaves(returned):
            if _whole(leaf) and leaf.data_ptr() not in given:  # a view makes nothing
                self.largest = max(self.largest, leaf.numel())
                self.shapes.add(tuple(leaf.shape))
        return returned


def _whole(leaf: Any) -> bool:
    """Whether it is a tensor of all its entries: a sparse one's shape says nothing of its size."""
    return isinstance(leaf, Tensor) and leaf.layout == torch.strided
