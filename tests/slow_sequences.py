"""The slow twins of sums per sequence: one sequence at a time, its rows summed before anything is squared."""

from dataclasses import replace
from typing import Any

import slow
import torch
from networks import Network
from torch import Tensor, nn

from holdfast.likelihood import LabelSampler


def drawn_labels(network: Network, model: nn.Module, seed: int, draws: int) -> list[list[Tensor]]:
    """The labels of each draw and sequence; the draws alone are the library's own. Networks of transformers only."""
    sampler: list[list[Tensor]] = [[] for _ in range(draws)]
    for row in network.rows:
        with torch.no_grad():
            logits, data = slow.scored(network, model, row)
        key = LabelSampler.key(row["input_ids"])
        uniforms = LabelSampler(seed).uniforms(torch.zeros(len(data), dtype=torch.long), [key], draws)
        for labels, uniform in zip(sampler, uniforms, strict=True):
            labels.append(LabelSampler.draw(logits.softmax(dim=1), uniform))
    return sampler


def rows_of_sequences(
    network: Network, model: nn.Module, layers: dict[str, Any], labels: list[Tensor] | None = None
) -> tuple[dict[str, list[slow.Rows]], int]:
    """Layer name -> the rows of each sequence, and the number of scored items."""
    found: dict[str, list[slow.Rows]] = {name: [] for name in layers}
    items = 0
    for number, row in enumerate(network.rows):
        alone = replace(network, rows=[row])
        rows, count = slow.row_gradients(alone, model, layers, None if labels is None else [labels[number]])
        items += count
        for name in layers:
            found[name].append(rows[name])
    return found, items


def whole(rows: slow.Rows) -> Tensor:
    """A sequence's own weight gradient: the sum of its rows'."""
    return sum((own for _, own in rows), torch.zeros(()))


def reduced(rows: slow.Rows) -> tuple[Tensor, Tensor]:
    """A sequence as one row: its mean input x and its summed gradient g, as (x, g x^T)."""
    mean = torch.stack([x for x, _ in rows]).mean(dim=0)
    total = torch.zeros(rows[0][1].shape[0], dtype=mean.dtype)
    for x, own in rows:  # g is read off g x^T where x is largest
        largest = x.abs().argmax()
        total += own[:, largest] / x[largest]
    return mean, torch.outer(total, mean)


def by_mean_and_sum(kind: str, sequences: list[slow.Rows], items: int, delta: Tensor) -> Tensor:
    """Curvatures that see a sequence as its mean input and its summed gradient."""
    return slow.TWINS[kind]([reduced(rows) for rows in sequences], items, delta)


def by_gradient(kind: str, sequences: list[slow.Rows], items: int, delta: Tensor) -> Tensor:
    """Curvatures that see a sequence as its own weight gradient."""
    return slow.TWINS[kind]([(rows[0][0], whole(rows)) for rows in sequences], items, delta)


def eigen(kind: str, sequences: list[slow.Rows], items: int, delta: Tensor) -> Tensor:
    """The eigenvectors of Kronecker of single rows, each sequence's own weight gradient in them."""
    return slow.eigen([row for rows in sequences for row in rows], items, delta, [whole(rows) for rows in sequences])


MEANS = {"kronecker": by_mean_and_sum, "tracekron": by_mean_and_sum}  # not of an embedding's indices
TWINS = MEANS | {"eigen": eigen, "diagonal": by_gradient, "rank-one": by_gradient, "absolute": by_gradient}
