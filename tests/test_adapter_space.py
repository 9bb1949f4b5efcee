"""Curvature of what an adapter trains, at its start: what it is measured of, and which starts it belongs to."""

from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import adapt, move, pissa
from laws import EXACT, price
from networks import NETWORKS
from penalising import ROUNDING, gradients_of
from starts import LLAMA, adapted_by, batches, estimate
from torch import Tensor, nn
from torch.testing import assert_close

from holdfast import catalogue
from holdfast.anchor import Anchor
from holdfast.curvature.tridiagonal import chains
from holdfast.errors import HoldfastError
from holdfast.parts import parts_in, select_parts
from holdfast.penalties.quadratic import Penalty


@pytest.mark.parametrize("kind", [n for n in catalogue.names("curvature") if catalogue.curvature(n).squares])
@pytest.mark.parametrize("name", ["mlp", "conv1d", "llama"])
def test_every_curvature_prices_the_factors_since_their_start(kind: str, name: str) -> None:
    network = NETWORKS[name]
    model = move(adapt("two", network))  # a warm start: both factors are non-zero
    anchor = estimate(model, network, kind)
    penalty = Penalty(model, anchor, 0.7)
    assert_close(penalty(), torch.zeros((), dtype=torch.float64), **ROUNDING)
    start = {n: p.tensor.detach().clone() for n, p in parts_in(model, "adapter").items()}
    move(model, seed=3)
    moved = {n: p.matrix(p.tensor - start[n]) for n, p in select_parts(model, "all-linear", "adapter").items()}
    assert list(moved) == list(anchor.curvatures)
    layers = sum(price(anchor.curvatures[n], delta.detach()) for n, delta in moved.items())
    own = sum(half for layer, half in penalty.per_layer().items() if layer in moved)
    assert_close(own, float(layers) / 2, **EXACT)
    assert all(gradient is not None for gradient in gradients_of(penalty(), model).values())


def test_a_file_brings_everything_back(tmp_path: Path) -> None:
    model = adapt("lora", LLAMA)
    anchor = estimate(model, LLAMA)
    anchor.save(tmp_path / "anchor")
    again = Anchor.load(tmp_path / "anchor")
    assert again.space == "adapter"
    values = []
    for one in (anchor, again):
        fresh = copied(model)
        penalty = Penalty(fresh, one)
        values.append(float(move(fresh) and penalty().detach()))
    assert_close(values[1], values[0], rtol=1e-12, atol=0)


def copied(model: nn.Module) -> nn.Module:
    """The same adapter on the same base."""
    fresh = adapt("lora", LLAMA)
    fresh.load_state_dict(model.state_dict())
    return fresh


def test_anchors_of_both_spaces_add_up() -> None:
    model = adapt("lora", LLAMA)
    both = [Anchor.estimate(LLAMA.build(), batches(LLAMA), progress=False), estimate(model, LLAMA)]
    penalties = [Penalty(model, one) for one in (both, *both)]
    move(model)
    together, *alone = [penalty().detach() for penalty in penalties]
    assert_close(together, alone[0] + alone[1], **EXACT)


def test_names_are_those_of_the_bare_model_and_tell_adapters_apart() -> None:
    model = adapt("two", NETWORKS["mlp"])
    names = list(select_parts(model, "all-linear", "adapter"))
    assert names == [
        "0.lora_A.default", "0.lora_A.extra", "0.lora_B.default", "0.lora_B.extra",
        "2.lora_A.default", "2.lora_B.default", "4.lora_A.default", "4.lora_B.default",
    ]  # fmt: skip


@pytest.mark.parametrize("targets", [["q_proj"], r".*\.q_proj", r".*q_proj\.lora_[AB]\.default"])
def test_targets_name_layers_or_their_parts(targets: Any) -> None:
    found = select_parts(adapt("lora", LLAMA), targets, "adapter")
    halves = [f"model.layers.{n}.self_attn.q_proj.lora_{half}.default" for n in range(2) for half in "AB"]
    assert list(found) == halves


def test_targets_that_match_nothing_are_named() -> None:
    with pytest.raises(HoldfastError, match="'q_prj'"):
        estimate(adapt("lora", LLAMA), LLAMA, targets=["q_prj"])


