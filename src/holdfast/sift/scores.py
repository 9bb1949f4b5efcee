"""What makes an entry of a weight worth training: the named scores, each a function of gradient and weight."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.errors import HoldfastError, look_up

ScoreFunction = Callable[[Tensor, Tensor], Tensor]  # (gradient, weight) -> scores, all of the weight's shape


@dataclass(frozen=True)
class Score:
    """One way of scoring the entries of a tensor; the highest are trained.

    Attributes:
        summary: one line with the equation; g is the gradient of the mean loss, w the weight.
        of: (mean, weight, name, seed) -> scores of the weight's shape; `mean` is None where no gradient is needed.
        gradient: whether batches are needed at all.
        squared: how batches are joined: the mean over them of g^2 instead of the gradient of the mean over all their
            items. Only the latter is the same however the items are cut into batches; the former has the size of a
            batch in it, and is the empirical Fisher information with one item to a batch.
        fixed: whether neither training nor other batches change it.
    """

    summary: str
    of: Callable[[Tensor | None, Tensor, str, int], Tensor]
    gradient: bool = True
    squared: bool = False
    fixed: bool = False


def _given(mean: Tensor | None) -> Tensor:
    assert mean is not None  # scores that are marked so are always given gradients
    return mean


def _random(weight: Tensor, name: str, seed: int) -> Tensor:
    """Uniform numbers that the tensor's name and the seed alone decide: the same on every machine and in any order."""
    drawn = hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8]
    generator = torch.Generator().manual_seed(int.from_bytes(drawn, "big") >> 1)
    return torch.rand(weight.shape, generator=generator).to(weight.device)


SCORES: dict[str, Score] = {
    "gradient": Score("|g|, the largest (SIFT, arXiv 2312.11875)", lambda g, w, name, seed: _given(g).abs()),
    "fisher": Score("mean of g^2 (FISH mask, arXiv 2111.09839)", lambda g, w, name, seed: _given(g), squared=True),
    "taylor": Score("|g w| (SNIP, arXiv 1810.02340)", lambda g, w, name, seed: (_given(g) * w).abs()),
    "magnitude": Score("|w|, the largest", lambda g, w, name, seed: w.abs(), gradient=False),
    "magnitude-low": Score("|w|, the smallest", lambda g, w, name, seed: -w.abs(), gradient=False),
    "random": Score("uniform", lambda g, w, name, seed: _random(w, name, seed), gradient=False, fixed=True),
}


def score_of(asked: str | ScoreFunction) -> Score:
    """The score of a name; or a user's own function of the mean gradient and the weight, both of the weight's shape.

    Raises:
        HoldfastError: no score has that name; the message lists them.
    """
    if isinstance(asked, str):
        return look_up("score", asked, SCORES, "or pass a function of (gradient, weight)")
    return Score("a function of the user's", lambda g, w, name, seed: asked(_given(g), w))


def scores(score: Score, mean: Tensor | None, weight: Tensor, name: str, seed: int) -> Tensor:
    """The scores of one tensor's entries, in float32 or the weight's float64, of its shape.

    Args:
        score: which.
        mean: the mean gradient, or mean square, in at least float32; None where the score needs none.
        weight: the tensor as it is now.
        name: of the tensor.
        seed: of random scores.

    Raises:
        HoldfastError: scores of another shape, or NaN among them.
    """
    found = score.of(mean, weight.detach(), name, seed)
    if not isinstance(found, Tensor) or found.shape != weight.shape:
        raise HoldfastError(
            f"the score of {name} is {tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__}",
            wanted=f"a tensor of the weight's shape, {tuple(weight.shape)}",
            remedy="return one number for each entry from the score function",
        )
    found = found.detach().to(torch.promote_types(weight.dtype, torch.float32))
    if bool(found.isnan().any()):
        raise HoldfastError(
            f"the scores of {name} hold NaN",
            causes=["the loss of a selection batch is NaN", "float16 overflows", "a score function divides by zero"],
            remedy="look at the batches, load the model in float32 or bfloat16, or choose another score",
        )
    return found
