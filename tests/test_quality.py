"""The quality that is reported of an approximation, against plain matrices."""

from typing import Any

import pytest
import torch
from laws import dense, drawn
from networks import NETWORKS
from torch.testing import assert_close

import holdfast
from holdfast.anchor import Anchor
from holdfast.anchors.approximation import TOGETHER, Quality, quality
from holdfast.errors import HoldfastError
from holdfast.shifts.low_rank import LowRank

NETWORK = NETWORKS["llama"]
NAME = "model.layers.0.mlp.down_proj"


def anchored(**options: Any) -> Anchor:
    """An anchor of the tiny Llama."""
    return Anchor.estimate(NETWORK.build(), NETWORK.batches(2), **{"progress": False, **options})


def by_layer(rows: list[Quality]) -> dict[str, Quality]:
    return {row.layer: row for row in rows}


@pytest.mark.parametrize("storage", ["low-rank:2", "blocks:3", "diagonal"])
def test_errors_are_those_of_the_dense_forms(storage: str) -> None:
    approximate, exact = anchored(storage=storage), anchored()
    shifts = {name: drawn(i, *c.shape) for i, (name, c) in enumerate(exact.curvatures.items())}
    rows = by_layer(quality(approximate, exact, shifts, draws=3, seed=4))
    assert list(rows) == [*exact.curvatures, TOGETHER]
    totals = torch.zeros(2, dtype=torch.float64)
    for number, name in enumerate(exact.curvatures):
        forms = [dense(anchor.curvatures[name]) for anchor in (approximate, exact)]
        moved = shifts[name].flatten()
        found = torch.stack([moved @ form @ moved for form in forms])
        totals += found
        assert rows[name].shift_error == pytest.approx(float(found[0] / found[1] - 1), rel=1e-6)
        generator = torch.Generator().manual_seed(4 + number)
        errors = []
        for _ in range(3):
            out, inn = exact.curvatures[name].shape
            up, down = torch.randn(out, 1, generator=generator), torch.randn(1, inn, generator=generator)
            along = (up @ down).double().flatten()
            errors.append(float((along @ forms[0] @ along) / (along @ forms[1] @ along) - 1))
        assert rows[name].random_error == pytest.approx(sum(map(abs, errors)) / 3, rel=1e-4)
        assert rows[name].random_worst == pytest.approx(max(errors, key=abs), rel=1e-4)
    assert rows[TOGETHER].shift_error == pytest.approx(float(totals[0] / totals[1] - 1), rel=1e-6)


def test_what_leaves_nothing_out_has_no_error() -> None:
    for storage in ("full", "low-rank:16", "blocks:16"):
        for row in quality(anchored(storage=storage), anchored(), draws=4):
            assert (row.random_error, row.random_worst) == pytest.approx((0, 0), abs=1e-5)
            assert row.shift_error is None


def test_captured_is_the_trace_of_the_root() -> None:
    approximate = anchored(storage="low-rank:2")
    rows = by_layer(quality(approximate, anchored(), draws=1))
    curvature: Any = approximate.curvatures[NAME]
    for side, factor in (("inputs", curvature.inputs), ("gradients", curvature.gradients)):
        whole = factor.times(torch.eye(factor.width, dtype=torch.float64))
        held = whole - factor.rest.diag()
        assert rows[NAME].captured[side] == pytest.approx(float(held.trace() / whole.trace()))
        assert 0.1 < rows[NAME].captured[side] < 1
    assert approximate.facts["captured"] == {n: r.captured for n, r in rows.items() if n != TOGETHER}
    assert "captured" not in anchored().facts


def test_shifts_may_be_structured_and_of_another_precision() -> None:
    approximate, exact = anchored(storage="diagonal"), anchored()
    up, down = drawn(1, *(exact.curvatures[NAME].shape[0], 2)), drawn(2, 2, exact.curvatures[NAME].shape[1])
    thin = quality(approximate, exact, {NAME: LowRank(up.float(), down.float(), 0.5)}, draws=1)
    full = quality(approximate, exact, {NAME: up @ down}, draws=1)
    assert by_layer(thin)[NAME].shift_error == pytest.approx(by_layer(full)[NAME].shift_error, rel=1e-4)
    assert thin[-1].shift_error == by_layer(thin)[NAME].shift_error  # the one layer that moved
    assert by_layer(thin)["model.layers.0.mlp.up_proj"].shift_error is None


def test_kinds_may_differ() -> None:
    rows = quality(anchored(curvature="rank-one"), anchored(), {NAME: drawn(3, 8, 12)}, draws=2)
    assert abs(by_layer(rows)[NAME].shift_error or 0) > 0.01


def test_a_shift_that_costs_nothing_either_way_is_no_error() -> None:
    exact = anchored()
    (row,) = [r for r in quality(exact, exact, {NAME: torch.zeros(8, 12)}, draws=1) if r.layer == NAME]
    assert row.shift_error == 0


def test_anchors_that_can_not_be_compared_are_refused() -> None:
    exact = anchored()
    with pytest.raises(HoldfastError, match="other data"):
        quality(anchored(storage="diagonal", max_items=3), exact)
    with pytest.raises(HoldfastError, match="other layers"):
        quality(anchored(targets=["q_proj"]), exact)
    with pytest.raises(HoldfastError, match="no layer 'lm_head'"):
        quality(exact, exact, {"lm_head": torch.zeros(1, 1)})


def test_the_public_name() -> None:
    assert holdfast.quality is quality
    assert_close(quality(anchored(), anchored(), draws=1)[0].random_error, 0.0)
