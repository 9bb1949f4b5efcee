"""The only hooks in the house: rows of inputs and of output gradients, handed to each layer's statistics.

Only outputs and inputs of layers are hooked, never weights: no weight gradient is formed, so frozen, quantised and
wrapped weights look the same, and the first targeted layers make the graph's roots themselves.
"""

import math
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn

from holdfast.layers import LayerKind, require_kind


class RowSink:
    """What a layer's rows are handed to; `holdfast.curvature.curvature.Statistic` is one."""

    reads: str

    def add(self, *rows: Tensor) -> None:
        """Add the contribution of some rows."""
        raise NotImplementedError


class InputsDivergedError(RuntimeError):
    """Layers that shared their input in one call did not in another."""


class GradientsHiddenError(RuntimeError):
    """A layer ran without gradients, and none came back to it."""


@dataclass
class _Shared:
    """Statistics of inputs, with the layers that share them and how far each has come."""

    sinks: dict[str, RowSink]
    calls: int = 0
    last: Callable[[], Tensor | None] = lambda: None  # a weak reference: holding inputs would cost their memory
    version: int = 0
    progress: dict[str, int] = field(default_factory=dict)

    def counted(self, inputs: Tensor) -> bool:
        """Whether this very tensor, unchanged since, was the last one counted."""
        return self.last() is inputs and self.version == inputs._version


@dataclass
class _Layer:
    name: str
    module: Any
    kind: LayerKind
    sinks: dict[str, RowSink]
    shared: _Shared | None = None
    hidden: bool = False  # ran without gradients in this batch, and none came back so far

    def reading(self, what: str) -> list[RowSink]:
        return [sink for sink in self.sinks.values() if sink.reads == what]


