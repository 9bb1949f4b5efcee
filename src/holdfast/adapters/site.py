"""Standing around a sub-module of a layer, so that an adapter can see its input or add to its output."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from holdfast.adapters.transparent import Transparent

Seen = Callable[[str, Tensor], None]
Added = Callable[[str, Tensor], Tensor]


class Around(Transparent):
    """A sub-module with its callers and its output's form kept; module hooks would not survive copying and saving.

    Args:
        base_layer: the sub-module.
        name: its name within the layer.
        seen: is told the first tensor of the input.
        added: gives the output's first tensor, with what an adapter adds to it.
    """

    def __init__(self, base_layer: nn.Module, name: str, seen: Seen, added: Added) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.name, self.seen, self.added = name, seen, added

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the sub-module does, and what adapters add."""
        self.seen(self.name, first_tensor(args, kwargs))
        return with_first(self.base_layer(*args, **kwargs), lambda x: self.added(self.name, x))


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What a module is given first: hidden states."""
    if args:
        return args[0]
    return kwargs["hidden_states"] if "hidden_states" in kwargs else next(iter(kwargs.values()))


def with_first(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A module's output, a tensor or a tuple that starts with one, with that tensor changed."""
    if isinstance(output, tuple):
        return (change(output[0]), *output[1:])
    return change(output)
