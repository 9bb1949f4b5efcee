"""Dense gradients of the tensors that hold entries, averaged over a few batches, a group of tensors at a time."""

import itertools
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.batches import batches_of, to_device
from holdfast.errors import HoldfastError
from holdfast.evaluation import not_finite
from holdfast.layers import device_of
from holdfast.likelihood import ForwardLoss, Items
from holdfast.measuring.ranks import Ranks
from holdfast.pretrained import at_start
from holdfast.progress import track
from holdfast.sift.finding import Found

MB = 2**20


class Gradients:
    """Reads the same batches once for each group of tensors; only that group's sums are ever held.

    Every rank reads the batches that it is given, and their sums are added up: give each its own share, as trainers'
    data loaders do. The same ones on all cost time and change nothing.

    Attributes:
        items, batches: scored items and batches behind the last group, on all ranks.

    Args:
        model: with the entries.
        found: whose gradients.
        batches: an iterable of batches, or a tokenised dataset.
        count: how many of them are read, the first ones.
        forward_loss: as for `Anchor.estimate`.
        squared: the mean over batches of the squared gradient of a batch's mean loss, instead of the gradient of the
            mean loss over all items.
        accumulator_mb: the most that a group's sums may take; at least one tensor is in a group.
        seed: of what is left random in eval mode.
        ranks: who takes part.
        progress: show a bar.

    Raises:
        HoldfastError: no batches, on this rank or on another.
    """

    def __init__(
        self,
        model: nn.Module,
        found: Mapping[str, Found],
        batches: Any,
        count: int,
        forward_loss: ForwardLoss | None,
        *,
        squared: bool,
        accumulator_mb: float,
        seed: int,
        ranks: Ranks,
        progress: bool,
    ) -> None:
        self.model, self.found, self.squared = model, found, squared
        self.reader, self.seed, self.ranks = Items(model, forward_loss), seed, ranks
        self.groups = _groups(found, accumulator_mb * MB, 2 if squared else 1)
        self.progress = progress
        self.items = self.batches = 0
        self.own_batches: list[Any] = []
        ranks.together(lambda: self._take(batches, count))  # that one rank has none must not leave the others waiting

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Name and mean, of the tensor's shape and in at least float32, tensor by tensor.

        Raises:
            HoldfastError: a loss that is not finite, or a model whose likelihood is not known.
        """
        with track("choosing", len(self.groups) * len(self.own_batches), shown=self.progress) as advance:
            for group in self.groups:
                sums = {name: _Sum(self.found[name].tensor, self.squared) for name in group}
                told = self.ranks.together(lambda sums=sums: self._read(sums, advance))  # type: ignore[misc]
                self.items, self.batches = sum(one[0] for one in told), sum(one[1] for one in told)
                for name in group:  # each is let go of as soon as it is used
                    total = sums.pop(name).total
                    self.ranks.add_up(total)
                    yield name, total.div_(max(1, self.batches if self.squared else self.items))

    def _take(self, batches: Any, count: int) -> tuple[int]:
        self.own_batches = [] if batches is None else list(itertools.islice(batches_of(batches), count))
        found = len(self.own_batches)
        if not found:
            raise HoldfastError(
                "there are no batches to choose entries on",
                remedy="pass select(model, batches), or take a score that needs none: magnitude, magnitude-low or "
                "random",
            )
        if found < count:
            warnings.warn(f"{found} batches to choose entries on, and the adapter wants {count}", stacklevel=6)
        return (found,)

    def _read(self, sums: dict[str, "_Sum"], advance: Any) -> tuple[int, int]:
        """One pass over the batches for one group; the items and batches that it saw."""
        device, seen = device_of(self.model), 0
        moving = [self.found[name].entries.values for name in sums]
        with at_start(self.model, moving), _observed(self.found, sums):
            _keep_checkpointing(self.model)
            torch.manual_seed(self.seed)
            for batch in self.own_batches:
                said = self.reader.read(to_device(batch, device))
                loss = said.loss() / max(1, said.items)
                if not bool(torch.isfinite(loss)):
                    raise not_finite("a batch to choose entries on", float(loss.detach()))
                for one in sums.values():
                    one.items = said.items
                if said.items and loss.requires_grad:  # else none of the group is used
                    loss.backward()
                for one in sums.values():
                    one.close()
                seen += said.items
                advance()
        return seen, len(self.own_batches)


class _Sum:
    """One tensor's sum over batches; a tensor that several layers share is observed several times in one batch."""

    def __init__(self, tensor: Tensor, squared: bool) -> None:
        dtype = torch.promote_types(tensor.dtype, torch.float32)
        self.total = torch.zeros(tensor.shape, dtype=dtype, device=tensor.device)
        self.now = torch.zeros_like(self.total) if squared else None
        self.items = 0  # of the batch at hand

    def observe(self, gradient: Tensor) -> None:
        """One use's gradient of the batch's mean loss; it is not kept."""
        gradient = gradient.to_dense() if gradient.is_sparse else gradient
        if self.now is None:
            self.total.add_(gradient, alpha=self.items)  # a mean over the batch, back to a sum
        else:
            self.now += gradient

    def close(self) -> None:
        """The batch is over."""
        if self.now is not None:
            self.total.addcmul_(self.now, self.now)
            self.now.zero_()


def _groups(found: Mapping[str, Found], limit: float, copies: int) -> list[list[str]]:
    groups: list[list[str]] = []
    room = 0.0
    for name, one in found.items():
        size = one.tensor.numel() * max(4, one.tensor.element_size()) * copies
        if not groups or size > room:
            groups.append([])
            room = limit
        groups[-1].append(name)
        room -= size
    return groups


@contextmanager
def _observed(found: Mapping[str, Found], sums: Mapping[str, _Sum]) -> Iterator[None]:
    try:
        for name, one in sums.items():
            found[name].entries.observer = one.observe
        yield
    finally:
        for name in sums:
            found[name].entries.observer = None


def _keep_checkpointing(model: nn.Module) -> None:
    """Let layers that checkpoint their activations go on, which transformers does in training mode only.

    The mode is that layer's own, not its children's, so dropout modules stay off; `at_start` puts it back.
    """
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False) is True:
            module.training = True
