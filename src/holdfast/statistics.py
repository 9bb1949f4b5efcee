"""The only hooks in the house: rows of inputs and of output gradients, handed to each layer's statistics.

Only outputs and inputs of layers are hooked, never weights: no weight gradient is formed, so frozen, quantised and
wrapped weights look the same, and the first targeted layers make the graph's roots themselves.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from holdfast.layers import own_precision, require_kind, watched
from holdfast.rows.choice import RowChoice
from holdfast.rows.origin import Origin, RowSink
from holdfast.rows.sharing import InputsDivergedError, Shared, Watched, groups_of, put_together

__all__ = ["GradientsHiddenError", "InputsDivergedError", "Recorder", "sharing_in"]


class GradientsHiddenError(RuntimeError):
    """A layer ran without gradients, and none came back to it."""


class Recorder:
    """Collect statistics of layers over forward and backward passes; a context manager.

    Call `begin_batch` before each forward pass, `end_pass` after each backward pass over the batch and `end_batch`
    after the last. Rows whose gradient is exactly zero add nothing to sums over gradients; the mask of positions
    matters for sums over inputs alone, and for sinks that are `grouped`.

    A module called several times in one pass contributes every call. Under gradient checkpointing each call counts
    once: inputs in the first forward, never in the recomputation; gradients where they flow. Reentrant checkpointing
    lets gradients in only where its inputs require one: `stems` sees to that.

    Args:
        layers: name -> module.
        sinks: for each name, its statistics; those that read "inputs" are shared between layers that are given the
            same tensor, when `share` is true.
        stems: other modules whose outputs shall require a gradient; more work, so only where it is needed.
        groups: which layers share, where it is known already, as the property gives it.
        fraction: the share of positions used, drawn at random for each batch; sums are scaled to stay unbiased.
    """

    def __init__(
        self,
        layers: dict[str, nn.Module],
        sinks: dict[str, dict[str, RowSink]],
        *,
        stems: Iterable[nn.Module] = (),
        share: bool = True,
        groups: Mapping[str, str] | None = None,
        fraction: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.layers = [Watched(n, m, require_kind(n, m), sinks[n]) for n, m in layers.items()]
        if groups is not None:
            put_together(self.layers, groups)
        self.stems, self.share = list(stems), share
        self.choice = RowChoice(fraction, seed)
        self._batch = 0  # how many were complete
        self._pass = 0  # backward passes over this batch so far
        self._latest: dict[int, Shared] = {}  # id of a tensor -> who counted it last
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    @property
    def groups(self) -> dict[str, str]:
        """Layer -> the first of the layers that it shares its sums over inputs with, for those that were called."""
        return groups_of(self.layers)

    def __enter__(self) -> Self:
        for layer in self.layers:
            hook: Callable = self._make_hook(layer)
            self._handles.append(layer.module.register_forward_hook(hook, with_kwargs=True))
        self._handles += [stem.register_forward_hook(_make_root) for stem in self.stems]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._latest.clear()

    def _make_hook(self, layer: Watched) -> Callable:
        pairs, gradients = layer.reading("pairs"), layer.reading("gradients")

        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
            inputs = layer.given(args, kwargs)
            # A graph task is running: this is checkpointing's recomputation, and the inputs were counted before.
            recomputing = torch._C._current_graph_task_id() != -1
            layer.calls += not recomputing
            if not recomputing and layer.reading("inputs"):
                with own_precision(inputs.device):
                    self._add_inputs(layer, inputs)
            if not (pairs or gradients):
                return None
            if not torch.is_grad_enabled():
                layer.hidden = True
                return None
            root = _make_root(module, args, output)
            output = output if root is None else root
            kept_inputs, shape = inputs.detach() if pairs else None, output.shape

            def on_gradient(gradient: Tensor) -> None:
                layer.hidden = False
                with own_precision(gradient.device):
                    self._add_gradients(layer, kept_inputs, gradient.detach().reshape(shape))
                    layer.returned += 1
                    if layer.returned == layer.calls:
                        layer.flush()

            watched(output).register_hook(on_gradient)
            return root

        return hook

    def _add_inputs(self, layer: Watched, inputs: Tensor) -> None:
        shared = layer.shared or self._join(layer, inputs)
        done = shared.progress[layer.name]
        own = [sink for sink in layer.reading("inputs") if not sink.shared]
        first = done == shared.calls  # of its group to bring this tensor
        waiting = own + (list(shared.sinks.values()) if first else [])
        if waiting:
            rows = layer.kind.input_rows(layer.module, inputs.detach())
            chosen = self.choice.rows(len(rows), inputs)
            origin = self._origin(layer, waiting, len(rows), inputs)
            self.choice.warn_of_padding(len(rows), inputs, layer.name)
            for sink in waiting:
                sink.add(rows if chosen is None else rows.index_select(0, chosen), origin=origin)
        if first:
            shared.count(inputs)
            if self.share:
                self._latest[id(inputs)] = shared
        elif done != shared.calls - 1 or not shared.counted(inputs):
            raise InputsDivergedError(f"layer {layer.name!r} was given another input than its neighbours")
        shared.progress[layer.name] += 1

    def _join(self, layer: Watched, inputs: Tensor) -> Shared:
        """At a layer's first call: the group whose tensor it was given, or a group of its own."""
        group = self._latest.get(id(inputs)) if self.share else None
        if group is not None and not (group.counted(inputs) and group.calls == 1 and self._alike(layer, group)):
            group = None
        return layer.join(group)

    def _alike(self, layer: Watched, group: Shared) -> bool:
        """Whether the group's statistics of the same tensor would be this layer's: same rows, same sums."""
        ours = {n: type(s) for n, s in layer.common().items()}
        same_sinks = ours == {n: type(s) for n, s in group.sinks.items()}
        others = [other for other in self.layers if other.shared is group]
        return same_sinks and all(o.kind.same_rows(o.module, layer.kind, layer.module) for o in others)

    def _add_gradients(self, layer: Watched, inputs: Tensor | None, gradient: Tensor) -> None:
        rows = layer.kind.gradient_rows(layer.module, gradient)
        count, sinks = len(rows), layer.reading("gradients") + layer.reading("pairs")
        origin = self._origin(layer, sinks, count, gradient)
        chosen = self.choice.rows(count, gradient) if self.choice.fraction < 1 or origin is not None else None
        if chosen is not None:
            rows = rows.index_select(0, chosen)
        if self.choice.fraction < 1:
            rows = rows * self.choice.scale(count, gradient)
        x = None if inputs is None else layer.kind.input_rows(layer.module, inputs)
        if x is not None and chosen is not None:
            x = x.index_select(0, chosen)
        for sink in sinks:
            if sink.reads == "gradients":
                sink.add(rows, origin=origin)
            else:
                assert x is not None
                sink.add(x, rows, origin=origin)

    def _origin(self, layer: Watched, sinks: list[RowSink], count: int, like: Tensor) -> Origin | None:
        """Where a layer's rows come from, if anybody asks."""
        asked = any(sink.grouped for sink in sinks)
        return self.choice.origin(count, like, self._pass, layer.name) if asked else None

    def begin_batch(self, positions: Tensor | None, keys: list[int] | None = None, number: int | None = None) -> None:
        """A batch follows: its mask (batch, length) of positions that count (None: all do), its sequences' keys.

        `number` is its place in the data, where this recorder does not see all of it.
        """
        self.choice.begin(self._batch if number is None else number, positions, keys)

    def end_pass(self) -> None:
        """A backward pass over the batch is complete; another may follow."""
        for layer in self.layers:
            layer.flush()
            layer.returned = 0
        self._pass += 1

    def end_batch(self, *, backpropagated: bool = True) -> None:
        """Forget the batch's tensors and draws.

        Raises:
            InputsDivergedError: shared inputs fell apart.
            GradientsHiddenError: the batch was backpropagated, and a layer that ran without gradients saw none.
        """
        self._pass = 0
        for layer in self.layers:
            hidden, layer.hidden = layer.hidden, False
            layer.calls = 0
            if hidden and backpropagated:
                raise GradientsHiddenError(f"layer {layer.name!r} runs without gradients, and none come back to it")
            shared = layer.shared
            if shared is not None and shared.progress[layer.name] != shared.calls:
                raise InputsDivergedError(f"layer {layer.name!r} missed an input that the layers it shared with saw")
        self._batch += 1
        self._latest.clear()
        self.choice.clear()


