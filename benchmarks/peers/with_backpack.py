"""BackPACK: squares of per-sequence gradients, on linear layers extended one by one."""

from typing import Any

import torch
import torch.nn.functional as F
from peers.peer import Case, Items, Prepare, Prepared, targets
from torch import Tensor, nn


def diagonal(model: nn.Module, ids: Tensor, labels: str) -> Prepared:
    """SumGradSquared summed over batches; the labels are drawn by the user's code."""
    from backpack import backpack, extend
    from backpack.extensions import SumGradSquared

    model.requires_grad_(False)
    function, layers = Items(model), targets(model)
    for layer in layers.values():
        extend(layer)
        layer.weight.requires_grad_(True)
    sums: dict[str, Tensor] = {}

    def run() -> None:
        sums.clear()
        for batch in ids.split(8):
            logits = function(batch)
            drawn = batch[:, 1:].flatten()
            if labels == "sampled":
                drawn = torch.multinomial(logits.detach().softmax(dim=1), 1).squeeze(1)
            with backpack(SumGradSquared()):
                F.cross_entropy(logits, drawn, reduction="sum").backward()
            for name, layer in layers.items():
                weight: Any = layer.weight
                sums[name] = sums.get(name, 0) + weight.sum_grad_squared
                del weight.sum_grad_squared
                weight.grad = None

    return Prepared(run, "diagonal, per sequence", lambda layer, delta: sums[layer] * delta)


CASES: dict[Case, Prepare] = {
    ("diagonal", "sampled", "sequence"): diagonal,
    ("diagonal", "data", "sequence"): diagonal,
}
