"""Writing entries into their tensors right after an optimizer's step, whoever takes the step."""

from functools import cache
from typing import Any

from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from holdfast.sift.entries import LIVE


@cache
def follow_optimizers() -> None:
    """From now on, once: every torch optimizer's step writes the entries that it trained.

    So evaluation, saving and the next forward pass see the last update; arXiv 2312.11875's code is one step behind
    and loses the last. Optimizers outside torch's family are seen at the next forward pass.
    """
    register_optimizer_step_post_hook(_stepped)


def _stepped(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if not LIVE:
        return
    stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    moved = [entries for entries in list(LIVE) if id(entries.values) in stepped]
    for entries in moved:
        entries.changed()  # fused optimizers leave the version counter alone
    for entries in moved:
        entries.place.settle()
