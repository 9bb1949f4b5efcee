"""The root and the absolute penalty: their values and gradients, against dense twins left to autograd."""

import math
from typing import Any

import pytest
import torch
from adapted import adapt, lora, move
from allocations import Allocations
from laws import EXACT, drawn
from networks import NETWORKS
from penalising import STRENGTH, anchor_of, gradients_of
from torch import nn
from torch.testing import assert_close

from holdfast.anchor import Anchor
from holdfast.curvature.absolute import Absolute as AbsoluteCurvature
from holdfast.curvature.diagonal import ROWS_AT_A_TIME
from holdfast.errors import HoldfastError
from holdfast.penalties.absolute import Absolute, absolute_form
from holdfast.penalties.quadratic import Penalty
from holdfast.penalties.root import EPSILON, Root
from holdfast.shifts.low_rank import LowRank

DAMPING = 0.2
CASES = [(flavour, name) for flavour in ("lora", "two", "dora", "full") for name in ("llama", "conv1d", "embedding")]
CASES += [("rslora", "gpt2"), ("patterns", "mlp"), ("pissa", "mlp")]
each_case = pytest.mark.parametrize(("flavour", "name"), CASES)


@each_case
@pytest.mark.parametrize("kind", ["kronecker", "diagonal", "identity"])
def test_the_root_is_of_the_sum_over_layers(flavour: str, name: str, kind: str) -> None:
    model, anchor = adapt(flavour, NETWORKS[name]), anchor_of(name, kind)
    root, quadratic = (form(model, anchor, STRENGTH, DAMPING) for form in (Root, Penalty))
    move(model)
    q = quadratic() / (STRENGTH / 2)
    wanted = STRENGTH * ((q + EPSILON).sqrt() - math.sqrt(EPSILON))
    value = root()
    assert_close(value, wanted, **EXACT)
    assert_close(gradients_of(value, model), gradients_of(wanted, model), **EXACT)
    assert root.report()["penalty"] == float(value.detach())
    assert root.predicted_forgetting == quadratic.predicted_forgetting


