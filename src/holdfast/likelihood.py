"""What a batch says about the model: scored items, their likelihood, and labels drawn from the model itself.

A *scored item* is one label that is not -100: a token for language models, an example for classifiers and regression,
an utterance for CTC. The loss is the sum over items of -log p(label); every figure in Holdfast is a mean over items,
in nats. The likelihoods themselves are the room `holdfast.likelihoods`.
"""

from collections.abc import Iterator
from functools import partial
from typing import Literal

from torch import Tensor

from holdfast.errors import HoldfastError
from holdfast.likelihoods.batches import bare, inputs_of, is_causal, scored_mask
from holdfast.likelihoods.likelihood import IGNORED
from holdfast.likelihoods.reader import ForwardLoss, Items, Scored
from holdfast.likelihoods.sampler import LabelSampler

__all__ = [
    "FISHERS",
    "IGNORED",
    "Fisher",
    "ForwardLoss",
    "Items",
    "LabelSampler",
    "Scored",
    "bare",
    "inputs_of",
    "is_causal",
    "passes",
    "scored_mask",
    "summed_loss",
]

COLUMNS = 256  # the most that fisher="exact" goes through: each costs a backward pass
Fisher = Literal["sampled", "data", "exact"]
FISHERS: tuple[Fisher, ...] = ("sampled", "data", "exact")


def passes(scored: Scored, fisher: Fisher, sampler: LabelSampler, draws: int = 1) -> Iterator[None]:
    """Backpropagate one batch as often as its Fisher needs, and stop after each time.

    Sums over the passes of squares of what arrives are the Fisher of the batch. Without scored items there is no
    pass.

    - "data": once, with the data's own labels: the empirical Fisher.
    - "sampled": `draws` times, with labels drawn from the model; gradients are divided by sqrt(draws). Unbiased.
    - "exact": once for each class c, with sqrt(p_c) (p - onehot(c)), or for each number of a regression head. Where a
      sequence has several items, each item and class has a random sign, so that products between items vanish in
      expectation; with one item it is exact.

    Raises:
        HoldfastError: labels can't be drawn because only a loss is known, "data" without labels, or "exact" for a
            label sequence (CTC) or more than 256 classes.
    """
    likelihood = scored.likelihood
    if scored.items == 0:
        return
    uniforms = partial(_uniforms, sampler, scored.keys)
    if fisher == "data":
        gradients, count = iter([likelihood.data_gradient()]), 1
    elif fisher == "sampled":
        gradients, count = likelihood.drawn_gradients(uniforms, draws), draws
    else:
        gradients, count = likelihood.exact_gradients(uniforms), likelihood.columns or 1
        _check_columns(count)
    for number, gradient in enumerate(gradients, start=1):
        if likelihood.outputs.requires_grad:
            likelihood.outputs.backward(gradient, retain_graph=number < count)
        yield


def summed_loss(scored: Scored) -> Tensor:
    """The loss of the data's labels summed over the batch's items, in nats."""
    return scored.likelihood.loss()


def _uniforms(sampler: LabelSampler, keys: list[int] | None, sequence: Tensor, draws: int) -> Tensor:
    return sampler.uniforms(sequence, keys, draws)


def _check_columns(columns: int) -> None:
    if columns > COLUMNS:
        raise HoldfastError(
            f"fisher='exact' takes a backward pass per class, and there are {columns}",
            wanted=f"at most {COLUMNS} classes",
            remedy="ask for fisher='sampled' with more draws (draws=8, say)",
        )
