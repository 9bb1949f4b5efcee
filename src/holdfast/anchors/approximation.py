"""How good a smaller structure is, measured against the one it stands for."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.anchor import Anchor
from holdfast.curvature.curvature import Curvature
from holdfast.errors import HoldfastError
from holdfast.shifts.dense import Dense
from holdfast.shifts.shift import Shift

TOGETHER = "all layers"


@dataclass(frozen=True)
class Quality:
    """One layer of an approximate anchor, or all of them, against the exact one.

    Attributes:
        layer: its name, or `TOGETHER` for q summed over layers.
        captured: side -> share of its trace that is held along directions; what is not is a diagonal. Empty where
            nothing was left out, or the trace does not tell.
        random_error: mean of |q / q_exact - 1| over random shifts u v^T, u and v normal.
        random_worst: the largest of them, with its sign: below 0 the approximation asks too little.
        shift_error: q / q_exact - 1 on the shift that was given, with its sign; None without one.
    """

    layer: str
    captured: dict[str, float]
    random_error: float
    random_worst: float
    shift_error: float | None


def quality(
    approximate: Anchor,
    exact: Anchor,
    shifts: Mapping[str, Shift | Tensor] | None = None,
    *,
    draws: int = 64,
    seed: int = 0,
) -> list[Quality]:
    """The error of q = <D, C D> that an anchor's structure makes, layer by layer and, last, for all layers together.

    Shifts of rank one are hard on an approximation: errors cancel in a random shift of full rank, whose q is all but
    the trace, which every structure keeps. Curvatures that couple layers are compared by their own blocks.

    Args:
        approximate: an anchor with smaller structures.
        exact: the one that it stands for, of the same weights and data.
        shifts: layer -> how far it moved, as a shift (`holdfast.shifts(model)`) or as a matrix (out, in).
        draws: random shifts of each layer.
        seed: of them.

    Raises:
        HoldfastError: anchors of other layers, weights or data, or shifts of layers that they don't have.
    """
    _check(approximate, exact, shifts or {})
    rows, drawn, moved = [], [], []
    for number, (name, curvature) in enumerate(approximate.curvatures.items()):
        pair = (curvature, exact.curvatures[name])
        drawn.append(_random(pair, draws, seed + number))
        given = None if shifts is None or name not in shifts else _given(pair, shifts[name])
        moved += [] if given is None else [given]
        rows.append(_row(name, curvature.captured(), drawn[-1], given))
    return [*rows, _row(TOGETHER, {}, torch.stack(drawn).sum(dim=0), torch.stack(moved).sum(dim=0) if moved else None)]


def _row(name: str, captured: dict[str, float], drawn: Tensor, given: Tensor | None) -> Quality:
    """From q and q_exact of each random shift, (2, draws), and of the given one, (2,)."""
    errors = _relative(drawn)
    worst = errors[errors.abs().argmax()]
    return Quality(
        name,
        captured,
        float(errors.abs().mean()),
        float(worst),
        None if given is None else float(_relative(given)),
    )


def _relative(forms: Tensor) -> Tensor:
    """q / q_exact - 1; 0 where both are."""
    found, wanted = forms
    return torch.where(found == wanted, 0.0, found / wanted - 1)


def _random(pair: tuple[Curvature, Curvature], draws: int, seed: int) -> Tensor:
    """q and q_exact of random shifts of rank one, (2, draws)."""
    generator = torch.Generator().manual_seed(seed)
    out, inn = pair[0].shape
    forms = []
    for _ in range(draws):
        up, down = (torch.randn(shape, generator=generator) for shape in ((out, 1), (1, inn)))
        forms.append([(up * _InPrecision(one).thin(up, down)[0]).sum() for one in pair])
    return torch.tensor(forms, dtype=torch.float64).T


def _given(pair: tuple[Curvature, Curvature], shift: Shift | Tensor) -> Tensor:
    """q and q_exact of a shift, (2,)."""
    moved = Dense(shift) if isinstance(shift, Tensor) else shift
    with torch.no_grad():
        forms = [(moved.parts[0] * moved.products(_InPrecision(one))[0]).sum() for one in pair]
    return torch.stack(forms).double().cpu()


class _InPrecision:
    """A curvature that takes shifts of any precision and device."""

    def __init__(self, curvature: Curvature) -> None:
        self.curvature = curvature
        self.like = max((t for t in curvature.tensors().values() if t.is_floating_point()), key=Tensor.numel)

    def apply(self, delta: Tensor) -> Tensor:
        """C D."""
        return self.curvature.apply(delta.to(self.like)).to(delta)

    def thin(self, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        """(C D) down^T and up^T (C D)."""
        for_up, for_down = self.curvature.thin(up.to(self.like), down.to(self.like))
        return for_up.to(up), for_down.to(down)

    def sparse(self, values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """C D at the entries of D."""
        places = (places.to(self.like.device) for places in (rows, columns))
        return self.curvature.sparse(values.to(self.like), *places).to(values)


def _check(approximate: Anchor, exact: Anchor, shifts: Mapping[str, Shift | Tensor]) -> None:
    if approximate.weights != exact.weights:
        raise HoldfastError(
            "the two anchors are of other layers or other weights", remedy="estimate both on one model, alike"
        )
    if approximate.facts.get("data_sha256") != exact.facts.get("data_sha256"):
        raise HoldfastError(
            "the two anchors were measured on other data, which would pass for an error of the structure",
            remedy="estimate both on the same batches with the same seed",
        )
    strangers = sorted(set(shifts) - set(approximate.curvatures))
    if strangers:
        raise HoldfastError(f"the anchors have no layer {strangers[0]!r}, and a shift of it is given")
