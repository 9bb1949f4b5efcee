"""A loss of which nothing is known but its value."""

from collections.abc import Iterator

import torch
from torch import Tensor

from holdfast.errors import HoldfastError
from holdfast.likelihoods.likelihood import Likelihood, Uniforms


class Unknown(Likelihood):
    """A summed loss and its number of items, without the distribution that would make it a likelihood.

    Squares of its gradients are their second moment: where the loss is -log p of the data's labels this is the
    empirical Fisher, elsewhere it is no Fisher at all, and nothing made of it is in nats.
    """

    def __init__(self, loss: Tensor, items: int) -> None:
        self.outputs, self.items, self.columns = loss, items, None

    def loss(self) -> Tensor:
        """The loss as given."""
        return self.outputs

    def data_gradient(self) -> Tensor:
        """1."""
        return torch.ones_like(self.outputs)

    def drawn_gradients(self, uniforms: Uniforms, draws: int) -> Iterator[Tensor]:
        """Not known."""
        raise _no_distribution("fisher='sampled' needs a distribution to draw labels from")

    def exact_gradients(self, uniforms: Uniforms) -> Iterator[Tensor]:
        """Not known."""
        raise _no_distribution("fisher='exact' needs the distribution of the labels")

    def answers(self, top_k: int | None = None) -> tuple[Tensor, ...]:
        """Not known."""
        raise _no_distribution("distillation needs the model's outputs", "")

    def divergence(self, answers: tuple[Tensor, ...]) -> Tensor:
        """Not known."""
        raise _no_distribution("distillation needs the model's outputs", "")


def _no_distribution(need: str, otherwise: str = ", or ask for fisher='data'") -> HoldfastError:
    return HoldfastError(
        f"{need}, and forward_loss returned only a loss",
        remedy="return (logits, labels), (outputs, targets) or a likelihood from forward_loss" + otherwise,
    )
