"""One small instance of every likelihood that has a distribution, with unscored items among its rows."""

from collections.abc import Callable
from typing import Any

import torch
from laws import drawn
from torch import Tensor

from holdfast.likelihood import LabelSampler
from holdfast.likelihoods.bernoulli import Bernoulli
from holdfast.likelihoods.categorical import Categorical
from holdfast.likelihoods.ctc import CTC
from holdfast.likelihoods.gaussian import Gaussian
from holdfast.likelihoods.laplace import Laplace
from holdfast.likelihoods.likelihood import Likelihood, Uniforms

NAN = float("nan")
SIGMA, B = 0.7, 1.3
MASK = torch.tensor([[1, 1, 0], [1, 0, 0]])  # of two spectrograms
SPECTRA = drawn(20, 2, 3, 2)


def categorical(outputs: Tensor) -> Likelihood:
    """Four rows of three classes; the second is not scored."""
    return Categorical(outputs, torch.tensor([2, -100, 0, 1]), sequence=torch.tensor([0, 0, 1, 1]))


def bernoulli(outputs: Tensor) -> Likelihood:
    """Three rows of two labels; one label is missing, and one row."""
    return Bernoulli(outputs, torch.tensor([[1.0, 0.0], [-100, -100], [-100, 1.0]]))


def gaussian(outputs: Tensor) -> Likelihood:
    """Three rows of two numbers; one number is missing, and one row."""
    return Gaussian(outputs, torch.tensor([[1.0, -0.5], [NAN, NAN], [NAN, 2.0]]), sigma=SIGMA)


def laplace(outputs: Tensor) -> Likelihood:
    """Two masked spectrograms."""
    return Laplace(outputs, SPECTRA, MASK, b=B)


def ctc(outputs: Tensor) -> Likelihood:
    """Four utterances of at most five frames: a repeat, a padded one, one that does not fit, one without labels."""
    labels = torch.tensor([[1, 1], [2, -100], [1, 1], [-100, -100]])
    return CTC(outputs, labels, torch.tensor([5, 3, 2, 5]), blank=0)


SHAPES: dict[Callable[[Tensor], Likelihood], tuple[int, ...]] = {
    categorical: (4, 3),
    bernoulli: (3, 2),
    gaussian: (3, 2),
    laplace: (2, 3, 2),
    ctc: (4, 5, 3),
}
ITEMS = {categorical: 3, bernoulli: 2, gaussian: 2, laplace: 3, ctc: 2}
ROWWISE = [make for make in SHAPES if make is not ctc]


def made(make: Callable[[Tensor], Likelihood], seed: int = 11) -> Any:
    """The case on fixed outputs that want a gradient."""
    return make(drawn(seed, *SHAPES[make]).requires_grad_())


def uniforms(seed: int = 0) -> Uniforms:
    """Numbers in order, as for items without keys."""
    sampler = LabelSampler(seed)
    return lambda sequence, draws: sampler.uniforms(sequence, None, draws)


def products(gradients: list[Tensor]) -> Tensor:
    """Sum of g g^T of all outputs together, (outputs, outputs)."""
    flat = torch.stack([gradient.flatten() for gradient in gradients])
    return flat.T @ flat
