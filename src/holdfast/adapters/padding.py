"""Which positions of a batch are real, told from what a transformer layer is given."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from holdfast.errors import HoldfastError

MASKS = ("attention_mask", "padding_mask", "mask")
HIDDEN = -5e3  # additive masks hold 0 where seen, and something far below where not: -1e4 at the least
INVERTED = ("src_key_padding_mask", "key_padding_mask")  # torch's own layers: True is padding


def valid_positions(arguments: Mapping[str, Any], batch: int, time: int) -> Tensor | None:
    """(batch, time) bool, True where a position is real; None where nothing is said, which means everywhere.

    A layer is given no mask if there is no padding, as transformers' scaled-dot-product and flash paths do, or if
    padding is for it as any other input (Whisper's encoder, which always sees thirty seconds; vision models).

    Args:
        arguments: name -> what the layer is called with.
        batch: of the hidden states.
        time: of the hidden states.

    Raises:
        HoldfastError: a mask in a form that is not known.
    """
    for name in (*MASKS, *INVERTED):
        mask = arguments.get(name)
        if mask is not None and not isinstance(mask, Tensor):
            return _asked(mask, batch, time, arguments)
        if mask is not None:
            found = _read(mask, time)
            if found is not None:
                found = ~found if name in INVERTED and mask.dtype == torch.bool else found
                return found.expand(batch, time)
    return None


def _asked(mask: Any, batch: int, time: int, arguments: Mapping[str, Any]) -> Tensor:
    """(batch, time) of flex attention's mask, a function of pairs: where a position may see itself."""
    sees = getattr(mask, "mask_mod", None)
    if sees is None:
        raise HoldfastError(
            f"a layer's mask is a {type(mask).__name__}, from which padding can't be told",
            wanted="a tensor, or flex attention's BlockMask",
            remedy="load the model with attn_implementation='sdpa' or 'eager'",
        )
    device = next((one.device for one in arguments.values() if isinstance(one, Tensor)), None)
    at, rows = torch.arange(time, device=device), torch.arange(batch, device=device)
    return torch.vmap(lambda row: torch.vmap(lambda t: sees(row, row.new_zeros(()), t, t))(at))(rows)


def _read(mask: Tensor, time: int) -> Tensor | None:
    """(1 or batch, time): where a mask over pairs lets a position see itself; None for masks of other lengths."""
    if mask.dim() == 4:
        queries, keys = mask.shape[-2:]
        if keys != time or queries not in (1, time):
            return None
        mask = mask[:, 0]
        seen = mask > HIDDEN if mask.is_floating_point() else mask != 0
        return seen[:, 0] if queries == 1 and time != 1 else seen.diagonal(dim1=-2, dim2=-1)
    if mask.dim() == 3:
        if mask.shape[1:] == (time, time) and time > 1:
            mask = mask.diagonal(dim1=-2, dim2=-1)
        elif mask.shape[2] == 1:
            mask = mask[..., 0]  # (batch, time, 1)
        elif mask.shape[1] == 1:
            mask = mask[:, 0]  # (batch, 1, time)
        else:
            return None
    if mask.dim() != 2 or mask.shape[1] != time:
        return None
    if mask.is_floating_point() and not bool((mask > 0).any()):
        return mask > HIDDEN
    return mask != 0
