"""Bases of packed weights, in 8 and 4 bits, and of bfloat16: curvature needs only what goes in and what comes back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from laws import EXACT, drawn, price, same
from packed import NETWORK, TARGETS, Packed, adapted, anchor_of, packed, unpacked
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from holdfast import catalogue
from holdfast.anchor import Anchor
from holdfast.errors import HoldfastError
from holdfast.penalties.quadratic import Penalty
from holdfast.shifts.read import unpacked as unpacked_weight

BFLOAT16 = 2**-5  # relative: the model itself computes in 8 bits of precision
SINGLE = 1e-4  # relative: float32 against float64


@pytest.mark.parametrize("kind", ["kronecker", "diagonal", "eigen", "tridiagonal", "samples"])
def test_packed_weights_have_the_curvature_of_the_weights_they_stand_for(kind: str) -> None:
    model = packed()
    same(anchor_of(model, curvature=kind), anchor_of(unpacked(model), curvature=kind))


class Backward(TorchDispatchMode):
    """Shapes of the matrix products of backward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if torch._C._current_graph_task_id() != -1 and isinstance(made, Tensor) and "mm" in str(function):
            self.shapes.add(tuple(made.shape))
        return made


@pytest.mark.parametrize("build", [packed, NETWORK.build])
def test_no_gradient_of_a_weight_is_formed(build: Callable[[], nn.Module]) -> None:
    with Backward() as seen:  # over 6 rows at most, so that no gradient of a layer's inputs has a weight's shape
        Anchor.estimate(build(), NETWORK.batches(1), targets=["down_proj", "up_proj"], progress=False)
    assert (12, 12) in seen.shapes  # gradients came, and were summed
    assert seen.shapes.isdisjoint({(8, 12), (12, 8), (13, 8)})  # down, up and gate, head


def test_a_packed_base_is_known_by_its_bytes(tmp_path: Path) -> None:
    model = packed()
    anchor_of(model).save(tmp_path / "anchor")
    anchor = Anchor.load(tmp_path / "anchor")
    anchor.check(packed())
    anchor.check(adapted(packed()))
    with pytest.raises(HoldfastError, match=r"q_proj\.weight differs"):
        anchor.check(packed(seed=1))
    with pytest.raises(HoldfastError, match=r"q_proj\.weight has shape"):
        anchor.check(unpacked(model))


@pytest.mark.parametrize("kind", ["kronecker", "diagonal", "eigen"])
def test_lora_on_a_packed_base_is_priced(kind: str) -> None:
    model = packed()
    anchor = anchor_of(model, curvature=kind)
    plain = Penalty(adapted(unpacked(model)), anchor_of(unpacked(model), curvature=kind), strength=2.0)
    penalty = Penalty(adapted(model), anchor, strength=2.0)
    assert_close(penalty(), plain(), **EXACT)
    penalty().backward()
    assert all(p.grad is not None for n, p in penalty.model.named_parameters() if "lora_" in n)


def test_an_adapter_that_is_off_costs_nothing() -> None:
    model = packed()
    penalty = Penalty(adapted(model), anchor_of(model), strength=2.0)
    with penalty.model.disable_adapter():
        assert float(penalty()) == 0


def test_an_unknown_packing_is_refused_where_its_numbers_are_needed() -> None:
    layer = Packed(nn.Linear(4, 4))
    with pytest.raises(HoldfastError, match=r"'q_proj' is packed \(torch.uint8\)"):
        unpacked_weight("q_proj", layer)
    assert unpacked_weight("q_proj", nn.Linear(4, 4)).shape == (4, 4)


def test_another_packed_base_is_refused() -> None:
    with pytest.raises(HoldfastError, match="belongs to another model"):
        Penalty(adapted(packed(seed=1)), anchor_of(packed()))


@pytest.mark.parametrize("kind", ["kronecker", "diagonal", "eigen"])
def test_a_bfloat16_base_is_near_a_plain_one(kind: str, tmp_path: Path) -> None:
    low, plain = NETWORK.build().bfloat16(), NETWORK.build().bfloat16().double()
    anchor, exact = anchor_of(low, curvature=kind, fisher="data"), anchor_of(plain, curvature=kind, fisher="data")
    anchor.save(tmp_path / "anchor")
    anchor = Anchor.load(tmp_path / "anchor")
    anchor.check(NETWORK.build().bfloat16())
    for name, curvature in anchor.curvatures.items():
        assert {t.dtype for t in curvature.tensors().values() if t.is_floating_point()} <= {torch.float32}
        delta = torch.randn(curvature.shape)
        wanted = price(exact.curvatures[name], delta.double())
        assert_close(price(curvature, delta).double(), wanted, rtol=2 * BFLOAT16, atol=0)
    penalty = Penalty(adapted(low), anchor)
    assert 0 < float(penalty().detach()) < float("inf")


@pytest.mark.parametrize("kind", ["kronecker", "diagonal", "eigen", "rank-one", "samples-joint", "identity"])
@pytest.mark.parametrize("how", ["full", "lora"])
def test_shifts_of_bfloat16_weights_are_priced_in_float32(kind: str, how: str) -> None:
    measured = bool(catalogue.curvature(kind).statistics())
    options: dict[str, Any] = {"curvature": kind, "targets": TARGETS, "progress": False}
    options |= {"fisher": "data"} if measured else {}

    def penalty_of(dtype: torch.dtype) -> Penalty:
        model = NETWORK.build().bfloat16().to(dtype)
        anchor = Anchor.estimate(model, NETWORK.batches(2) if measured else None, **options)
        model = adapted(model) if how == "lora" else model
        for name, parameter in model.named_parameters():
            targeted = any(target in name for target in TARGETS)
            parameter.requires_grad_(targeted and (how == "full" or "lora_" in name))
        penalty = Penalty(model, anchor)
        with torch.no_grad():
            for number, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
                parameter.add_(drawn(number, *parameter.shape).bfloat16())
        return penalty

    low, exact = penalty_of(torch.bfloat16), penalty_of(torch.float64)
    value = low()
    assert value.dtype == torch.float32
    assert_close(value.detach().double(), exact().detach(), rtol=4 * BFLOAT16, atol=0)
    value.backward()
    gradients = [p.grad for p in low.model.parameters() if p.requires_grad]
    assert {gradient.dtype for gradient in gradients if gradient is not None} == {torch.bfloat16}
    assert None not in gradients
