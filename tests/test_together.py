"""Weight space and function space under one strength."""

import pytest
import torch
from adapted import adapt, move
from laws import EXACT
from networks import NETWORKS
from penalising import anchor_of, gradients_of
from torch.testing import assert_close

from holdfast.errors import HoldfastError
from holdfast.penalties.distill import Distill
from holdfast.penalties.quadratic import Penalty
from holdfast.penalties.together import Together

LLAMA = NETWORKS["llama"]


def test_one_strength_weighs_every_term() -> None:
    model = adapt("lora", LLAMA)
    quadratic = Penalty(model, anchor_of("llama", "kronecker"), 1.0)
    distill = Distill(model, LLAMA.batches(2), 1.0, progress=False)
    both = Together(model, [quadratic, distill], 3.0, shares=[0.75, 0.25])
    both.step = quadratic.step = distill.step = 5
    move(model)
    wanted = 3.0 * (0.75 * quadratic() + 0.25 * distill())
    assert_close(both(), wanted, **EXACT)
    assert_close(gradients_of(both(), model), gradients_of(wanted, model), **EXACT)
    assert distill.step == 5


def test_what_was_seen_goes_before_what_is_extrapolated() -> None:
    model = adapt("lora", LLAMA)
    quadratic = Penalty(model, anchor_of("llama", "kronecker"), 1.0)
    distill = Distill(model, LLAMA.batches(2), 1.0, progress=False)
    both = Together(model, [quadratic, distill])
    move(model)
    assert_close(both.predicted_forgetting, quadratic.predicted_forgetting)
    both()
    assert_close(both.predicted_forgetting, distill.predicted_forgetting)
    assert set(both.report()) == {"penalty", "predicted_forgetting", "distill_kl"}
    assert not both.shared
    assert Together(model, [quadratic]).shared


@pytest.mark.parametrize("shares", [[], [1.0], [0.5, -0.5]])
def test_shares_that_do_not_fit_are_refused(shares: list[float]) -> None:
    model = adapt("lora", LLAMA)
    terms = [Penalty(model, anchor_of("llama", "kronecker")), Penalty(model, anchor_of("llama", "diagonal"))]
    with pytest.raises(HoldfastError, match="share"):
        Together(model, terms, shares=shares)


def test_a_term_of_another_model_is_refused() -> None:
    anchor = anchor_of("llama", "kronecker")
    with pytest.raises(HoldfastError, match="another model"):
        Together(adapt("lora", LLAMA), [Penalty(adapt("lora", LLAMA), anchor)])


def test_several_anchors_are_their_weighted_sum() -> None:
    model = adapt("lora", LLAMA)
    anchors = [anchor_of("llama", kind) for kind in ("kronecker", "diagonal")]
    apart = [Penalty(model, anchor, 2.0) for anchor in anchors]
    both = Penalty(model, anchors, 2.0, weights=[1.0, 3.0])
    move(model)
    assert_close(both(), apart[0]() + 3 * apart[1](), **EXACT)
    halves = torch.tensor([one.predicted_forgetting for one in apart], dtype=torch.float64)
    assert_close(both.predicted_forgetting, float((halves * torch.tensor([0.25, 0.75])).sum()), rtol=1e-12, atol=0)
    whole = sum(both.per_layer().values())
    assert_close(whole, float(halves[0] + 3 * halves[1]), rtol=1e-9, atol=0)


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], []])
def test_weights_that_do_not_fit_are_refused(weights: list[float]) -> None:
    anchors = [anchor_of("llama", kind) for kind in ("kronecker", "diagonal")]
    with pytest.raises(HoldfastError, match=r"one for each|at least 0"):
        Penalty(adapt("lora", LLAMA), anchors, weights=weights)


def test_an_anchor_that_only_forecasts() -> None:
    model = adapt("lora", LLAMA)
    kronecker, diagonal = (anchor_of("llama", kind) for kind in ("kronecker", "diagonal"))
    held, other = Penalty(model, kronecker, 2.0), Penalty(model, diagonal, 2.0)
    told = Penalty(model, kronecker, 2.0, forecast=diagonal)
    blind = Penalty(model, kronecker, 2.0, forecast=anchor_of("llama", "identity"))
    move(model)
    assert_close(told(), held(), **EXACT)
    assert_close(told.predicted_forgetting, other.predicted_forgetting, rtol=1e-12, atol=0)
    assert blind.predicted_forgetting is None


def test_the_model_comes_first() -> None:
    model = adapt("lora", LLAMA)
    anchor = anchor_of("llama", "kronecker")
    with pytest.raises(HoldfastError, match=r"wanted.*Penalty\(model, anchor"):
        Penalty(anchor, model)
    with pytest.raises(HoldfastError, match=r"wanted.*Together\(model, terms"):
        Together([Penalty(model, anchor)], model)


def test_penalties_tell_what_they_are() -> None:
    model = adapt("lora", NETWORKS["mlp"])
    penalty = Penalty(model, [anchor_of("mlp", "kronecker"), anchor_of("mlp", "diagonal")], 4.0)
    assert repr(penalty) == "Penalty(kronecker + diagonal, strength=4.0, 3 layers)"
    assert repr(Together(model, [penalty], 2.0)) == f"Together({penalty!r}, strength=2.0)"
