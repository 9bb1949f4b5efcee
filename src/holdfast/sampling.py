"""Text that a language model says of itself: source data when there is none."""

from typing import Any

import torch
from torch import Tensor, nn

from holdfast.errors import HoldfastError
from holdfast.layers import device_of
from holdfast.likelihood import bare
from holdfast.pretrained import at_anchor
from holdfast.progress import track

BATCH = 64


def sample_from(
    model: nn.Module, count: int, length: int, *, seed: int = 0, progress: bool = True
) -> list[dict[str, Tensor]]:
    """Rows of token ids drawn from the model's own distribution (temperature 1), its adapters switched off.

    Each sequence starts from the beginning-of-sequence token and ends at the end-of-sequence token or at `length`.

    Raises:
        HoldfastError: a model that does not generate, or one without a token to start from.
    """
    config = getattr(bare(model), "generation_config", None)
    if config is None:
        raise HoldfastError(
            f"{type(bare(model)).__name__} does not generate text, so it can't be its own source",
            remedy="pass source data",
        )
    start = config.bos_token_id if config.bos_token_id is not None else config.eos_token_id
    start = start[0] if isinstance(start, (list, tuple)) else start
    if start is None:
        raise HoldfastError(
            "the model names no beginning- or end-of-sequence token to start sampling from",
            remedy="set model.generation_config.bos_token_id",
        )
    rows: list[dict[str, Tensor]] = []
    generator: Any = model
    with at_anchor(model), torch.no_grad(), track("sample", count, shown=progress, unit="sequence") as advance:
        torch.manual_seed(seed)
        while len(rows) < count:
            size = min(BATCH, count - len(rows))
            rows += _some(generator, size, length, int(start), config.eos_token_id)
            advance(size)
    return rows


def _some(model: Any, size: int, length: int, start: int, end: int | list[int] | None) -> list[dict[str, Tensor]]:
    prompt = torch.full((size, 1), start, device=device_of(model))
    drawn = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=length - 1,
        pad_token_id=start,
    )
    ends = torch.tensor([end] if isinstance(end, int) else end or [], device=drawn.device)
    rows = []
    for ids in drawn:
        stops = torch.isin(ids[1:], ends).nonzero()
        rows.append({"input_ids": ids[: int(stops[0]) + 2 if len(stops) else None].cpu()})
    return rows
