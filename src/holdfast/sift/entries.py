"""The chosen entries of one tensor: what trains, where it sits, and what was there."""

import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from holdfast.errors import HoldfastError
from holdfast.fingerprint import fingerprint
from holdfast.sift.place import Place, put, take

LARGE = 2**31  # entries from which flat indices need 64 bits
LIVE: "weakref.WeakSet[Entries]" = weakref.WeakSet()  # for those who act after an optimizer's step


class Use:
    """One use of a tensor in a forward pass, alive as long as that pass's graph."""


class Chooser(Protocol):
    """Chooses entries in a backward pass."""

    def used(self) -> Use:
        """The tensor takes part in a forward pass with gradients: something for that pass's graph to hold."""

    def __call__(self, gradient: Tensor, use: Use) -> Tensor:
        """One use's dense gradient -> the gradient of `values`, (k,)."""


class Entries(nn.Module):
    """k entries of one tensor w, trained as a vector: w[indices] = cast(absolute()).

    Bytes per entry under Adam: index 4, value 4, gradient 4, states 8, origin 2 to 4: at most 24 (28
    where indices take 64 bits).

    Attributes:
        values: (k,), float32 (float64 in a float64 tensor); the absolute weights, or increments where `relative`.
        indices: (k,), int32 (int64 from 2**31 entries on), ascending, flat into the tensor as it is stored; -1 all
            over until they are chosen.
        origin: (k,), the base tensor's own entries there, in its dtype.
        base: (32,), uint8, SHA-256 of the base tensor, without any adapter.
        observer: when set, a backward pass hands it the tensor's dense gradient, in its own dtype and shape, once for
            each use of the tensor, and gives `values` none.
        chooser: chooses the entries from the first backward pass; None where they are chosen or must be before.

    These are no buffers: nothing here but `values` is for DistributedDataParallel to broadcast.

    Args:
        place: the tensor.
        count: k, until `move` says otherwise.
        relative: values are increments, so that weight decay pulls to the base tensor.
    """

    def __init__(self, place: Place, count: int = 0, relative: bool = False) -> None:
        super().__init__()
        tensor = place.tensor
        self.place, self.relative = place, relative
        dtype = torch.promote_types(tensor.dtype, torch.float32)
        self.values = nn.Parameter(torch.zeros(count, dtype=dtype, device=tensor.device))
        self.indices = torch.full((count,), -1, dtype=index_type(tensor), device=tensor.device)
        self.origin = torch.zeros(count, dtype=tensor.dtype, device=tensor.device)
        others = list(place.entries.values())
        self.base: Tensor = others[0].base if others else digest(tensor)
        self.observer: Callable[[Tensor], None] | None = None
        self.chooser: Chooser | None = None
        self.chosen = False
        self._noted: tuple[int, ...] | None = None
        LIVE.add(self)

    def increments(self) -> Tensor:
        """(k,): how far each entry is from the base, differentiable in `values`; the tensor holds it rounded."""
        return self.values if self.relative else self.values - self.origin.to(self.values.dtype)

    def absolute(self) -> Tensor:
        """(k,): the entries themselves, differentiable in `values`; the tensor holds them rounded to its dtype."""
        return self.origin.to(self.values.dtype) + self.values if self.relative else self.values

    def at_base(self) -> Tensor:
        """(k,): the values at which the tensor is the base's, bit for bit."""
        return torch.zeros_like(self.values) if self.relative else self.origin.to(self.values.dtype)

    def gathered(self, gradient: Tensor) -> Tensor:
        """(k,): a dense gradient's part that reaches `values`."""
        return take(gradient, self.indices).to(self.values.dtype)

    def move(self, indices: Tensor) -> None:
        """Choose other entries; those that stay keep value and gradient, new ones start at the base and at zero.

        The tensor is put right at once. Another k than before is for the time before training only: optimizers and
        DistributedDataParallel know the old one.

        Args:
            indices: (k,), flat, in any order.

        Raises:
            HoldfastError: an index twice or outside the tensor.
        """
        tensor = self.place.tensor
        indices = indices.to(tensor.device, torch.int64).flatten().sort().values
        self._check(indices, tensor.numel())
        with self.place.apart() as base:
            origin = take(base, indices)
            values = torch.zeros_like(origin, dtype=self.values.dtype)
            values = values if self.relative else values + origin
            if self.chosen:
                values = carried(self.values.detach(), self.indices, indices, values)
                gradient = self.values.grad
                if gradient is not None and len(gradient) == len(indices):
                    gradient.copy_(carried(gradient, self.indices, indices, torch.zeros_like(gradient)))
            first = not self.chosen
            self._set(indices.to(index_type(tensor)), values, origin, chosen=True)
            if first:
                self.note()  # the tensor has these bits already: passes that are under way may go on

    def resize(self, count: int) -> None:
        """Another k, before anything is chosen."""
        values = torch.zeros(count, dtype=self.values.dtype, device=self.origin.device)
        self._set(self.indices.new_full((count,), -1), values, self.origin.new_zeros(count), chosen=not count)

    def write(self) -> None:
        """Put the values into the tensor, in place.

        Optimizers' steps, `load_state_dict` and whatever else is written to `values` are seen without it; what is
        written to `values.data` is not, as autograd does not see it either.
        """
        self.changed()
        self.place.settle()

    def restore(self) -> None:
        """Put the base back into the tensor, bit for bit; the next forward pass or `write` brings the values back."""
        self.place.restore()

    @property
    def fresh(self) -> bool:
        """Whether the values are those last written."""
        return self._noted == self._mark()

    def note(self) -> None:
        """The values are in the tensor now."""
        self._noted = self._mark()

    def changed(self) -> None:
        """The values are not those last written, whatever their version counter says."""
        self._noted = None

    def _mark(self) -> tuple[int, ...]:
        return id(self.values), self.values.data_ptr(), self.values._version

    def _set(self, indices: Tensor, values: Tensor, origin: Tensor, chosen: bool) -> None:
        """Take over; the parameter stays the same object, for an optimizer may hold it."""
        if self.values.is_meta:  # PEFT's low_cpu_mem_usage makes every parameter so that is registered under it
            self._parameters["values"] = nn.Parameter(values, self.values.requires_grad)
        elif values.shape == self.values.shape:
            with torch.no_grad():
                self.values.copy_(values)
        else:
            self.values.data, self.values.grad = values, None
        self.indices, self.origin = indices, origin
        self.chosen, self.chooser = chosen, None if chosen else self.chooser
        self._noted = None

    def _check(self, indices: Tensor, size: int) -> None:
        twice = len(indices) > 1 and bool((indices[1:] == indices[:-1]).any())
        if twice or (len(indices) and (int(indices[0]) < 0 or int(indices[-1]) >= size)):
            raise HoldfastError(
                f"entries of {self.place.name!r} are {'listed twice' if twice else 'outside the tensor'}",
                wanted=f"each flat index once, from 0 to {size - 1}",
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Entries":
        """Follow the model to a device, but not to another precision: the values are the master copy."""
        before = self.values.data
        super()._apply(fn, recurse)
        if self.values.dtype != before.dtype:
            self.values.data = before.to(self.values.device)
        self.indices, self.origin = self.indices.to(self.values.device), self.origin.to(self.values.device)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in ("indices", "origin", "base"):
            destination[prefix + name] = getattr(self, name)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Sizes and places come from the file; `origin` too where it has it, else from the tensor."""
        missing = rest[2]
        needed = [prefix + name for name in ("values", "indices", "base")]
        absent = [name for name in needed if name not in state_dict]
        if absent:
            missing.extend(absent)
            return
        values, indices, base = (state_dict[name] for name in needed)
        self._take_over(values, indices, base, state_dict.get(f"{prefix}origin"))

    def _take_over(self, values: Tensor, indices: Tensor, base: Tensor, origin: Tensor | None) -> None:
        tensor = self.place.tensor
        if self.place.reloaded:
            self.base = base.cpu()
        elif not torch.equal(base.cpu(), self.base):
            raise HoldfastError(
                f"these entries of {self.place.name!r} were trained on another base: its tensor there is not this one",
                causes=("another base model, or another revision of it", "the same one, loaded in another dtype"),
                remedy="load the base model that adapter_config.json names, in the dtype it was trained in; "
                "where that is at hand, holdfast export --to merged, or --to shira, writes a form that fits others",
            )
        indices = indices.to(tensor.device, index_type(tensor))
        chosen = not len(indices) or bool(indices[0] >= 0)
        if chosen:
            self._check(indices.long(), tensor.numel())
        values = values.to(tensor.device, self.values.dtype)
        if self.place.reloaded and origin is not None:  # the tensor came with the entries in it: put the base back
            self._set(indices, values, origin.to(tensor.device, tensor.dtype), chosen)
            if chosen:
                put(tensor, self.indices, self.origin, quiet=False)
            return
        with self.place.apart() as whole:
            self._set(indices, values, take(whole, indices.clamp_min(0)), chosen)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._noted = None  # of another object
        LIVE.add(self)


def carried(state: Tensor, before: Tensor, after: Tensor, new: Tensor) -> Tensor:
    """What belongs to the entries `before`, at the places that they have in `after`.

    Args:
        state: (k,), of any dtype.
        before, after: (k,) and (k',), ascending indices.
        new: (k',), for entries that were not there before.
    """
    if not len(before):
        return new
    before, after = before.long(), after.long()
    at = torch.searchsorted(before, after).clamp_max(len(before) - 1)
    return torch.where(before[at] == after, state[at], new)


def index_type(tensor: Tensor) -> torch.dtype:
    """The smallest type that holds the tensor's flat indices."""
    return torch.int64 if tensor.numel() >= LARGE else torch.int32


def digest(tensor: Tensor) -> Tensor:
    """(32,), uint8: SHA-256 of a tensor's exact bytes."""
    if tensor.is_meta:
        return torch.zeros(32, dtype=torch.uint8)
    return torch.frombuffer(bytearray.fromhex(fingerprint(tensor)["sha256"]), dtype=torch.uint8)
