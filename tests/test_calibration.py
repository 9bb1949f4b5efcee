"""Calibration: where a forecast is exact it is found to be, and its figures are those of slow twins."""

import math
from functools import partial

import pytest
import torch
from adapted import adapt, move
from networks import NETWORKS
from scipy.stats import spearmanr
from torch import nn

import holdfast
from holdfast.analysis.calibration import ALPHAS, Step, calibration, scaled_path
from holdfast.analysis.calibration_finding import finding
from holdfast.analysis.forecasts import fit, rank_correlation, slope
from holdfast.anchor import Anchor
from holdfast.errors import HoldfastError
from holdfast.likelihood import Items
from holdfast.shifts.dense import Dense

TINY = {"progress": False}


def regression():
    """A linear layer whose outputs are the targets: the loss is 1/2 |D x|^2 per item and stationary at the anchor."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 3)).double()
    inputs = [torch.randn(4, 5, dtype=torch.float64) for _ in range(9)]
    data = [{"x": x, "y": model(x).detach()} for x in inputs]
    return model, data, lambda m, batch: (m(batch["x"]), batch["y"])


@pytest.mark.parametrize("kind", ["kronecker", "eigen", "samples-joint"])
def test_an_exact_forecast_is_found_exact(kind):
    model, data, forward_loss = regression()
    anchor = Anchor.estimate(
        model, data, curvature=kind, targets=".*", fisher="exact", forward_loss=forward_loss, **TINY
    )
    delta = torch.randn(3, 5, dtype=torch.float64)
    before = model[0].weight.clone()
    path = scaled_path({"0": Dense(delta)})
    found = calibration(model, {kind: anchor}, path, data, forward_loss=forward_loss)
    assert torch.equal(model[0].weight, before)
    assert found.places == list(ALPHAS)
    rows = torch.cat([batch["x"] for batch in data])
    items = sum(Items(model, forward_loss).read(batch).items for batch in data)
    true = [a**2 / 2 * float((rows @ delta.T).square().sum()) / items for a in ALPHAS]
    assert found.measured == pytest.approx(true, rel=1e-9)
    assert found.forecasts[kind] == pytest.approx(true, rel=1e-4)
    one = found.fits()[kind]
    assert one.ratios == pytest.approx([1] * len(ALPHAS), rel=1e-4)
    assert one.slope == pytest.approx(1, rel=1e-4)
    assert one.passes == {"10%": None, "50%": None}
    assert one.rank_correlation == pytest.approx(1)


@pytest.mark.parametrize("name", ["mlp", "gpt2", "bert-sequence"])
def test_what_is_measured_is_the_adapters_own_rise(name):
    network = NETWORKS[name]
    adapted = move(adapt("lora", network), 0.1)
    shifts = holdfast.shifts(adapted)
    base = network.build()
    data = network.batches(1)

    def loss(model):
        reader = Items(model, network.forward_loss)
        said = [reader.read(batch) for batch in data]
        return float(sum(one.loss() for one in said)) / sum(one.items for one in said)

    with torch.no_grad():
        rise = loss(adapted.eval()) - loss(base)
    anchor = Anchor.estimate(base, data, targets=sorted(shifts), forward_loss=network.forward_loss, **TINY)
    path = scaled_path(shifts, [1.0, 0.5])
    found = calibration(base, {"mine": anchor}, path, data, forward_loss=network.forward_loss)
    assert found.places == [0.5, 1.0]
    assert found.measured[-1] == pytest.approx(rise, rel=1e-6)
    penalty = holdfast.Penalty(adapted, anchor)
    assert found.forecasts["mine"][-1] == pytest.approx(penalty.predicted_forgetting, rel=1e-5)
    assert found.forecasts["mine"][0] == pytest.approx(found.forecasts["mine"][1] / 4, rel=1e-5)


def test_figures_along_a_path():
    at = [0.1, 0.2, 0.5, 1.0]
    measured, errors = [0.001, 0.04, 0.25, 1.0], [0.01, 0.001, 0.001, 0.001]
    one = fit(at, [0.01, 0.04, 0.3, 0.4], measured, errors)
    assert one.ratios == [None, pytest.approx(1), pytest.approx(1.2), pytest.approx(0.4)]
    assert one.passes == {"10%": 0.5, "50%": 1.0}
    assert fit(at, measured, measured, errors).passes == {"10%": None, "50%": None}
    cubic = fit(at, [a**2 for a in at], [a**3 for a in at], [0.0] * 4)
    assert cubic.slope == pytest.approx(1.5)
    assert fit(at, [1.0] * 4, measured, [math.inf] * 4).slope is None
    assert slope([(0.0, 1.0)]) is None


@pytest.mark.parametrize("seed", range(4))
def test_ranks_as_scipy_ranks(seed):
    generator = torch.Generator().manual_seed(seed)
    one, other = (torch.randint(6, (9,), generator=generator).double().tolist() for _ in range(2))
    assert rank_correlation(one, other) == pytest.approx(spearmanr(one, other).statistic)
    assert rank_correlation([1.0, 1.0], [1.0, 2.0]) is None


def test_the_words_say_the_figures():
    model, data, forward_loss = regression()
    anchor = Anchor.estimate(model, data, targets=".*", fisher="exact", forward_loss=forward_loss, **TINY)
    path = scaled_path({"0": Dense(torch.randn(3, 5, dtype=torch.float64))})
    found = calibration(model, {"exact": anchor}, path, data, forward_loss=forward_loss)
    said = finding(found, {"model": "m"}, [])
    assert f"{found.measured[5]:.3g}" in said.words
    assert "1.00 of it" in said.words
    assert "nowhere" in said.words
    found.measured, found.errors = [0.0] * len(path), [1.0] * len(path)
    assert "no forgetting" in finding(found, {}, []).words
    found.measured, found.errors = [-0.5] * len(path), [0.1] * len(path)
    fell = finding(found, {}, [])
    assert "has fallen by 0.5" in fell.words
    assert "within two standard errors" not in fell.words
    assert fell.figures["anchors"]["exact"]["passes"] == {"10%": 0.1, "50%": 0.1}


def test_what_is_refused():
    network = NETWORKS["mlp"]
    model, data = network.build(), network.batches()
    estimate = partial(Anchor.estimate, model, forward_loss=network.forward_loss, **TINY)
    anchor, length, part = estimate(data), estimate(curvature="identity"), estimate(data, targets=["0"])
    shifts = {"0": Dense(torch.ones(4, 5).double()), "2": Dense(torch.ones(6, 4).double())}
    path, run = scaled_path(shifts), partial(calibration, model, forward_loss=network.forward_loss)
    for alphas in ([], [0.0, 1.0], [-1.0]):
        with pytest.raises(HoldfastError, match="alphas"):
            scaled_path(shifts, alphas)
    for anchors, steps in (({}, path), ({"a": anchor}, [])):
        with pytest.raises(HoldfastError, match="nothing to compare"):
            run(anchors, steps, data)
    with pytest.raises(HoldfastError, match="nothing in nats"):
        run({"a": length}, path, data)
    with pytest.raises(HoldfastError, match="no curvature for 1 layers that move: 2"):
        run({"a": part}, path, data)
    with torch.no_grad():
        model[0].weight.add_(1)
    with pytest.raises(HoldfastError, match="differs"):
        run({"a": anchor}, [Step(1.0, shifts)], data)


def test_an_anchor_of_an_adapters_parameters_is_refused():
    network = NETWORKS["mlp"]
    adapted = move(adapt("lora", network))
    anchor = Anchor.estimate(
        adapted, network.batches(), curvature="diagonal", space="adapter", forward_loss=network.forward_loss, **TINY
    )
    path = scaled_path(holdfast.shifts(adapted))
    with pytest.raises(HoldfastError, match="adapter's own parameters"):
        calibration(network.build(), {"a": anchor}, path, network.batches(), forward_loss=network.forward_loss)
