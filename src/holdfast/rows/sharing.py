"""Layers that are given one and the same tensor share what is summed over it."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from holdfast.errors import HoldfastError
from holdfast.layers import LayerKind
from holdfast.rows.origin import RowSink


class InputsDivergedError(RuntimeError):
    """Layers that shared their input in one call did not in another."""


@dataclass
class Shared:
    """Statistics of inputs, with the layers that share them and how far each has come."""

    sinks: dict[str, RowSink]
    calls: int = 0
    last: Callable[[], Tensor | None] = lambda: None  # a weak reference: holding inputs would cost their memory
    version: int = 0
    progress: dict[str, int] = field(default_factory=dict)

    def counted(self, inputs: Tensor) -> bool:
        """Whether this very tensor, unchanged since, was the last one counted."""
        return self.last() is inputs and self.version == inputs._version

    def count(self, inputs: Tensor) -> None:
        """The tensor that follows the last one."""
        self.calls += 1
        self.last, self.version = weakref.ref(inputs), inputs._version


@dataclass
class Watched:
    """A layer with what it hands its rows to."""

    name: str
    module: Any
    kind: LayerKind
    sinks: dict[str, RowSink]
    shared: Shared | None = None
    hidden: bool = False  # ran without gradients in this batch, and none came back so far
    calls: int = 0  # in this batch's forward pass
    returned: int = 0  # calls whose gradient came back in this backward pass

    def reading(self, what: str) -> list[RowSink]:
        """The sinks that take this side of the layer."""
        return [sink for sink in self.sinks.values() if sink.reads == what]

    def common(self) -> dict[str, RowSink]:
        """The sinks of inputs that other layers may share."""
        return {name: sink for name, sink in self.sinks.items() if sink.reads == "inputs" and sink.shared}

    def flush(self) -> None:
        """Every call of this pass is in."""
        for sink in self.sinks.values():
            sink.flush()

    def join(self, group: Shared | None) -> Shared:
        """Share a group's statistics from its last call on; None: a group of its own."""
        if group is None:
            group = Shared(self.common())
            group.progress[self.name] = 0
        else:
            group.progress[self.name] = max(group.calls - 1, 0)
            self.sinks.update(group.sinks)
        self.shared = group
        return group

    def given(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        """The tensor that the layer was called with, by position or by name.

        Raises:
            HoldfastError: none.
        """
        for value in (*args[:1], *kwargs.values()):
            if isinstance(value, Tensor):
                return value
        raise HoldfastError(
            f"layer {self.name!r} was called without a tensor",
            wanted="the input as the first argument, or by its name",
            remedy="leave this layer out of the targets",
        )


def groups_of(layers: Sequence[Watched]) -> dict[str, str]:
    """Layer -> the first layer, in the model's order, of those that it shares statistics with: itself where alone.

    Of the layers that were called; a kind that sums nothing over inputs alone has no groups.
    """
    leaders: dict[int, str] = {}
    called = [layer for layer in layers if layer.shared is not None]
    return {layer.name: leaders.setdefault(id(layer.shared), layer.name) for layer in called}


def put_together(layers: Sequence[Watched], groups: Mapping[str, str]) -> None:
    """Have layers share from the start as `groups_of` found it."""
    made: dict[str, Shared] = {}
    for layer in layers:
        leader = groups.get(layer.name)
        if leader is not None:
            made[leader] = layer.join(made.get(leader))
