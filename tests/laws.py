"""What every curvature obeys, as functions that raise when it does not."""

from typing import Any

import torch
from torch import Tensor
from torch.testing import assert_close

from holdfast.anchor import Anchor
from holdfast.curvature.curvature import Coupled, Curvature
from holdfast.shifts.dense import Dense

EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}  # float64, another order of summation
ROUNDING = 1e-11  # of the largest entry or eigenvalue, in float64


def drawn(seed: int, *shape: int) -> Tensor:
    """A fixed random tensor."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(curvature: Curvature) -> Tensor:
    """C as a matrix on vec(D), (out * in, out * in)."""
    out, inn = curvature.shape
    basis = torch.eye(out * inn, dtype=torch.float64).reshape(-1, out, inn)
    return torch.stack([curvature.apply(one.clone()).flatten() for one in basis])


def price(curvature: Curvature, delta: Tensor) -> Tensor:
    """<D, C D>."""
    return (delta * curvature.apply(delta.clone())).sum()


def _no_negative_eigenvalue(form: Tensor) -> None:
    eigenvalues = torch.linalg.eigvalsh((form + form.T) / 2)
    smallest = eigenvalues.min() / eigenvalues.abs().max().clamp_min(torch.finfo(form.dtype).tiny)
    assert_close(smallest.clamp(max=0), torch.zeros_like(smallest), rtol=0, atol=ROUNDING)


def is_positive_semidefinite(curvature: Curvature) -> None:
    """C is symmetric and no direction is rewarded."""
    form = dense(curvature)
    assert_close(form, form.T, **EXACT)
    _no_negative_eigenvalue(form)


def is_quadratic(curvature: Curvature) -> None:
    """<D, C D> scales with the square and obeys the parallelogram law."""
    one, other = drawn(1, *curvature.shape), drawn(2, *curvature.shape)
    assert_close(price(curvature, -3.0 * one), 9.0 * price(curvature, one), **EXACT)
    both = price(curvature, one + other) + price(curvature, one - other)
    assert_close(both, 2 * price(curvature, one) + 2 * price(curvature, other), **EXACT)


def thin_equals_dense(curvature: Curvature, rank: int = 2) -> None:
    """The products for D = up down are those of the materialised D, and leave the factors alone."""
    out, inn = curvature.shape
    up, down = drawn(3, out, rank), drawn(4, rank, inn)
    before = up.clone(), down.clone()
    priced = curvature.apply(up @ down)
    for_up, for_down = curvature.thin(up, down)
    assert_close(for_up, priced @ down.T, **EXACT)
    assert_close(for_down, up.T @ priced, **EXACT)
    assert_close((up, down), before, rtol=0, atol=0)


def sparse_equals_dense(curvature: Curvature) -> None:
    """The products at a few entries are those of the materialised D, damped or not, in any order of the entries."""
    out, inn = curvature.shape
    for one in (curvature, curvature.damped(0.1)):
        for count in (0, 1, out * inn // 9, out * inn // 3, out * inn):
            places = torch.randperm(out * inn, generator=torch.Generator().manual_seed(9))[:count]
            values, rows, columns = drawn(10, count), places // inn, places % inn
            before = values.clone()
            delta = torch.zeros(out, inn, dtype=torch.float64)
            delta[rows, columns] = values
            wanted = one.apply(delta)
            near = {"rtol": 1e-9, "atol": ROUNDING * float(wanted.abs().max())}
            assert_close(one.sparse(values, rows, columns), wanted[rows, columns], **near)
            assert_close(values, before, rtol=0, atol=0)


def damping_only_adds(curvature: Curvature) -> None:
    """Nothing at 0; never less curvature in any direction with more damping."""
    delta = drawn(5, *curvature.shape)
    assert_close(curvature.damped(0.0).apply(delta.clone()), curvature.apply(delta.clone()), rtol=0, atol=0)
    plain, some, more = (dense(curvature.damped(share)) for share in (0.0, 0.1, 0.3))
    _no_negative_eigenvalue(some - plain)
    _no_negative_eigenvalue(more - some)


def survives_storage(curvature: Curvature) -> None:
    """`from_tensors` is the inverse of `tensors`, damped or not."""
    delta = drawn(6, *curvature.shape)
    for one in (curvature, curvature.damped(0.1)):
        again = type(one).from_tensors(one.tensors())
        assert again.shape == one.shape
        assert_close(again.apply(delta.clone()), one.apply(delta.clone()), rtol=0, atol=0)


def spectrum_is_the_curvature(curvature: Curvature) -> None:
    """C in its eigenbasis, where it has one, is C: orthogonal coordinates, each at its value; damped or not."""
    delta = drawn(8, *curvature.shape)
    for one in (curvature, curvature.damped(0.1)):
        spectrum = one.spectrum()
        if spectrum is None:
            assert type(one).spectrum is Curvature.spectrum
            return
        turned = spectrum.coordinates(delta.clone())
        assert_close(turned.square().sum(), delta.square().sum(), **EXACT)
        assert_close(spectrum.back(turned), delta, rtol=1e-9, atol=1e-9)
        priced = one.apply(delta.clone())
        near = {"rtol": 1e-8, "atol": ROUNDING * float(priced.abs().max())}
        assert_close(spectrum.back(spectrum.values * turned), priced, **near)
        assert spectrum.values.shape == one.shape
        assert float(spectrum.values.min()) >= 0


LAWS = (
    is_positive_semidefinite,
    is_quadratic,
    thin_equals_dense,
    sparse_equals_dense,
    damping_only_adds,
    survives_storage,
    spectrum_is_the_curvature,
)


def same(one: Anchor, other: Anchor, **tolerance: Any) -> None:
    """Two anchors hold the same layers at the same prices, between layers too."""
    assert list(one.curvatures) == list(other.curvatures)
    for name, curvature in one.curvatures.items():
        form = dense(curvature)
        near = {"rtol": 1e-9, "atol": ROUNDING * float(form.abs().max())} | tolerance
        assert_close(dense(other.curvatures[name]), form, msg=lambda text, at=name: f"{at}: {text}", **near)
    kind: Any = type(next(iter(one.curvatures.values())))
    if issubclass(kind, Coupled):
        deltas = {name: drawn(number, *c.shape) for number, (name, c) in enumerate(one.curvatures.items())}
        shifts = {name: Dense(delta) for name, delta in deltas.items()}
        own = sum(float(price(c, deltas[name])) for name, c in one.curvatures.items())
        near = {"rtol": 1e-9, "atol": ROUNDING * own} | tolerance
        assert_close(kind.joint(other.curvatures, shifts), kind.joint(one.curvatures, shifts), **near)
