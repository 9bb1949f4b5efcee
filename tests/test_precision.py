"""Rows and losses of 16 bits: second moments stay positive, prices keep their own precision."""

from typing import Any

import pytest
import torch
from factor_cases import dense
from laws import drawn
from networks import NETWORKS
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.testing import assert_close

from holdfast import factors
from holdfast.anchor import Anchor
from holdfast.errors import HoldfastError
from holdfast.factors.factor import add_product, multipliable
from holdfast.language_model import load_model
from holdfast.measuring.resuming import identity
from holdfast.models import shipped
from holdfast.penalties.quadratic import Penalty

IDS = torch.randint(0, 500, (4, 24), generator=torch.Generator().manual_seed(0))
KINDS = ("kronecker", "diagonal", "eigen", "rank-one", "samples", "tridiagonal")


def moment(name: str, rows: torch.Tensor, batches: int) -> Any:
    """A second moment of rows that come in batches."""
    storage = factors.storage(name)
    total = storage.structure.zero(rows.shape[1], storage.option, rows)
    for part in rows.chunk(batches):
        storage.structure.accumulate(total, part, storage.option)
    return storage.structure.from_sum(total, 1 / len(rows), storage.option)


@pytest.mark.parametrize("name", ["full", "blocks:64", "low-rank:16"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_moments_of_coarse_rows_are_those_rows_moments(name: str, dtype: torch.dtype) -> None:
    """Products rounded to 16 bits would have a quarter of these eigenvalues below zero."""
    width = 128
    rows = (drawn(1, 512, width).float() * torch.logspace(0, -3, width)).to(dtype)
    found, wanted = dense(moment(name, rows, 4)), dense(moment(name, rows.double(), 4))
    assert_close(found.double(), wanted, rtol=1e-4, atol=1e-6 * float(wanted.diagonal().max()))
    values = torch.linalg.eigvalsh(found.double())
    assert float(values[0]) > -1e-6 * float(values.mean())


def test_products_are_wide_where_the_device_makes_them_so() -> None:
    total, rows = torch.zeros(6, 4, device="meta"), torch.ones(5, 6, device="meta", dtype=torch.bfloat16)
    assert multipliable(rows, torch.float32).dtype == torch.bfloat16  # as CUDA: sums of more than their terms
    add_product(total, rows, rows[:, :4])
    assert multipliable(torch.ones(5, 6, dtype=torch.bfloat16), torch.float64).dtype == torch.float64


@pytest.mark.parametrize("kind", ["kronecker", "tridiagonal", "eigen"])
def test_a_penalty_on_coarse_products_rewards_no_move(kind: str) -> None:
    model = load_model(str(shipped()), "float32")
    batches, targets = [{"input_ids": IDS}], r".*0\.mlp.*"
    anchor = Anchor.estimate(model, batches, curvature=kind, targets=targets, dtype=torch.bfloat16, progress=False)
    for curvature in anchor.curvatures.values():
        own = getattr(curvature, "own", curvature)
        for factor in (getattr(own, side) for side in ("inputs", "gradients") if kind != "eigen"):
            values = torch.linalg.eigvalsh(factor.matrix.double())
            assert float(values[0]) > -1e-5 * float(values.mean())
        if kind == "eigen":
            assert float(own.moments.min()) >= 0


def test_float16_rows_are_refused() -> None:
    network = NETWORKS["llama"]
    with pytest.raises(HoldfastError, match=r"(?s)float16.*wanted: None, torch.bfloat16"):
        Anchor.estimate(network.build(), network.batches(2), dtype=torch.float16, progress=False)


def test_a_few_huge_coordinates_hide_no_direction() -> None:
    """Massive activations: one coordinate with 10^7 times the others' second moment."""
    width, rank = 256, 16
    directions = torch.linalg.qr(drawn(2, width, rank)).Q
    rows = drawn(3, 2000, rank) @ (directions * torch.linspace(3, 1, rank)).T
    rows[:, 0] = 3e3 * (1 + 0.1 * drawn(4, 2000, 1)[:, 0])
    factor = moment("low-rank:24", rows.float(), 4)
    wanted = rows.T @ rows / len(rows)
    for direction in directions.T:
        flat = direction.clone()
        flat[0] = 0
        found = float(flat @ dense(factor).double() @ flat)
        assert found == pytest.approx(float(flat @ wanted @ flat), rel=0.02)


def test_an_empty_root_is_finite() -> None:
    """At B = 0 nothing reaches LoRA's A: its sums are zero, and a low rank of them has no column."""
    network = NETWORKS["llama"]
    model = get_peft_model(network.build(), LoraConfig(target_modules=["q_proj"], r=4))
    anchor = Anchor.estimate(model, network.batches(2), space="adapter", storage="low-rank:3", progress=False)
    assert all(t.isfinite().all() for c in anchor.curvatures.values() for t in c.tensors().values())


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_around_the_loss_does_not_touch_the_penalty(kind: str) -> None:
    model: nn.Module = load_model(str(shipped()), "float32")
    anchor = Anchor.estimate(model, [{"input_ids": IDS}], curvature=kind, targets=["q_proj"], progress=False)
    tuned = get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=4))  # type: ignore[arg-type]
    penalty = Penalty(tuned, anchor)
    trained = [p for p in tuned.parameters() if p.requires_grad]
    with torch.no_grad():
        for number, parameter in enumerate(trained):
            parameter.add_(0.1 * drawn(number, *parameter.shape).float())
    wanted = penalty()
    gradients = torch.autograd.grad(wanted, trained)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = penalty()
        forecast = penalty.predicted_forgetting
    assert_close(found, wanted, rtol=0, atol=0)
    assert forecast == penalty.predicted_forgetting
    assert_close(torch.autograd.grad(found, trained), gradients, rtol=0, atol=0)


@pytest.mark.parametrize("storage", ["full", "low-rank:8"])
def test_a_model_under_autocast_is_measured_in_float32(storage: str) -> None:
    model = load_model(str(shipped()), "float32")
    options: dict[str, Any] = {"targets": ["q_proj"], "storage": storage, "fisher": "data", "progress": False}
    wanted = Anchor.estimate(model, [{"input_ids": IDS}], **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = Anchor.estimate(model, [{"input_ids": IDS}], **options)
    for name, curvature in found.curvatures.items():
        for side in ("inputs", "gradients"):
            ours, theirs = (getattr(c, side).diagonal() for c in (curvature, wanted.curvatures[name]))
            assert ours.dtype == torch.float32
            assert_close(ours, theirs, rtol=0.2, atol=0.02 * float(theirs.max()))  # the model's own rounding


def test_large_tensors_are_known_too() -> None:
    """Beyond 2^24 entries a place that is computed in float32 may lie behind the last one."""
    model = nn.Module()
    model.register_buffer("wide", torch.zeros(2**24 + 4, dtype=torch.int8))
    first = identity(model)
    model.get_buffer("wide")[-1] = 1
    assert identity(model) != first
