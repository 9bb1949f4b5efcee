"""Gradients of a model, tensor by tensor: none is kept, and those of all layers never exist at once."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from holdfast.batches import to_device
from holdfast.errors import HoldfastError
from holdfast.layers import device_of
from holdfast.likelihood import ForwardLoss, Items, summed_loss
from holdfast.pretrained import at_start
from holdfast.targets import canonical

Take = Callable[[str, Tensor], None]
MEMORY = 2**28  # bytes of gradients that are summed over several batches at a time


def tensors_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Canonical name -> parameter, for all that can have a gradient; a tied one by its first name."""
    return {canonical(name): p for name, p in model.named_parameters() if p.is_floating_point()}


def each_gradient(
    model: nn.Module,
    batches: Sequence[Any],
    take: Take,
    *,
    tensors: Mapping[str, nn.Parameter] | None = None,
    forward_loss: ForwardLoss | None = None,
    memory: int = MEMORY,
) -> int:
    """Hand `take` the gradient of the loss summed over all batches, one tensor at a time; the scored items.

    With one batch, each tensor's gradient is handed over and freed inside the backward pass, as soon as it is there.
    With several, tensors are summed in groups of at most `memory` bytes, the whole data once for each group. Eval
    mode; modes, gradients, gradient flags and random states are as before afterwards.

    Args:
        model: a transformers model, or any module with a `forward_loss`; adapters as they are.
        batches: what its forward takes.
        take: called with (name, gradient) once for each tensor that the loss reaches.
        tensors: of these; None: of all.
        forward_loss: as in `Anchor.estimate`.
        memory: bytes of gradients, in the tensors' own precision.

    Raises:
        HoldfastError: no batch, no scored item, or a tensor whose gradient comes in parts.
    """
    batches, chosen = list(batches), dict(tensors_of(model) if tensors is None else tensors)
    if not batches:
        raise HoldfastError("no batch to take gradients of", remedy="give at least one")
    groups = [chosen] if len(batches) == 1 else list(_groups(chosen, memory))
    items = 0
    with _without_gradients(chosen.values()):
        for group in groups:
            items = _one_group(model, batches, group, take, forward_loss)
    if not items:
        raise HoldfastError("no scored item in the batches, so there is no gradient", remedy="give labelled data")
    return items


def _one_group(
    model: nn.Module,
    batches: Sequence[Any],
    group: Mapping[str, nn.Parameter],
    take: Take,
    forward_loss: ForwardLoss | None,
) -> int:
    reader, device, items = Items(model, forward_loss), device_of(model), 0
    with at_start(model, group.values()):
        for number, batch in enumerate(batches, start=1):
            scored = reader.run(to_device(batch, device))
            items += scored.items
            last = number == len(batches)
            with _handing_over(group if last else {}, take):
                if scored.items:
                    summed_loss(scored).backward()
            if last:
                for name, parameter in group.items():  # an earlier batch reached it, the last one did not
                    if parameter.grad is not None:
                        take(name, parameter.grad)
                        parameter.grad = None
    return items


@contextmanager
def _handing_over(group: Mapping[str, nn.Parameter], take: Take) -> Iterator[None]:
    """While a backward pass runs, each tensor's gradient goes to `take` as it arrives, and is freed."""
    taken: set[str] = set()

    def hook(name: str) -> Callable[[Tensor], None]:
        def arrived(parameter: Tensor) -> None:
            if name in taken:
                raise HoldfastError(
                    f"the gradient of {name} comes in several parts, so none of them is the gradient",
                    causes=["re-entrant gradient checkpointing"],
                    remedy="switch checkpointing off, or use_reentrant=False",
                )
            taken.add(name)
            gradient, parameter.grad = parameter.grad, None
            if gradient is not None:
                take(name, gradient)

        return arrived

    handles = [p.register_post_accumulate_grad_hook(hook(name)) for name, p in group.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _groups(tensors: Mapping[str, nn.Parameter], memory: int) -> Iterator[dict[str, nn.Parameter]]:
    group: dict[str, nn.Parameter] = {}
    held = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if group and held + size > memory:
            yield group
            group, held = {}, 0
        group[name], held = tensor, held + size
    if group:
        yield group


@contextmanager
def _without_gradients(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Gradients that the user holds are put aside, and put back."""
    held = [(p, p.grad) for p in parameters]
    for parameter, _ in held:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in held:
            parameter.grad = gradient