def _make_root(module: nn.Module, args: Any, output: Any) -> Tensor | None:
    """The output as a root of the graph, where nothing upstream needs a gradient; else None."""
    if not torch.is_grad_enabled() or not isinstance(output, Tensor):
        return None
    if output.requires_grad or not output.is_floating_point():
        return None
    return output.detach().requires_grad_(True).clone()  # a clone, since in-place operations may follow


class _Unread:
    """Takes inputs and drops them: who shares it is all that is asked."""

    reads, shared, grouped = "inputs", True, False

    def add(self, *rows: Tensor, origin: Origin | None = None) -> None: ...

    def flush(self) -> None: ...


def sharing_in(layers: dict[str, nn.Module], run: Callable[[], object]) -> dict[str, str]:
    """Layer -> the first of the layers that are given the same inputs, itself where alone, as a forward pass shows it.

    Args:
        layers: name -> module.
        run: the forward pass over some batch.
    """
    sinks: dict[str, dict[str, RowSink]] = {name: {"inputs": _Unread()} for name in layers}
    recorder = Recorder(layers, sinks)
    alone = {name: name for name in layers}
    try:
        with recorder, torch.no_grad():
            recorder.begin_batch(None)
            run()
            recorder.end_batch(backpropagated=False)
    except InputsDivergedError:  # sums are kept apart then
        return alone
    return alone | recorder.groups
