"""The slow, obvious twin of every curvature: one sequence at a time, one row at a time, plain autograd."""

from typing import Any

import torch
import torch.nn.functional as F
from networks import IGNORED, Network, matrix
from torch import Tensor, nn
from torch.func import functional_call

from holdfast.likelihood import LabelSampler

Rows = list[tuple[Tensor, Tensor]]  # (x, M): a row's input (in,) and its own weight gradient g x^T, (out, in)


def scored(network: Network, model: nn.Module, row: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits and labels of one sequence alone, up to the last position that reaches a scored item."""
    if network.forward_loss is not None:
        logits, labels = network.forward_loss(model, network.collate([row]))
    elif network.causal:
        last = int((row["labels"] != IGNORED).nonzero().max())
        logits = model(input_ids=row["input_ids"][None, :last]).logits[0]
        labels = row["labels"][1 : last + 1]
    else:
        logits = model(input_ids=row["input_ids"][None]).logits.flatten(0, -2)
        labels = row["labels"].reshape(-1)
    keep = labels != IGNORED
    return logits[keep], labels[keep]


def drawn_labels(network: Network, model: nn.Module, seed: int) -> list[Tensor]:
    """The labels that `fisher="sampled"` draws; the draws alone are the library's own."""
    sampler, labels = LabelSampler(seed), []
    for row in network.rows:
        with torch.no_grad():
            logits, data = scored(network, model, row)
        keys = None
        if network.forward_loss is None:
            keys = [sampler.key(row["input_ids"])]
        uniform = sampler.uniform(torch.zeros(len(data), dtype=torch.long), keys)
        labels.append(sampler.draw(logits.softmax(dim=1), uniform))
    return labels


def row_gradients(
    network: Network, model: nn.Module, layers: dict[str, Any], labels: list[Tensor] | None = None
) -> tuple[dict[str, Rows], int]:
    """Layer name -> rows of all sequences, and the number of scored items."""
    found: dict[str, Rows] = {name: [] for name in layers}
    items = 0
    for number, row in enumerate(network.rows):
        calls: list[tuple[str, Tensor, Tensor]] = []
        handles = [layer.register_forward_hook(_probe(name, calls)) for name, layer in layers.items()]
        logits, data = scored(network, model, row)
        for handle in handles:
            handle.remove()
        loss = F.cross_entropy(logits, data if labels is None else labels[number], reduction="sum")
        items += len(data)
        gradients = torch.autograd.grad(loss, [probe for *_, probe in calls])
        for (name, inputs, _), gradient in zip(calls, gradients, strict=True):
            found[name] += _rows(layers[name], inputs, gradient)
    return found, items


def _probe(name: str, calls: list[tuple[str, Tensor, Tensor]]) -> Any:
    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        probe = torch.zeros_like(output, requires_grad=True)  # its gradient is the output's
        calls.append((name, args[0].detach(), probe))
        return output + probe

    return hook


def _rows(layer: nn.Module, inputs: Tensor, gradient: Tensor) -> Rows:
    """What autograd says of each output position: no unfolding, no outer product."""
    weight = layer.weight.detach().requires_grad_(True)
    output = functional_call(layer, {"weight": weight}, (inputs,))
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        output, gradient = output.movedim(1, -1), gradient.movedim(1, -1)
    rows = []
    for y, g in zip(output.flatten(0, -2), gradient.flatten(0, -2), strict=True):
        (first,) = torch.autograd.grad(y[0], weight, retain_graph=True)  # d y_0 / d W holds x in its row 0
        (own,) = torch.autograd.grad((y * g).sum(), weight, retain_graph=True)
        rows.append((matrix(layer, first)[0], matrix(layer, own)))
    return rows


def kronecker(rows: Rows, items: int, delta: Tensor) -> Tensor:
    """G D S from g g^T and x x^T, row by row; g is read off M = g x^T where x is largest."""
    inputs = sum(torch.outer(x, x) for x, _ in rows) / len(rows)
    gradients = torch.zeros(delta.shape[0], delta.shape[0], dtype=delta.dtype)
    for x, own in rows:
        largest = x.abs().argmax()
        g = own[:, largest] / x[largest]
        gradients += torch.outer(g, g)
    return gradients @ delta @ inputs / items


def diagonal(rows: Rows, items: int, delta: Tensor) -> Tensor:
    """F * D with F the mean of the rows' squared gradients."""
    return sum(own.square() for _, own in rows) / items * delta


def eigen(rows: Rows, items: int, delta: Tensor, owns: list[Tensor] | None = None) -> Tensor:
    """Each row's gradient in the eigenbases of G and S, squared one by one; or others, `owns`, in those bases."""
    inputs = sum(torch.outer(x, x) for x, _ in rows)
    gradients = torch.zeros(delta.shape[0], delta.shape[0], dtype=delta.dtype)
    for x, own in rows:
        largest = x.abs().argmax()
        g = own[:, largest] / x[largest]
        gradients += torch.outer(g, g)
    one_hot = all(int((x != 0).sum()) == 1 for x, _ in rows)  # an embedding: S is diagonal, and stays so
    turn_in = torch.eye(len(inputs), dtype=delta.dtype) if one_hot else torch.linalg.eigh(inputs / len(rows))[1]
    turn_out = torch.linalg.eigh(gradients / items)[1]
    owns = [own for _, own in rows] if owns is None else owns
    moments = sum((turn_out.T @ own @ turn_in).square() for own in owns) / items
    return turn_out @ (moments * (turn_out.T @ delta @ turn_in)) @ turn_in.T


def tracekron(rows: Rows, items: int, delta: Tensor) -> Tensor:
    """Psi D Phi / delta: M M^T = |x|^2 g g^T and M^T M = |g|^2 x x^T for a row's own gradient M."""
    psi, phi = sum(own @ own.T for _, own in rows) / items, sum(own.T @ own for _, own in rows) / items
    return psi @ delta @ phi / sum(own.square().sum() for _, own in rows) * items


def rank_one(rows: Rows, items: int, delta: Tensor) -> Tensor:
    """The outer product of the diagonal Fisher's row and column sums, over their total."""
    fisher = sum(own.square() for _, own in rows) / items
    return torch.outer(fisher.sum(dim=1), fisher.sum(dim=0)) / fisher.sum() * delta


def absolute(rows: Rows, items: int, delta: Tensor) -> Tensor:
    """F * D with F the mean of the rows' gradients without their signs."""
    return sum(own.abs() for _, own in rows) / items * delta


def identity(rows: Rows, items: int, delta: Tensor) -> Tensor:
    """D."""
    return delta


TWINS = {"kronecker": kronecker, "diagonal": diagonal, "eigen": eigen, "identity": identity}
TWINS |= {"tracekron": tracekron, "rank-one": rank_one, "absolute": absolute}
