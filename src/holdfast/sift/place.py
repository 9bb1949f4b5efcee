"""One tensor of the model, and the entries that adapters have in it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from holdfast.pretrained import FSDP, sharded

if TYPE_CHECKING:
    from holdfast.sift.entries import Entries


class Place:
    """Keeps the bits of one tensor: those of the base, with the entries of the shown adapters over them.

    One adapter: w[I] = cast(absolute). Where entries of several shown adapters meet: cast(base + sum of increments),
    summed in at least float32. Layers that share the tensor share its place.

    Args:
        name: canonical, "layers.0.q_proj.weight".
        module, parameter: who holds the tensor and as what; read anew each time, since models are cast and moved.
    """

    def __init__(self, name: str, module: nn.Module, parameter: str) -> None:
        self.name, self.module, self.parameter = name, module, parameter
        self.entries: dict[str, Entries] = {}  # adapter -> its entries here
        self.shown: list[str] = []
        self.reloaded = False  # while the tensor itself comes from a state dict, with entries in it
        self._written: list[tuple[Entries, Tensor, Tensor]] = []  # entries, and the indices and origin they had

    @property
    def tensor(self) -> nn.Parameter:
        """The tensor, live."""
        return getattr(self.module, self.parameter)

    def show(self, adapters: list[str]) -> None:
        """Let the tensor hold the entries of these adapters, and no others."""
        self.shown = list(adapters)
        self.settle()

    def visible(self) -> list["Entries"]:
        """The entries that the tensor is to hold."""
        return [self.entries[name] for name in self.shown if name in self.entries]

    def settle(self) -> None:
        """Write what changed since the last time; nothing where nothing did."""
        now = [entries for entries in self.visible() if entries.chosen]
        same = len(now) == len(self._written) and all(
            entries is old[0] and entries.indices is old[1] for entries, old in zip(now, self._written, strict=True)
        )
        current = all(entries.fresh for entries in now)
        if same and current:
            return
        if not same:
            self._restore()
        # A write that follows an optimizer step counts as a change, so that a backward pass through the forward pass
        # of before raises. The same bits put back are none: a teacher may run between a student's passes.
        self._write(now, quiet=current)

    def restore(self) -> None:
        """The base tensor, bit for bit, until the next `settle`."""
        self._restore()

    @contextmanager
    def apart(self) -> Iterator[Tensor]:
        """The base tensor, without any adapter, inside."""
        self._restore()
        try:
            yield self.tensor.detach()
        finally:
            self.settle()

    def pretrained(self) -> Tensor:
        """The base tensor: a copy where entries are in it."""
        if not self._written:
            return self.tensor.detach()
        base = self.tensor.detach().clone()
        for _, indices, origin in self._written:
            put(base, indices, origin, quiet=False)
        return base

    def forget(self, adapter: str) -> None:
        """Take an adapter's entries out for good."""
        self._restore()
        self.entries.pop(adapter, None)
        self.settle()

    def leave(self) -> None:
        """The tensor stays as it is now, whatever becomes of the adapters."""
        self._written, self.entries, self.shown = [], {}, []

    def reload(self, coming: bool) -> None:
        """A state dict is about to be loaded; `coming`: it holds the tensor itself, with its own entries in it."""
        self._restore()
        self.reloaded = coming

    def loaded(self) -> None:
        """The state dict has been loaded."""
        self.reloaded = False
        self.settle()

    def follow(self, digest: Callable[[Tensor], Tensor]) -> None:
        """The module was cast: its base tensor is another now, with another hash."""
        if all(entries.origin.dtype == self.tensor.dtype for entries in self.entries.values()):
            return
        self._written = []
        for entries in self.entries.values():
            entries.origin = entries.origin.to(self.tensor.dtype)
            if entries.chosen:
                put(self.tensor, entries.indices, entries.origin, quiet=False)
        base = digest(self.tensor)
        for entries in self.entries.values():
            entries.base = base
        self.settle()

    def _restore(self) -> None:
        for _, indices, origin in self._written:
            put(self.tensor, indices, origin, quiet=True)
        self._written = []

    def _write(self, now: list["Entries"], quiet: bool) -> None:
        check_plain(self.tensor)
        with torch.no_grad():
            for entries in now:
                put(self.tensor, entries.indices, entries.absolute(), quiet)
                entries.note()
            if len(now) > 1:
                put(self.tensor, *_shared(now), quiet)
        self._written = [(entries, entries.indices, entries.origin) for entries in now]


def _shared(several: list["Entries"]) -> tuple[Tensor, Tensor]:
    """Where entries of several adapters meet, and base + sum of increments there."""
    indices = torch.cat([entries.indices for entries in several])
    increments = torch.cat([entries.increments() for entries in several])  # (all,)
    origin = torch.cat([entries.origin for entries in several]).to(increments.dtype)
    union, inverse, times = torch.unique(indices, return_inverse=True, return_counts=True)
    base = increments.new_zeros(len(union)).index_copy_(0, inverse, origin)
    total = base.index_add_(0, inverse, increments)
    return union[times > 1], total[times > 1]


def check_plain(tensor: Any) -> None:
    """Raise HoldfastError for a tensor that was sharded after the entries were put in."""
    if not isinstance(tensor, nn.Parameter) or hasattr(tensor, "placements"):
        raise sharded("SIFT's entries", FSDP)


def take(tensor: Tensor, indices: Tensor) -> Tensor:
    """Entries of a tensor by flat indices, in its own order of rows, however it lies in memory: (k,)."""
    tensor = tensor.to_dense() if tensor.is_sparse else tensor
    return tensor.flatten().index_select(0, indices)  # two to four times as fast as tensor[indices] on a CPU


def put(tensor: Tensor, indices: Tensor, values: Tensor, quiet: bool) -> None:
    """w[I] = cast(values), in place; `quiet` passes by the version counter that autograd checks."""
    target = tensor.data if quiet else tensor.detach()
    indices, values = indices.to(target.device), values.detach().to(target.device, target.dtype)
    if target.is_contiguous():
        target.view(-1).index_copy_(0, indices.long(), values)
    else:
        target[torch.unravel_index(indices.long(), target.shape)] = values
