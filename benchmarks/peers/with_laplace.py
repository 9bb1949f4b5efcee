"""laplace-torch: `Laplace(...).fit`, over curvlinops."""

from functools import partial
from typing import Any

import torch
from peers.peer import Case, Classes, Prepare, Prepared, targets
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

KINDS = {"kron": "Kronecker, per token, and its eigenvectors", "diag": "diagonal, per sequence"}


def fitted(model: nn.Module, ids: Tensor, labels: str, *, structure: str) -> Prepared:
    """`fit`, which eigendecomposes Kronecker factors."""
    from laplace import Laplace
    from laplace.curvature.curvlinops import CurvlinopsEF, CurvlinopsGGN

    model.requires_grad_(False)
    layers = targets(model)
    for layer in layers.values():
        layer.weight.requires_grad_(True)
    loader = DataLoader(TensorDataset(ids, ids[:, 1:]), batch_size=8)
    backend: dict[str, Any] = {"backend": CurvlinopsEF}
    if labels == "sampled":
        backend = {"backend": CurvlinopsGGN, "backend_kwargs": {"stochastic": True}}
    last: list[Any] = []

    def run() -> None:
        last[:] = [Laplace(Classes(model), "classification", "all", structure, **backend)]
        last[0].fit(loader)

    def kron(layer: str, delta: Tensor) -> Tensor:
        gradients, inputs = last[0].H_facs.kfacs[list(layers).index(layer)]
        return gradients @ delta @ inputs

    def diag(layer: str, delta: Tensor) -> Tensor:
        sizes = [each.weight.numel() for each in layers.values()]
        pieces = dict(zip(layers, torch.split(last[0].H, sizes), strict=True))
        return pieces[layer].view_as(delta) * delta

    return Prepared(run, KINDS[structure], {"kron": kron, "diag": diag}[structure])


CASES: dict[Case, Prepare] = {
    ("kronecker", "sampled", "token"): partial(fitted, structure="kron"),
    ("kronecker", "data", "token"): partial(fitted, structure="kron"),
    ("diagonal", "data", "sequence"): partial(fitted, structure="diag"),
}
