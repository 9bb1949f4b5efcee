"""The interface of the room: the probability that a model's outputs give to labels, for the items of one batch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from holdfast.errors import HoldfastError

IGNORED = -100
# (sites,) the sequence that each random choice belongs to, in order; draws -> (draws, sites) in [0, 1), on the CPU.
Uniforms = Callable[[Tensor, int], Tensor]


class Comparable(ABC):
    """What a model says of some items, such that a teacher's answers can be held against a student's."""

    items: int

    @abstractmethod
    def answers(self, top_k: int | None = None) -> tuple[Tensor, ...]:
        """What a teacher hands on, without a graph; those of several batches join along the first dimension.

        Args:
            top_k: of categorical answers, keep the k most probable classes and the rest as one class. Other answers
                have no classes to leave out and are whole.
        """

    @abstractmethod
    def divergence(self, answers: tuple[Tensor, ...]) -> Tensor:
        """The distance of these outputs from a teacher's answers on the same items, summed over them: a 0-d tensor.

        For a likelihood it is KL(teacher || now) in nats.
        """


class Likelihood(Comparable):
    """p(y | outputs) of the scored items of one batch.

    The Fisher information of a batch is the sum over its items of E[g g^T] with g = d -log p(y | outputs) / d outputs;
    backpropagating g, or several g whose squares add up to it, is all that a curvature needs.
    """

    outputs: Tensor  # where gradients enter: on the model's graph
    columns: int | None  # how many gradients make up the exact expectation; None where it is out of reach

    @abstractmethod
    def loss(self) -> Tensor:
        """-log p of the data's labels, summed over the items, in nats: a differentiable 0-d tensor.

        Raises:
            HoldfastError: the batch has no labels.
        """

    def right(self) -> int:
        """How many items the most probable answer is the label of.

        Raises:
            HoldfastError: the head has no such thing as a right answer, or the batch no labels.
        """
        raise HoldfastError(
            f"a {type(self).__name__} head has no accuracy",
            wanted="a head of one class per item: a language model or a classifier",
            remedy="state the budget in nats",
        )

    @abstractmethod
    def data_gradient(self) -> Tensor:
        """The gradient of `loss` with respect to `outputs`, in the outputs' shape and dtype; raises as `loss`."""

    @abstractmethod
    def drawn_gradients(self, uniforms: Uniforms, draws: int) -> Iterator[Tensor]:
        """`draws` gradients, each of labels drawn from the model itself, divided by sqrt(draws).

        Raises:
            HoldfastError: nothing says how labels are distributed.
        """

    @abstractmethod
    def exact_gradients(self, uniforms: Uniforms) -> Iterator[Tensor]:
        """`columns` gradients whose squares add up to the Fisher of each item.

        Each item and gradient has a random sign, so that products between the items of a sequence vanish in
        expectation; for a sequence of one item nothing is random in the sum.
        """


def precise(tensor: Tensor) -> Tensor:
    """In float32 or better."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def unlabelled() -> HoldfastError:
    """The error for a batch whose labels are needed and missing."""
    return HoldfastError(
        "the batch has no labels, and its loss is asked for",
        remedy="pass batches with labels, or ask for fisher='sampled', which draws them from the model",
    )