class Recorder:
    """Collect statistics of layers over forward and backward passes; a context manager.

    Set `positions` before each forward pass to the boolean mask (batch, length) of positions that count (None:
    all do), and call `end_batch` after each backward pass. Rows whose gradient is exactly zero add nothing to
    sums over gradients; the mask matters for sums over inputs alone.

    A module called several times in one pass contributes every call. Under gradient checkpointing each call counts
    once: inputs in the first forward, never in the recomputation; gradients where they flow. Reentrant checkpointing
    lets gradients in only where its inputs require one: `stems` sees to that.

    Args:
        layers: name -> module.
        sinks: for each name, its statistics; those that read "inputs" are shared between layers that are given the
            same tensor, when `share` is true.
        stems: other modules whose outputs shall require a gradient; more work, so only where it is needed.
        fraction: the share of positions used, drawn at random for each batch; sums are scaled to stay unbiased.
    """

    def __init__(
        self,
        layers: dict[str, nn.Module],
        sinks: dict[str, dict[str, RowSink]],
        *,
        stems: Iterable[nn.Module] = (),
        share: bool = True,
        fraction: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.layers = [_Layer(n, m, require_kind(n, m), sinks[n]) for n, m in layers.items()]
        self.stems, self.share, self.fraction = list(stems), share, fraction
        self.positions: Tensor | None = None
        self._generator = torch.Generator().manual_seed(seed)
        self._drawn: dict[tuple[int, bool, bool], Tensor | None] = {}  # row numbers used in this batch
        self._latest: dict[int, _Shared] = {}  # id of a tensor -> who counted it last
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Self:
        for layer in self.layers:
            hook: Callable = self._make_hook(layer)
            self._handles.append(layer.module.register_forward_hook(hook))
        self._handles += [stem.register_forward_hook(_make_root) for stem in self.stems]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._latest.clear()

    def _make_hook(self, layer: _Layer) -> Callable:
        pairs, gradients = layer.reading("pairs"), layer.reading("gradients")

        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            inputs = args[0]
            # A graph task is running: this is checkpointing's recomputation, and the inputs were counted before.
            recomputing = torch._C._current_graph_task_id() != -1
            if not recomputing and layer.reading("inputs"):
                self._add_inputs(layer, inputs)
            if not (pairs or gradients):
                return None
            if not torch.is_grad_enabled():
                layer.hidden = True
                return None
            root = _make_root(module, args, output)
            output = output if root is None else root
            kept_inputs = inputs.detach() if pairs else None
            mask = self.positions

            def on_gradient(gradient: Tensor) -> None:
                layer.hidden = False
                self._add_gradients(layer, kept_inputs, gradient.detach(), mask)

            output.register_hook(on_gradient)
            return root

        return hook

    def _add_inputs(self, layer: _Layer, inputs: Tensor) -> None:
        shared = layer.shared or self._join(layer, inputs)
        done = shared.progress[layer.name]
        if done == shared.calls:  # the first of its group to bring this tensor
            rows = layer.kind.input_rows(layer.module, inputs.detach())
            chosen = self._chosen(rows, inputs, self.positions)
            for sink in shared.sinks.values():
                sink.add(rows if chosen is None else rows.index_select(0, chosen))
            shared.calls += 1
            shared.last, shared.version = weakref.ref(inputs), inputs._version
            if self.share:
                self._latest[id(inputs)] = shared
        elif done != shared.calls - 1 or not shared.counted(inputs):
            raise InputsDivergedError(f"layer {layer.name!r} was given another input than its neighbours")
        shared.progress[layer.name] += 1

    def _join(self, layer: _Layer, inputs: Tensor) -> _Shared:
        """At a layer's first call: the group whose tensor it was given, or a group of its own."""
        group = self._latest.get(id(inputs)) if self.share else None
        if group is None or not group.counted(inputs) or group.calls != 1 or not self._alike(layer, group):
            group = _Shared({n: s for n, s in layer.sinks.items() if s.reads == "inputs"})
            group.progress[layer.name] = 0
        else:
            group.progress[layer.name] = group.calls - 1
            layer.sinks.update(group.sinks)
        layer.shared = group
        return group

    def _alike(self, layer: _Layer, group: _Shared) -> bool:
        """Whether the group's statistics of the same tensor would be this layer's: same rows, same sums."""
        ours = {n: type(s) for n, s in layer.sinks.items() if s.reads == "inputs"}
        same_sinks = ours == {n: type(s) for n, s in group.sinks.items()}
        others = [other for other in self.layers if other.shared is group]
        return same_sinks and all(o.kind.same_rows(o.module, layer.kind, layer.module) for o in others)

    def _add_gradients(self, layer: _Layer, inputs: Tensor | None, gradient: Tensor, mask: Tensor | None) -> None:
        rows = layer.kind.gradient_rows(layer.module, gradient)
        chosen = self._chosen(rows, gradient, mask) if self.fraction < 1 else None
        if chosen is not None:
            valid = _row_mask(mask, gradient, rows.shape[0])
            count = rows.shape[0] if valid is None else int(valid.sum())
            scale = (count / max(len(chosen), 1)) ** 0.5  # of the squares: an unbiased sum
            rows = rows.index_select(0, chosen) * scale
        for sink in layer.reading("gradients"):
            sink.add(rows)
        if inputs is not None:
            x = layer.kind.input_rows(layer.module, inputs)
            for sink in layer.reading("pairs"):
                sink.add(x if chosen is None else x.index_select(0, chosen), rows)

    def _chosen(self, rows: Tensor, like: Tensor, mask: Tensor | None) -> Tensor | None:
        """The numbers of the rows to use, the same for every layer with as many; None for all of them."""
        valid = _row_mask(mask, like, rows.shape[0])
        key = (rows.shape[0], valid is not None, _by_position(mask, like, rows.shape[0]))
        if key not in self._drawn:
            self._drawn[key] = self._draw(rows.shape[0], valid)
        drawn = self._drawn[key]
        return None if drawn is None else drawn.to(rows.device)

    def _draw(self, rows: int, valid: Tensor | None) -> Tensor | None:
        pool = torch.arange(rows) if valid is None else valid.nonzero().squeeze(1)
        if self.fraction >= 1:
            return None if len(pool) == rows else pool
        order = torch.randperm(len(pool), generator=self._generator)[: math.ceil(self.fraction * len(pool))]
        return pool.cpu()[order].sort().values.to(pool.device)

    def end_batch(self, *, backpropagated: bool = True) -> None:
        """Forget the batch's tensors and draws.

        Raises:
            InputsDivergedError: shared inputs fell apart.
            GradientsHiddenError: the batch was backpropagated, and a layer that ran without gradients saw none.
        """
        for layer in self.layers:
            hidden, layer.hidden = layer.hidden, False
            if hidden and backpropagated:
                raise GradientsHiddenError(f"layer {layer.name!r} runs without gradients, and none come back to it")
            shared = layer.shared
            if shared is not None and shared.progress[layer.name] != shared.calls:
                raise InputsDivergedError(f"layer {layer.name!r} missed an input that the layers it shared with saw")
        self._latest.clear()
        self._drawn.clear()


def _by_position(mask: Tensor | None, like: Tensor, rows: int) -> bool:
    """Whether each row is one of the mask's positions."""
    return mask is not None and mask.numel() == rows and (like.shape[:2] == mask.shape or like.dim() <= 2)


def _make_root(module: nn.Module, args: Any, output: Any) -> Tensor | None:
    """The output as a root of the graph, where nothing upstream needs a gradient; else None."""
    if not torch.is_grad_enabled() or not isinstance(output, Tensor):
        return None
    if output.requires_grad or not output.is_floating_point():
        return None
    return output.detach().requires_grad_(True).clone()  # a clone, since in-place operations may follow


def _row_mask(mask: Tensor | None, like: Tensor, rows: int) -> Tensor | None:
    """The mask of positions as a mask of rows; by whole sequences where rows are not positions; else None."""
    if mask is None:
        return None
    if _by_position(mask, like, rows):
        return mask.reshape(-1)
    together = like.shape[0] == len(mask) and rows % len(mask) == 0  # (batch, ...): frames, patches, pooled features
    return mask.any(dim=1).repeat_interleave(rows // len(mask)) if together else None
