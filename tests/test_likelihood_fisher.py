"""Gradients whose squares are the Fisher: drawn, exact and of the data, against enumeration and plain autograd."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from laws import EXACT, drawn
from likelihood_cases import (
    ITEMS,
    ROWWISE,
    SHAPES,
    SIGMA,
    B,
    bernoulli,
    categorical,
    gaussian,
    laplace,
    made,
    products,
    uniforms,
)
from likelihood_cases import ctc as ctc_case
from torch import Tensor
from torch.testing import assert_close

from holdfast.errors import HoldfastError
from holdfast.likelihoods.categorical import Categorical
from holdfast.likelihoods.ctc import CTC
from holdfast.likelihoods.gaussian import Gaussian
from holdfast.likelihoods.likelihood import Likelihood

DRAWS = 20_000
BFLOAT16 = 2**-5  # outputs rounded to 8 bits, then exponentiated
STANDARD_ERRORS = 4.5  # the largest of some hundred entries
Make = Callable[[Tensor], Likelihood]

each = pytest.mark.parametrize("make", list(SHAPES), ids=lambda make: make.__name__)
each_rowwise = pytest.mark.parametrize("make", ROWWISE, ids=lambda make: make.__name__)


@each
def test_the_data_gradient_is_that_of_the_loss(make: Make) -> None:
    likelihood = made(make)
    (wanted,) = torch.autograd.grad(likelihood.loss(), likelihood.outputs)
    assert likelihood.items == ITEMS[make]
    assert_close(likelihood.data_gradient(), wanted, **EXACT)


def outcomes(make: Make, likelihood: Likelihood) -> Iterator[tuple[Tensor, Tensor]]:
    """(probability, gradient) of every way to label one item, by enumeration; for each item in turn."""
    outputs = likelihood.outputs.detach()
    for row in likelihood.scored.nonzero()[:, 0].tolist():
        if make is categorical:
            labels = [torch.tensor(label) for label in range(outputs.shape[1])]
        else:
            labels = [torch.tensor(bits) for bits in itertools.product((0.0, 1.0), repeat=outputs.shape[1])]
        for label in labels:
            logits = outputs.clone().requires_grad_()
            if make is categorical:
                each = -torch.log_softmax(logits[row], dim=0)[label]
            else:
                counted = likelihood.counted[row]
                each = -torch.where(label == 1, logits[row].sigmoid().log(), (-logits[row]).sigmoid().log())[
                    counted
                ].sum()
                if bool((label[~counted] == 1).any()):
                    continue  # a missing label is no part of the outcome
            (gradient,) = torch.autograd.grad(each, logits)
            yield torch.exp(-each.detach()), gradient


def expected(make: Make, likelihood: Likelihood) -> Tensor:
    """The Fisher of the outputs, items independent."""
    if make in (categorical, bernoulli):
        return sum(p * products([g]) for p, g in outcomes(make, likelihood))
    scale = {gaussian: SIGMA**-2, laplace: B**-2}[make]
    return torch.diag(scale * likelihood.counted.double().flatten())


@each_rowwise
def test_exact_gradients_are_the_expectation(make: Make) -> None:
    likelihood = made(make)
    found = list(likelihood.exact_gradients(uniforms()))
    assert len(found) == likelihood.columns
    wanted = expected(make, likelihood)
    together = torch.zeros_like(wanted)
    for gradient in found:  # item by item: products between items vanish only in expectation
        for row in range(len(gradient)):
            alone = torch.zeros_like(gradient)
            alone[row] = gradient[row]
            together += products([alone])
    assert_close(together, wanted, rtol=1e-9, atol=1e-12)


def mean_and_error(found: Tensor) -> tuple[Tensor, Tensor]:
    """Over the first dimension."""
    return found.mean(dim=0), found.std(dim=0) / len(found) ** 0.5


@each_rowwise
def test_drawn_gradients_have_the_expectation(make: Make) -> None:
    likelihood = made(make)
    gradients = torch.stack([g.flatten() for g in likelihood.drawn_gradients(uniforms(), DRAWS)]) * DRAWS**0.5
    wanted = expected(make, likelihood)
    mean, error = mean_and_error(gradients[:, :, None] * gradients[:, None, :])
    off = ((mean - wanted).abs() / (error + 1e-9)).max()
    assert_close(off, torch.zeros_like(off), rtol=0, atol=STANDARD_ERRORS)
    centre, error = mean_and_error(gradients)  # a score has mean zero
    off = (centre.abs() / (error + 1e-9)).max()
    assert_close(off, torch.zeros_like(off), rtol=0, atol=STANDARD_ERRORS)


@each_rowwise
def test_signs_make_products_between_items_vanish(make: Make) -> None:
    likelihood = made(make)
    wanted = expected(make, likelihood)
    found = torch.stack([products(list(likelihood.exact_gradients(uniforms(seed)))) for seed in range(1000)])
    mean, error = mean_and_error(found)
    off = ((mean - wanted).abs() / (error + 1e-9)).max()
    assert_close(off, torch.zeros_like(off), rtol=0, atol=STANDARD_ERRORS)


@each
def test_many_draws_are_scaled_to_be_one(make: Make) -> None:
    likelihood = made(make)
    one = next(iter(likelihood.drawn_gradients(uniforms(), 1)))
    several = list(likelihood.drawn_gradients(uniforms(), 4))
    assert len(several) == 4
    assert_close(several[0], one / 2, **EXACT)  # the same first draw
    assert float((several[1] - several[0]).abs().max()) > 0


@each
@pytest.mark.parametrize("fisher", ["data", "drawn", "exact"])
def test_unscored_items_get_no_gradient(make: Make, fisher: str) -> None:
    likelihood = made(make)
    unscored = ~likelihood.real if make is ctc_case else ~likelihood.scored
    assert bool(unscored.any())
    if fisher == "exact" and make is ctc_case:
        with pytest.raises(HoldfastError, match="every label sequence"):
            likelihood.exact_gradients(uniforms())
        return
    gradients = {
        "data": lambda: [likelihood.data_gradient()],
        "drawn": lambda: list(likelihood.drawn_gradients(uniforms(), 3)),
        "exact": lambda: list(likelihood.exact_gradients(uniforms())),
    }[fisher]()
    for gradient in gradients:
        assert gradient.shape == likelihood.outputs.shape
        assert_close(gradient[unscored], torch.zeros_like(gradient[unscored]), rtol=0, atol=0)
        assert float(gradient.abs().max()) > 0


def label_sequences(logits: Tensor, blank: int) -> dict[tuple[int, ...], float]:
    """The probability of every label sequence of one utterance, by going through all paths."""
    chances: dict[tuple[int, ...], float] = {}
    probabilities = logits.softmax(dim=1)
    for path in itertools.product(range(logits.shape[1]), repeat=len(logits)):
        labels = tuple(c for c, _ in itertools.groupby(path) if c != blank)
        chance = float(torch.stack([probabilities[t, c] for t, c in enumerate(path)]).prod())
        chances[labels] = chances.get(labels, 0.0) + chance
    return chances


def test_the_loss_of_ctc_sums_over_paths() -> None:
    logits = drawn(3, 1, 3, 3)
    for labels, chance in label_sequences(logits[0], blank=1).items():
        if labels:
            one = CTC(logits, torch.tensor([labels]), torch.tensor([3]), blank=1)
            assert_close(torch.exp(-one.loss()), torch.tensor(chance, dtype=torch.float64), rtol=1e-9, atol=0)


def test_drawn_label_sequences_have_the_frequencies_of_ctc() -> None:
    logits = drawn(3, 2, 4, 3)  # the fourth frame of the first utterance is padding
    likelihood = CTC(logits, None, torch.tensor([3, 4]), blank=0)
    seen: list[list[tuple[int, ...]]] = [[], []]
    likelihood._gradient = lambda labels, counts: remember(seen, labels, counts, logits)
    list(likelihood.drawn_gradients(uniforms(), DRAWS))
    for number, length in enumerate((3, 4)):
        for labels, chance in label_sequences(logits[number, :length], blank=0).items():
            frequency = seen[number].count(labels) / DRAWS
            error = (chance * (1 - chance) / DRAWS) ** 0.5
            assert_close(frequency, chance, rtol=0, atol=STANDARD_ERRORS * error)


def remember(seen: list[list[tuple[int, ...]]], labels: Tensor, counts: Tensor, like: Tensor) -> Tensor:
    """Takes the place of the gradient of drawn label sequences."""
    for number, one in enumerate(labels.split(counts.tolist())):
        seen[number].append(tuple(one.tolist()))
    return torch.zeros_like(like)


def test_drawn_gradients_of_ctc_have_the_expectation() -> None:
    logits = drawn(3, 1, 3, 3)
    likelihood = CTC(logits, None, torch.tensor([3]), blank=0)
    wanted = torch.zeros(9, 9, dtype=torch.float64)
    for labels, chance in label_sequences(logits[0], blank=0).items():
        count = torch.tensor([len(labels)])
        wanted += chance * products([likelihood._gradient(torch.tensor(labels, dtype=torch.long), count)])
    gradients = torch.stack([g.flatten() for g in likelihood.drawn_gradients(uniforms(), 4000)]) * 4000**0.5
    mean, error = mean_and_error(gradients[:, :, None] * gradients[:, None, :])
    off = ((mean - wanted).abs() / (error + 1e-9)).max()
    assert_close(off, torch.zeros_like(off), rtol=0, atol=STANDARD_ERRORS)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Gaussian(torch.zeros(2, 3), torch.zeros(2, 2)), "one target for every output"),
        (lambda: Gaussian(torch.zeros(2, 3), None, torch.ones(2, 4)), "leading dimensions"),
        (lambda: Gaussian(torch.zeros(2, 3), None, sigma=0.0), "above 0"),
        (lambda: laplace(torch.zeros(2, 2, 2)), "one target"),
        (lambda: Categorical(torch.zeros(2, 3), None).loss(), "no labels"),
        (lambda: CTC(torch.zeros(1, 3, 2), None, torch.tensor([3]), 0).loss(), "no labels"),
    ],
)
def test_bad_input_is_refused(wrong: Any, message: str) -> None:
    with pytest.raises(HoldfastError, match=message):
        wrong()


@each
def test_low_precision_outputs_get_gradients_of_their_own(make: Make) -> None:
    exact = made(make)
    near = make(exact.outputs.detach().reshape(SHAPES[make]).to(torch.bfloat16))
    assert_close(near.data_gradient().double(), exact.data_gradient(), rtol=BFLOAT16, atol=BFLOAT16)
    assert_close(near.loss().double(), exact.loss(), rtol=BFLOAT16, atol=BFLOAT16)
    assert {g.dtype for g in near.drawn_gradients(uniforms(), 2)} == {torch.bfloat16}
    assert_close(near.divergence(near.answers()).double(), torch.zeros((), dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_uniform_number_gives_finite_noise(dtype: torch.dtype) -> None:
    uniform = torch.tensor([0.0, 2.0**-149, 0.5, 1 - 2.0**-24])  # float32's smallest and largest in [0, 1)
    noise = Gaussian(torch.zeros(4, 1, dtype=dtype), None).noise_gradient(uniform)
    assert noise.isfinite().all()
    assert_close(noise[[0, 3]].double(), torch.tensor([5.42, -5.42]).double(), rtol=1e-3, atol=0)
    assert noise[0] == -noise[3]
