"""How many entries each tensor gets where tensors do not compete, and what its rows are."""

from collections.abc import Mapping

from torch import Tensor, nn

from holdfast.layers import kind_of
from holdfast.sift.allocation import counts, total
from holdfast.sift.config import SiftConfig


def as_rows(module: nn.Module, parameter: str, tensor: Tensor) -> Tensor:
    """A tensor of a parameter's shape as (rows, columns): outputs, and what each reads; a vector is one row.

    A view, where the tensor is contiguous. Kinds that Holdfast does not read as a matrix have their first dimension
    as rows.
    """
    kind = kind_of(module) if parameter == "weight" else None
    if kind is not None:
        return kind.matrix(module, tensor)
    return tensor.reshape(1, -1) if tensor.dim() < 2 else tensor.reshape(tensor.shape[0], -1)


def sizes(config: SiftConfig, matrices: Mapping[str, Tensor]) -> dict[str, int]:
    """Tensor -> k: max(1, round(density * entries)) of each tensor, or of each of its rows for scope "row".

    (The paper's code takes floor(density * entries) + 1.) With `count`: in proportion to the tensors' sizes by
    largest remainders, exactly `count` in all; and for scope "global" as many in all as will be chosen.

    Args:
        config: of the adapter.
        matrices: name of the tensor -> as `as_rows` gives it.

    Raises:
        HoldfastError: `count` is more than there is.
    """
    if config.count is None and config.scope == "row":
        return {name: len(one) * max(1, round(config.share * one.shape[1])) for name, one in matrices.items()}
    numbers = {name: one.numel() for name, one in matrices.items()}
    whole = total(numbers, config.share, config.count) if config.scope == "global" else config.count
    return counts(numbers, config.share, whole)
