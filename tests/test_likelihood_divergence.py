"""Divergences: KL by enumeration or numerical integration, zero where nothing moved, and stored answers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from laws import EXACT, drawn
from likelihood_cases import ROWWISE, SHAPES, SIGMA, B, bernoulli, categorical, ctc, gaussian, laplace, made, uniforms
from torch import Tensor
from torch.testing import assert_close

from holdfast.errors import HoldfastError
from holdfast.likelihoods.features import Features
from holdfast.likelihoods.likelihood import Likelihood
from holdfast.likelihoods.unknown import Unknown

INTEGRATION = 1e-6  # of a sum over a grid of 200 001 points
Make = Callable[[Tensor], Likelihood]
each = pytest.mark.parametrize("make", list(SHAPES), ids=lambda make: make.__name__)


def integrated(density: Callable[[Tensor, Tensor], Tensor], teacher: Tensor, student: Tensor) -> Tensor:
    """KL of two densities of one number, on a grid."""
    y = torch.linspace(-60, 60, 200_001, dtype=torch.float64)
    p, q = density(y, teacher), density(y, student)
    # Far out both vanish, and with them their product with the difference of logarithms.
    return torch.trapezoid(torch.where(p > 1e-300, p * (p.clamp_min(1e-300).log() - q.clamp_min(1e-300).log()), 0), y)


def normal(y: Tensor, centre: Tensor) -> Tensor:
    """N(centre, SIGMA^2)."""
    return torch.exp(-((y - centre) ** 2) / (2 * SIGMA**2)) / (SIGMA * (2 * torch.pi) ** 0.5)


def double_exponential(y: Tensor, centre: Tensor) -> Tensor:
    """Laplace(centre, B)."""
    return torch.exp(-(y - centre).abs() / B) / (2 * B)


def by_hand(make: Make, teacher: Any, student: Any) -> Tensor:
    """Sum of KL over items, one number or class at a time."""
    pairs = zip(teacher.outputs.detach().flatten(0, -2), student.outputs.detach().flatten(0, -2), strict=True)
    counted = student.real.flatten() if make is ctc else student.scored
    total = torch.zeros((), dtype=torch.float64)
    for number, (one, other) in enumerate(pairs):
        if not counted[number]:
            continue
        if make in (categorical, ctc):
            p, q = one.softmax(dim=0), other.softmax(dim=0)
            total += (p * (p / q).log()).sum()
            continue
        for a, b, here in zip(one, other, student.counted[number], strict=True):
            if not here:
                continue
            if make is bernoulli:
                p, q = a.sigmoid(), b.sigmoid()
                total += p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
            else:
                total += integrated(normal if make is gaussian else double_exponential, a, b)
    return total


@each
def test_the_divergence_is_kl(make: Make) -> None:
    teacher, student = made(make, 11), made(make, 12)
    wanted = by_hand(make, teacher, student)
    exact = EXACT if make not in (gaussian, laplace) else {"rtol": INTEGRATION, "atol": 0}
    assert_close(student.divergence(teacher.answers()), wanted, **exact)


@each
def test_nothing_moved_is_no_divergence_and_stationary(make: Make) -> None:
    teacher, student = made(make), made(make)
    divergence = student.divergence(teacher.answers())
    assert_close(divergence, torch.zeros_like(divergence), rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(divergence, student.outputs)
    assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", ROWWISE, ids=lambda make: make.__name__)
def test_the_divergence_of_a_small_step_is_half_its_fisher_form(make: Make) -> None:
    outputs, step = drawn(11, *SHAPES[make]), 1e-4 * drawn(13, *SHAPES[make])
    teacher, student = make(outputs), make(outputs + step)
    moved = step.reshape(teacher.outputs.shape)
    wanted = sum(0.5 * (g * moved).sum(dim=1).square().sum() for g in teacher.exact_gradients(uniforms()))
    assert_close(student.divergence(teacher.answers()), wanted, rtol=1e-3, atol=0)


@pytest.mark.parametrize("make", [categorical, ctc], ids=["categorical", "ctc"])
def test_stored_classes_are_a_lower_bound(make: Make) -> None:
    teacher, student = made(make, 11), made(make, 12)
    whole = student.divergence(teacher.answers())
    two, one = (student.divergence(teacher.answers(top_k=k)) for k in (2, 1))
    assert_close(two, whole, rtol=1e-6, atol=0)  # the third class is what the two others leave
    assert 0 < float(one.detach()) < float(whole.detach())


@pytest.mark.parametrize("make", [bernoulli, gaussian, laplace], ids=lambda make: make.__name__)
def test_what_has_no_classes_is_stored_whole(make: Make) -> None:
    teacher, student = made(make, 11), made(make, 12)
    assert_close(student.divergence(teacher.answers(top_k=1)), student.divergence(teacher.answers()), rtol=0, atol=0)


def test_features_are_held_relative_to_the_teacher() -> None:
    hidden, moved = drawn(1, 2, 3, 4), drawn(2, 2, 3, 4).requires_grad_()
    attended = torch.tensor([[1, 1, 0], [1, 0, 0]])
    teacher, student = Features(hidden, attended), Features(moved, attended)
    assert student.items == 3
    top = bottom = 0.0
    for row, position in ((0, 0), (0, 1), (1, 0)):
        top += float((moved - hidden)[row, position].detach().square().sum())
        bottom += float(hidden[row, position].square().sum())
    found = student.divergence(teacher.answers()) / student.items
    assert_close(float(found.detach()), top / bottom, rtol=1e-12, atol=0)
    scaled = Features(10 * moved, attended).divergence(Features(10 * hidden, attended).answers()) / 3
    assert_close(scaled, found, **EXACT)
    (gradient,) = torch.autograd.grad(found, moved)
    assert_close(gradient[attended == 0], torch.zeros(3, 4, dtype=torch.float64), rtol=0, atol=0)


def test_a_bare_loss_has_no_divergence() -> None:
    for ask in (lambda one: one.answers(), lambda one: one.divergence(())):
        with pytest.raises(HoldfastError, match="needs the model's outputs"):
            ask(Unknown(torch.zeros(()), 3))
