"""Writing entries into their tensors right after an optimizer's step, whoever takes the step."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from holdfast.sift.entries import LIVE, Entries


@dataclass
class _Wait:
    """Steps taken of those after which the first refresh is due."""

    every: int
    steps: int = 0


_WAITING: "WeakKeyDictionary[Entries, _Wait]" = WeakKeyDictionary()


@cache
def follow_optimizers() -> None:
    """From now on, once: every torch optimizer's step writes the entries that it trained.

    So evaluation, saving and the next forward pass see the last update; arXiv 2312.11875's code is one step behind
    and loses the last. Optimizers outside torch's family are seen at the next forward pass.
    """
    register_optimizer_step_post_hook(_stepped)


def await_refresh(several: Iterable[Entries], every: int) -> None:
    """Warn, once, if these entries train on past so many optimizer steps without anybody to refresh them; 0: never."""
    if every:
        _WAITING.update((entries, _Wait(every)) for entries in several)


def attend(several: Iterable[Entries]) -> None:
    """Somebody sees to these entries' refreshes."""
    for entries in several:
        _WAITING.pop(entries, None)


def _stepped(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if not LIVE:
        return
    stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    moved = [entries for entries in list(LIVE) if id(entries.values) in stepped]
    for entries in moved:
        entries.changed()  # fused optimizers leave the version counter alone
    for entries in moved:
        entries.place.settle()
    _warn_of_none(moved)


def _warn_of_none(moved: list[Entries]) -> None:
    """Where the step after the one at which a refresh was due has been taken."""
    waits = [(entries, _WAITING[entries]) for entries in moved if entries in _WAITING]
    for _, wait in waits:
        wait.steps += 1
    overdue = [wait.every for _, wait in waits if wait.steps > wait.every]
    if overdue:
        attend(entries for entries, _ in waits)
        warnings.warn(
            f"refresh={overdue[0]} asks for entries to be chosen again every {overdue[0]} optimizer steps, and "
            "nothing has: they stay as first chosen. Give the trainer a SiftCallback (holdfast.sift.callback), or "
            "call holdfast.sift.refresh.refresh(model, batches, optimizer) in a loop of your own",
            stacklevel=4,
        )
