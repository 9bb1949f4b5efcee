"""ASDL (asdfghjkl): Fisher makers over hooks of single modules; positions are rows of their own."""

from functools import partial
from typing import Any

import torch.nn.functional as F
from peers.peer import Case, Items, Prepare, Prepared, targets
from torch import Tensor, nn


def fisher(model: nn.Module, ids: Tensor, labels: str, *, shape: str) -> Prepared:
    """A Fisher maker, batch by batch, on the linear layers of the blocks."""
    from asdl.fisher import FisherConfig, get_fisher_maker
    from asdl.matrices import FISHER_EMP, FISHER_MC

    function, layers = Items(model), targets(model)
    chosen = {id(layer) for layer in layers.values()}
    ignored = [m for m in function.modules() if next(m.children(), None) is None and id(m) not in chosen]
    config = FisherConfig(
        fisher_type=FISHER_MC if labels == "sampled" else FISHER_EMP,
        fisher_shapes=[shape],
        loss_type="cross_entropy",
        ignore_modules=ignored,
        data_size=1,
    )

    def run() -> None:
        maker = get_fisher_maker(function, config)
        for number, batch in enumerate(ids.split(8)):
            logits = maker.setup_model_call(function, batch)
            maker.setup_loss_call(F.cross_entropy, logits, batch[:, 1:].flatten())
            maker.forward_and_backward(accumulate=number > 0)

    def apply(layer: str, delta: Tensor) -> Tensor:
        found: Any = layers[layer]
        if shape == "diag":
            return found.fisher.diag.weight * delta
        return found.fisher.kron.B @ delta @ found.fisher.kron.A

    return Prepared(run, "per token", apply)


CASES: dict[Case, Prepare] = {
    (case, labels, "token"): partial(fisher, shape=shape)
    for case, shape in (("kronecker", "kron"), ("diagonal", "diag"))
    for labels in ("sampled", "data")
}