class Bottleneck(nn.Module):
    """An adapter made by hand: two new layers behind a frozen one."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base, self.down, self.up = base, nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.base(x)
        return hidden + self.up(torch.tanh(self.down(hidden)))


def test_any_module_whose_base_is_frozen_has_an_adapter() -> None:
    network = NETWORKS["mlp"]
    model = network.build().requires_grad_(False)
    model[0] = Bottleneck(model[0]).double()
    anchor = estimate(model, network)
    assert list(anchor.curvatures) == ["0.down", "0.up"]
    assert list(anchor.facts["base"]) == ["0.base", "2", "4"]
    penalty = Penalty(model, anchor)
    penalty_value = float(move(model) and penalty().detach())
    wanted = Penalty(model, estimate(model, network))  # measured where it is now: there it costs nothing
    assert_close(wanted(), torch.zeros((), dtype=torch.float64), **ROUNDING)
    assert penalty_value > 0


def test_a_compensated_start_is_measured_where_it_is() -> None:
    network = NETWORKS["mlp"]
    anchor = estimate(pissa(network, network.build()), network)
    halves = {half: [c for n, c in anchor.curvatures.items() if f"lora_{half}" in n] for half in "AB"}
    for curvatures in halves.values():  # at B != 0 both factors are priced
        assert min(float(c.tensors()["gradients.full"].trace()) for c in curvatures) > 1e-9


def test_another_start_is_refused() -> None:
    model = adapt("lora", LLAMA)
    anchor = estimate(model, LLAMA)
    anchor.check(model)
    for stranger in (move(copied(model)), adapt("patterns", LLAMA), adapt("two", LLAMA)):
        with pytest.raises(HoldfastError, match="another start of the adapter"):
            Penalty(stranger, anchor)
    with pytest.raises(HoldfastError, match=r"lora_A\.default' is not in the model"):
        anchor.check(LLAMA.build())


def test_another_base_under_the_same_start_is_refused() -> None:
    model = adapted_by("ia3")  # starts with ones on every model
    anchor = estimate(model, LLAMA, "diagonal", per="sequence")
    stranger = adapted_by("ia3")
    with torch.no_grad():
        stranger.base_model.model.lm_head.weight.add_(0.1)
    with pytest.raises(HoldfastError, match="lm_head"):
        Penalty(stranger, anchor)


def test_what_the_adapter_trains_besides_needs_a_price() -> None:
    model = adapt("lora", LLAMA)
    anchor = estimate(model, LLAMA, targets=["q_proj"])
    with pytest.raises(HoldfastError, match="have no curvature"):
        Penalty(model, anchor)


def test_models_without_an_adapter_are_refused() -> None:
    with pytest.raises(HoldfastError, match="nothing in it is frozen"):
        estimate(LLAMA.build(), LLAMA)
    with pytest.raises(HoldfastError, match="no parameter of this model is"):
        estimate(adapt("lora", LLAMA).requires_grad_(False), LLAMA)
    merged: Any = adapt("lora", LLAMA)
    merged.merge_adapter()
    with pytest.raises(HoldfastError, match="unmerge_adapter"):
        estimate(merged, LLAMA)
    with pytest.raises(HoldfastError, match="space='factors'"):
        Anchor.estimate(LLAMA.build(), batches(LLAMA), space="factors", progress=False)  # type: ignore[arg-type]


def test_priors_are_of_the_adapter_s_parameters() -> None:
    model = adapt("lora", LLAMA)
    weights = Anchor.estimate(LLAMA.build(), batches(LLAMA), progress=False)
    with pytest.raises(HoldfastError, match="curvature='identity'"):
        Penalty(model, weights, prior=0.1)
    with pytest.raises(HoldfastError, match="prior=-1"):
        Penalty(model, estimate(model, LLAMA), prior=-1)


def test_adapters_that_are_switched_off_are_not_measured() -> None:
    model: Any = adapt("two", NETWORKS["mlp"])
    model.base_model.set_adapter(["default"])
    anchor = estimate(model, NETWORKS["mlp"])
    assert {name.rpartition(".")[2] for name in anchor.curvatures} == {"default"}


def test_neighbours_are_the_two_factors_of_one_adapter() -> None:
    anchor = estimate(move(adapt("two", NETWORKS["mlp"])), NETWORKS["mlp"], "tridiagonal")
    assert chains(anchor.curvatures) == [  # type: ignore[arg-type]
        [f"{place}.lora_A.{adapter}", f"{place}.lora_B.{adapter}"]
        for place, adapter in (("0", "default"), ("0", "extra"), ("2", "default"), ("4", "default"))
    ]