def test_the_root_pulls_alike_from_everywhere() -> None:
    values, pulls = [], []
    for times in (1, 10):
        model = adapt("full", NETWORKS["mlp"])
        penalty = Root(model, anchor_of("mlp", "kronecker"), STRENGTH)
        with torch.no_grad():
            for number, parameter in enumerate(model.parameters()):
                parameter.add_(times * drawn(number, *parameter.shape))
        value = penalty()
        values.append(value.detach())
        pulls.append([g for g in gradients_of(value, model).values() if g is not None])
    assert_close(values[1], 10 * values[0], rtol=1e-3, atol=0)  # eps, where q is of order one
    assert_close(pulls[1], pulls[0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("size", [0.0, 1e-20, 1e-8, 1e-3])
def test_the_root_is_smooth_at_the_anchor_in_single_precision(size: float) -> None:
    model = adapt("full", NETWORKS["mlp"]).float()
    source = [{"x": batch["x"].float(), "labels": batch["labels"]} for batch in NETWORKS["mlp"].batches(2)]
    options: dict[str, Any] = {"forward_loss": NETWORKS["mlp"].forward_loss, "progress": False}
    penalty = Root(model, Anchor.estimate(model, source, **options), STRENGTH)
    move(model, size)
    value = penalty()
    gradients = [g.abs().max() for g in gradients_of(value, model).values() if g is not None]
    assert_close(torch.stack([value, *gradients]).isfinite().sum(), torch.tensor(1 + len(gradients)))
    assert float(value.detach()) >= 0


@each_case
def test_the_absolute_penalty_is_the_dense_one(flavour: str, name: str) -> None:
    model, anchor = adapt(flavour, NETWORKS[name]), anchor_of(name, "absolute")
    penalty = Absolute(model, anchor, STRENGTH, DAMPING)
    move(model)
    wanted, bare = torch.zeros((), dtype=torch.float64), {}
    for layer, reader in penalty.prices[0].readers.items():
        fisher = anchor.curvatures[layer].tensors()["magnitudes"]
        moved = reader().matrix().abs()
        wanted = wanted + STRENGTH * ((fisher + DAMPING * fisher.mean()) * moved).sum()
        bare[layer] = float((fisher * moved).sum().detach())
    value = penalty()
    assert_close(value, wanted, **EXACT)
    found = gradients_of(value, model)
    assert_close(found, gradients_of(wanted, model), **EXACT)
    assert_close(penalty.per_layer(), bare, **EXACT)
    assert penalty.report() == {"penalty": float(value.detach())}
    assert penalty.predicted_forgetting is None


def factors(out: int, inn: int) -> tuple[torch.Tensor, torch.Tensor, AbsoluteCurvature]:
    """up, down and a curvature."""
    up, down = (tensor.requires_grad_() for tensor in (drawn(1, out, 2), drawn(2, 2, inn)))
    return up, down, AbsoluteCurvature(drawn(3, out, inn).abs())


@pytest.mark.parametrize("scale", [0.5, -0.5, 0.0])
def test_a_scale_of_either_sign(scale: float) -> None:
    up, down, curvature = factors(5, 4)
    value = absolute_form(LowRank(up, down, scale), curvature)
    wanted = (curvature.magnitudes * (scale * up @ down).abs()).sum()
    assert_close(value, wanted, **EXACT)
    assert_close(torch.autograd.grad(value, (up, down)), torch.autograd.grad(wanted, (up, down)), **EXACT)


def test_the_absolute_penalty_forms_a_block_of_rows_at_a_time() -> None:
    out, inn = 3 * ROWS_AT_A_TIME, 5
    up, down, curvature = factors(out, inn)
    with Allocations() as made:
        absolute_form(LowRank(up, down, 0.5), curvature).backward()
    assert (out, inn) not in made.shapes


def test_a_shift_meets_a_curvature_of_its_own_shape() -> None:
    up, down, _ = factors(5, 4)
    with pytest.raises(HoldfastError, match=r"shape \(5, 4\) meets a curvature of shape \(4, 5\)"):
        absolute_form(LowRank(up, down), AbsoluteCurvature(torch.ones(4, 5)))


@pytest.mark.parametrize(("form", "kind"), [(Root, "kronecker"), (Root, "diagonal"), (Absolute, "absolute")])
def test_another_factoring_of_the_same_shift_costs_the_same(form: Any, kind: str) -> None:
    model = lora(NETWORKS["mlp"], NETWORKS["mlp"].build())
    penalty = form(model, anchor_of("mlp", kind), STRENGTH)
    move(model)
    before = float(penalty().detach())
    mixing = drawn(3, 2, 2) + 2 * torch.eye(2, dtype=torch.float64)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(parameter @ mixing)
            elif "lora_A" in name:
                parameter.copy_(torch.linalg.solve(mixing, parameter))
    assert_close(float(penalty().detach()), before, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("form", "kind"), [(Root, "kronecker"), (Absolute, "absolute")])
def test_several_anchors_add_up_under_one_form(form: Any, kind: str) -> None:
    model, anchor = adapt("lora", NETWORKS["mlp"]), anchor_of("mlp", kind)
    twice = form(model, [anchor, anchor], STRENGTH, weights=[1.5, 0.5])
    quadratic = Penalty(model, anchor, 2.0) if form is Root else None
    once = form(model, anchor, STRENGTH)
    move(model)
    wanted = 2 * float(once().detach())  # of the first degree: linear in the weights
    if quadratic is not None:
        q = float(quadratic().detach())
        wanted = STRENGTH * (math.sqrt(2 * q + EPSILON) - math.sqrt(EPSILON))
    assert_close(float(twice().detach()), wanted, rtol=1e-9, atol=0)


def test_the_absolute_penalty_needs_the_absolute_curvature() -> None:
    model = adapt("lora", NETWORKS["mlp"])
    with pytest.raises(HoldfastError, match="absolute penalty can't use an anchor of curvature 'kronecker'") as caught:
        Absolute(model, anchor_of("mlp", "kronecker"))
    assert "curvature='absolute'" in str(caught.value)


@pytest.mark.parametrize("form", [Root, Absolute, Penalty])
def test_weights_that_are_not_priced_are_named_where_the_penalty_is_built(form: Any) -> None:
    model = adapt("lora", NETWORKS["mlp"])
    model.register_parameter("free", nn.Parameter(torch.zeros(2)))
    kind = "kronecker" if form.needs is None else form.needs.kind
    with pytest.warns(UserWarning, match="free") as caught:
        form(model, anchor_of("mlp", kind))
    assert caught[0].filename == __file__


@pytest.mark.parametrize("form", [Penalty, Root])
def test_prices_of_sizes_are_no_prices_of_squares(form: Any) -> None:
    with pytest.raises(HoldfastError, match="prices the size of a move"):
        form(adapt("lora", NETWORKS["mlp"]), anchor_of("mlp", "absolute"))


def test_layers_are_told_apart_by_what_forecasts() -> None:
    model, anchor, other = adapt("lora", NETWORKS["mlp"]), anchor_of("mlp", "diagonal"), anchor_of("mlp", "kronecker")
    penalty = Penalty(model, anchor, forecast=other)
    move(model)
    assert_close(sum(penalty.per_layer().values()), penalty.predicted_forgetting)
