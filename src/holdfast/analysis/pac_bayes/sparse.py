"""Noise on the chosen entries of a sparse adapter alone, and what their choice costs."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from holdfast.analysis.pac_bayes.divergence import support
from holdfast.targets import canonical


@dataclass(frozen=True)
class SparseSpace:
    """The entries' values, by canonical name, live; where they stood in the base model; and d and k of each tensor."""

    parameters: dict[str, nn.Parameter]
    start: dict[str, Tensor]
    sizes: list[tuple[int, int]]

    @property
    def support(self) -> float:
        """Nats that the choice of the entries costs, unless it was made without the documents of the bound."""
        return support(self.sizes)


def sparse_space(model: Any) -> SparseSpace | None:
    """The space of a sparse adapter's entries; None where the model has no such adapter."""
    if not any(hasattr(module, "sparse_increments") for module in model.modules()):
        return None
    from holdfast.sift.finding import entries_of

    names = {id(p): canonical(name) for name, p in model.named_parameters()}
    found = [(one, names[id(one.entries.values)]) for one in entries_of(model).values()]
    return SparseSpace(
        {name: one.entries.values for one, name in found},
        # Increments begin at 0, absolute values at the base tensor's own entries.
        {name: (one.entries.values - one.entries.increments()).detach().clone() for one, name in found},
        [(one.tensor.numel(), len(one.entries.values)) for one, _ in found],
    )
