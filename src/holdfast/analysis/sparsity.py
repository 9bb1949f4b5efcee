"""Gradient quasi-sparsity (SIFT, arXiv 2312.11875): do few entries of a gradient carry nearly all of its norm?"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any, Literal

from torch import Tensor, nn

from holdfast.analysis.concentration import SHARE, Concentration, Interval
from holdfast.analysis.gradients import MEMORY, each_gradient, tensors_of
from holdfast.errors import HoldfastError
from holdfast.likelihood import ForwardLoss
from holdfast.targets import canonical, output_layer

Kind = Literal["matrix", "vector", "embedding"]
BODY: tuple[Kind, ...] = ("matrix", "vector")  # all but embeddings


@dataclass
class Sparsity:
    """Name of a tensor -> its gradient's concentration, over `examples` examples."""

    tensors: dict[str, Concentration]
    kinds: dict[str, Kind]
    examples: int
    items: int
    unreached: list[str] = field(default_factory=list)  # tensors without a gradient

    def of(self, *kinds: Kind) -> dict[str, Concentration]:
        """The tensors of some kinds."""
        return {name: one for name, one in self.tensors.items() if self.kinds[name] in kinds}

    def together(self, *kinds: Kind) -> Concentration | None:
        """All tensors of some kinds as one: their largest entries are sought among all."""
        found = list(self.of(*kinds).values())
        return reduce(add, found) if found else None

    @property
    def body(self) -> Concentration:
        """All tensors but embeddings as one; where there is nothing else, the embeddings.

        Raises:
            HoldfastError: the loss reaches no tensor.
        """
        found = self.together(*BODY) or self.together("embedding")
        if found is None:
            raise HoldfastError("the loss reaches no parameter, so there is no gradient to look at")
        return found

    def by_tensor(self, share: float = SHARE, *kinds: Kind) -> Interval:
        """The share of the L2 norm in the largest `share` of every tensor's entries: SIFT's own selection."""
        found = list(self.of(*kinds).values())
        total = sum(one.total for one in found)
        parts = [(one.total, one.energy(share)) for one in found]
        low, high = (sum(t * getattr(e, side) for t, e in parts) for side in ("low", "high"))
        return Interval(math.sqrt(low / total), math.sqrt(high / total)) if total else Interval(math.nan, math.nan)


def sparsity(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    forward_loss: ForwardLoss | None = None,
    tensors: Iterable[str] | None = None,
    memory: int = MEMORY,
) -> Sparsity:
    """Measure how concentrated the gradient of the loss over all batches is, tensor by tensor.

    Averaging over more examples changes the answer, so their number is a part of it. Memory: one tensor's gradient
    at a time for one batch, `memory` bytes for several; 120 kB of histogram for each tensor.

    Args:
        model: a transformers model, or any module with a `forward_loss`; it is as before afterwards.
        batches: one of them is the least memory; their examples count together.
        forward_loss: as in `Anchor.estimate`.
        tensors: canonical names of parameters; None: all.
        memory: bytes of gradients that are summed at a time.

    Raises:
        HoldfastError: no scored item, or gradients that are not finite.
    """
    every = tensors_of(model)
    chosen = every if tensors is None else {name: every[name] for name in tensors}
    found: dict[str, Concentration] = {}

    def take(name: str, gradient: Tensor) -> None:
        found[name] = Concentration.of(gradient)

    items = each_gradient(model, batches, take, tensors=chosen, forward_loss=forward_loss, memory=memory)
    known = kinds_of(model)
    ordered = {name: found[name] for name in chosen if name in found}
    examples = sum(_examples(batch) for batch in batches)
    missing = [name for name in chosen if name not in found]
    return Sparsity(ordered, {name: known[name] for name in ordered}, examples, items, missing)


def kinds_of(model: nn.Module) -> dict[str, Kind]:
    """Canonical name of every parameter -> what it is.

    Embeddings are apart, with the output layer: most of their rows belong to words that no example holds, so their
    gradients are sparse by rows, whatever the model.
    """
    apart = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    head = output_layer(model)
    apart |= set() if head is None else {id(p) for p in head.parameters()}
    return {
        canonical(name): "embedding" if id(p) in apart else "matrix" if p.dim() > 1 else "vector"
        for name, p in model.named_parameters()
    }


def _examples(batch: Any) -> int:
    """The first dimension of the batch's first tensor."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() else 1
    parts = (
        list(batch.values()) if hasattr(batch, "values") else list(batch) if isinstance(batch, (tuple, list)) else []
    )
    return next((count for part in parts if (count := _examples(part))), 0)
