"""Noise on the chosen entries of a sparse adapter alone, and what their choice costs."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from holdfast.analysis.pac_bayes.divergence import support, support_of_all
from holdfast.targets import canonical


@dataclass(frozen=True)
class SparseSpace:
    """The entries of a sparse adapter.

    Attributes:
        parameters: their values, by canonical name, live.
        start: where they stood in the base model.
        sizes: d and k of each tensor.
        allotted: whether the k of each tensor follow from sizes and density alone; else the data decided on them too.
        alone: whether nothing else trains (modules_to_save), so that all that moved is here.
    """

    parameters: dict[str, nn.Parameter]
    start: dict[str, Tensor]
    sizes: list[tuple[int, int]]
    allotted: bool
    alone: bool

    @property
    def support(self) -> float:
        """Nats that the choice of the entries costs, unless it was made without the documents of the bound."""
        return support(self.sizes) if self.allotted else support_of_all(self.sizes)


def sparse_space(model: Any) -> SparseSpace | None:
    """The space of a sparse adapter's entries; None where the model has no such adapter."""
    if not any(hasattr(module, "sparse_increments") for module in model.modules()):
        return None
    from holdfast.sift.finding import entries_of
    from holdfast.sift.selection import config_of
    from holdfast.sift.sizes import as_rows, sizes

    names = {id(p): canonical(name) for name, p in model.named_parameters()}
    found = entries_of(model)
    named = [(one, names[id(one.entries.values)]) for one in found.values()]
    config, kept = config_of(model, found), {name: len(one.entries.values) for name, one in found.items()}
    matrices = {
        name: as_rows(one.layer.get_base_layer(), one.parameter, one.tensor.detach()) for name, one in found.items()
    }
    return SparseSpace(
        parameters={name: one.entries.values for one, name in named},
        # Increments begin at 0, absolute values at the base tensor's own entries.
        start={name: (one.entries.values - one.entries.increments()).detach().clone() for one, name in named},
        sizes=[(one.tensor.numel(), kept[name]) for name, one in found.items()],
        allotted=config.scope != "global" and kept == sizes(config, matrices),
        alone=not config.modules_to_save,
    )
