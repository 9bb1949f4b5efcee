"""Choosing which entries train, from a few batches, before training."""

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peft.tuners.tuners_utils import BaseTuner
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from holdfast.errors import HoldfastError
from holdfast.likelihood import ForwardLoss
from holdfast.measuring.ranks import Ranks
from holdfast.pretrained import check_unmerged, check_whole
from holdfast.sift.config import SiftConfig
from holdfast.sift.finding import Found, entries_of
from holdfast.sift.gradients import Gradients
from holdfast.sift.picking import Picked, pick
from holdfast.sift.scores import score_of

ACCUMULATOR_MB = 1024


@dataclass(frozen=True)
class Chosen:
    """One tensor's entries.

    Attributes:
        count, size: entries that train, of how many.
        captured: ||g[I]|| / ||g||, the share of its gradient's norm that the chosen entries hold; None for scores
            that need no gradient.
    """

    count: int
    size: int
    captured: float | None


@dataclass(frozen=True)
class Selection:
    """What was chosen.

    Attributes:
        tensors: canonical name -> its entries.
        batches, items: that were scored on, on all ranks; 0 for scores that need no gradient.
        captured: as `Chosen.captured`, over all tensors together.
        checksum: SHA-256 of all indices with their tensors' names.
    """

    tensors: dict[str, Chosen]
    batches: int
    items: int
    captured: float | None
    checksum: str

    @property
    def count(self) -> int:
        """Entries in all."""
        return sum(one.count for one in self.tensors.values())


def select(
    model: nn.Module,
    batches: Any = None,
    forward_loss: ForwardLoss | None = None,
    *,
    adapter: str | None = None,
    accumulator_mb: float = ACCUMULATOR_MB,
    progress: bool = False,
) -> Selection:
    """Choose the entries of a SIFT adapter by its configured score, from the first `config.batches` batches.

    The gradient is that of the mean loss over all items of the batches, in eval mode and at the weights as they are;
    training modes, gradients and random states are as before afterwards. Dense gradients are summed for a group of
    tensors at a time: passes over the batches = groups, and `accumulator_mb` bounds a group's sums. Entries that were
    chosen before and stay keep their values, the others go back to the base.

    Under torch.distributed all ranks call it, each with its own batches; all choose the same entries.

    Args:
        model: with the adapter; wrapped in DistributedDataParallel only where no tensor's number of entries changes
            (scope "tensor" or "row").
        batches: an iterable of batches or a tokenised dataset; None for scores that need no gradient.
        forward_loss: of models that are not of transformers, as for `Anchor.estimate`.
        adapter: its name; None is the active one.
        accumulator_mb: see above.
        progress: show a bar.

    Raises:
        HoldfastError: no SIFT adapter, no batches, sharded or merged weights, a loss that is not finite, ranks that
            chose differently.
    """
    return choose(model, batches, forward_loss, adapter, accumulator_mb, progress, resize=True)


def choose(
    model: nn.Module,
    batches: Any,
    forward_loss: ForwardLoss | None,
    adapter: str | None,
    accumulator_mb: float,
    progress: bool,
    *,
    resize: bool,
) -> Selection:
    """See `select`; without `resize` each tensor keeps its number of entries, whatever the scope."""
    wrapped = isinstance(model, DistributedDataParallel)
    model = model.module if isinstance(model, DistributedDataParallel) else model
    check_whole(model, "SIFT's gradients")
    found = entries_of(model, adapter)
    config = config_of(model, found)
    if wrapped and resize and competes(config):
        raise resized()
    _check_shown(model, found)
    score = score_of(config.score)
    with Ranks.present() as ranks:
        seen = None
        if score.gradient:
            seen = Gradients(
                model, found, batches, config.batches, forward_loss, squared=score.squared,
                accumulator_mb=accumulator_mb, seed=config.seed, ranks=ranks, progress=progress,
            )  # fmt: skip
        means = seen if seen is not None else dict.fromkeys(found).items()
        picked = pick(means, found, config, score, compete=resize and competes(config))
        checksum = _checksum(picked)
        _check_alike(ranks.gathered(checksum))
    for name, one in picked.items():
        found[name].entries.chooser = None
        found[name].entries.move(one.indices)
    _warn_of_silence(picked)
    tensors = {name: Chosen(len(p.indices), found[name].tensor.numel(), captured([p])) for name, p in picked.items()}
    batches_seen, items = (0, 0) if seen is None else (seen.batches, seen.items)
    return Selection(tensors, batches_seen, items, captured(list(picked.values())), checksum)


def competes(config: SiftConfig) -> bool:
    """Whether entries compete across tensors, so that their numbers are known only once they are chosen."""
    return config.scope == "global"


def config_of(model: nn.Module, found: Mapping[str, Found]) -> SiftConfig:
    """The configuration of the adapter that the entries belong to."""
    one = next(iter(found.values()))
    adapter = next(name for name, entries in one.layer.own(one.parameter).items() if entries is one.entries)
    for module in model.modules():
        config = getattr(module, "peft_config", {}).get(adapter) if isinstance(module, BaseTuner) else None
        if isinstance(config, SiftConfig):
            return config
    raise HoldfastError(f"the model holds no configuration of the adapter {adapter!r}")


def captured(several: list[Picked]) -> float | None:
    """||g[I]|| / ||g|| over tensors; 0 where there is no gradient."""
    if any(one.whole is None or one.energy is None for one in several):
        return None
    whole = sum(one.whole or 0.0 for one in several)
    return (sum(one.energy or 0.0 for one in several) / whole) ** 0.5 if whole else 0.0


def resized() -> HoldfastError:
    """The error for a choice across tensors that comes too late."""
    return HoldfastError(
        "scope 'global' decides how many entries a tensor trains, and DistributedDataParallel has already sized them",
        remedy="call holdfast.sift.selection.select(model, batches) on every rank before the model is wrapped (before "
        "trainer.train()), or take scope 'tensor'",
    )


def _check_shown(model: nn.Module, found: Mapping[str, Found]) -> None:
    """Raise HoldfastError unless the tensors hold the adapter's entries and can be differentiated for them."""
    check_unmerged(model, "their entries can't be chosen")
    hidden = [name for name, one in found.items() if one.entries not in one.entries.place.visible()]
    if hidden:
        raise HoldfastError(
            f"the adapter of the entries is not active in {hidden[0]!r}",
            remedy="call model.set_adapter(name) first, and choose outside model.disable_adapter()",
        )


def _warn_of_silence(picked: Mapping[str, Picked]) -> None:
    silent = [name for name, one in picked.items() if one.whole == 0]
    if silent:
        warnings.warn(
            f"no gradient reached {len(silent)} tensors, so their entries are the first ones: {', '.join(silent[:3])}",
            stacklevel=4,
        )


def _checksum(picked: Mapping[str, Picked]) -> str:
    digest = hashlib.sha256()
    for name in sorted(picked):
        digest.update(name.encode())
        digest.update(picked[name].indices.cpu().numpy().tobytes())
    return digest.hexdigest()


def _check_alike(checksums: list[str]) -> None:
    if len(set(checksums)) > 1:
        raise HoldfastError(
            "the ranks chose different entries",
            wanted="the same base weights, adapter and seed on every rank",
            causes=["each rank initialised weights of its own", "a score function that differs between ranks"],
            remedy="load the same checkpoint on every rank, and seed what is new in it",
        )
