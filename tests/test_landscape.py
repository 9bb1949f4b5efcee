"""Landscapes: curves with known figures, directions against slow twins, and weights that come back bit by bit."""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from heads import vit
from networks import NETWORKS
from peft import LoraConfig, get_peft_model
from torch import nn

import holdfast
from holdfast.analysis.curves import larger, over_seeds, shape
from holdfast.analysis.directions import REACH, Gaussian, Steepest, Towards, places
from holdfast.analysis.landscape import PRETRAINED, RANDOM, Grid, landscape, random_twin
from holdfast.analysis.landscape_finding import claim, finding
from holdfast.analysis.losses import Losses
from holdfast.analysis.moving import moving
from holdfast.errors import HoldfastError

SMALL = Grid(span=0.5, points=5, seeds=2, plane=3)


def alphas(count=201, span=1.0):
    """An even grid."""
    return [span * (2 * i / (count - 1) - 1) for i in range(count)]


@pytest.mark.parametrize(("curvature", "minimum"), [(3.0, 0.0), (0.5, 0.25), (20.0, -0.4)])
def test_a_parabola_has_its_known_figures(curvature, minimum):
    tau = 0.01
    found = shape(alphas(), [curvature / 2 * (a - minimum) ** 2 for a in alphas()], floor=1e-6, tau=tau)
    top = curvature / 2 * (1 + abs(minimum)) ** 2
    assert found.amplitude == pytest.approx(top)
    assert found.variation == pytest.approx(top + curvature / 2 * (1 - abs(minimum)) ** 2)
    assert found.excess_variation == 0
    assert found.sign_changes == 1
    assert found.roughness == pytest.approx(curvature)
    assert found.width == pytest.approx(2 * math.sqrt(2 * tau / curvature), rel=1e-2)
    assert not found.width_cut


def test_a_wave_has_its_known_figures():
    found = shape(alphas(2001), [math.sin(2 * math.pi * 3 * a) for a in alphas(2001)], floor=1e-6, tau=1.0)
    assert found.amplitude == pytest.approx(2, rel=1e-4)
    assert found.variation == pytest.approx(4 * 6, rel=1e-3)  # six periods, up and down by two each
    assert found.excess_variation == pytest.approx(24 - 2, rel=1e-3)
    assert found.sign_changes == 12
    assert found.width == pytest.approx(1, rel=1e-2)
    assert found.width_cut


def test_the_floor_and_points_that_are_not_finite():
    trembling = [abs(a) + 1e-3 * (-1) ** i for i, a in enumerate(alphas())]
    assert shape(alphas(), trembling, floor=0.05, tau=0.1).sign_changes == 0  # every step is below it
    assert shape(alphas(), trembling, floor=0.0, tau=0.1).sign_changes == 1
    assert shape(alphas(), [0.5 * loss for loss in trembling], floor=0.0, tau=0.1).sign_changes == 1
    assert shape([-1, 0, 1], [1.0, math.nan, 2.0], floor=0, tau=0.1) is None
    assert shape(alphas(5), [math.nan, 2.0, 1.0, 2.0, math.inf], floor=0, tau=0.1).amplitude == 1


def test_over_seeds_and_what_is_larger():
    some = [shape([-1, 0, 1], [h, 0.0, h], floor=0, tau=0.1) for h in (1.0, 2.0, 3.0)]
    assert over_seeds(some)["amplitude"] == {"mean": 2.0, "deviation": 1.0}
    assert over_seeds(some[:1])["amplitude"]["deviation"] is None
    assert larger([1.0, 1.1, 0.9], [3.0, 3.1, 2.9]) is False
    assert larger([3.0, 3.1, 2.9], [1.0, 1.1, 0.9]) is True
    assert larger([1.0, 3.0], [1.5, 2.7]) is None
    assert larger([1.0], [2.0, 2.0]) is None


class Everything(nn.Module):
    """A layer of each kind."""

    def __init__(self) -> None:
        super().__init__()
        from transformers.pytorch_utils import Conv1D

        self.linear, self.conv, self.transposed = nn.Linear(3, 4), nn.Conv2d(2, 3, (2, 3)), Conv1D(5, 3)
        self.embedding, self.norm = nn.Embedding(6, 4), nn.LayerNorm(4)


def filters(name, tensor):
    """Each filter of a tensor, written down kind by kind."""
    if name == "transposed.weight":
        return [tensor[:, i] for i in range(tensor.shape[1])]
    return [tensor[i] for i in range(tensor.shape[0])]


@pytest.mark.parametrize("beside", [False, True])
def test_filters_are_as_long_as_the_weights_own(beside):
    known = places(Everything().double())
    assert {place.name for place in known} == {"linear.weight", "conv.weight", "transposed.weight", "embedding.weight"}
    first = Gaussian(0)
    direction = Gaussian(1, beside=first) if beside else first
    for place in known:
        weight = place.parameter.detach()
        drawn, other = direction.at(place, weight), first.at(place, weight)
        for mine, theirs, own in zip(*(filters(place.name, t) for t in (drawn, weight, other)), strict=True):
            torch.testing.assert_close(mine.norm(), theirs.norm())
            if beside:
                assert abs(float((mine * own).sum())) < 1e-12
        assert torch.equal(drawn, direction.at(place, weight))  # made anew, and the same


@pytest.mark.parametrize("normalise", ["layer", "none"])
def test_other_normalisations(normalise):
    first, second = Gaussian(0, normalise), Gaussian(1, normalise, beside=Gaussian(0, normalise))
    drawn = torch.cat([first.at(p, p.parameter.detach()).flatten() for p in places(nn.Linear(300, 300))])
    for place in places(Everything().double()):
        weight = place.parameter.detach()
        one, other = first.at(place, weight), second.at(place, weight)
        if normalise == "layer":
            torch.testing.assert_close(one.norm(), weight.norm())
            torch.testing.assert_close(other.norm(), weight.norm())
        assert abs(float((one * other).sum())) < 1e-9
    if normalise == "none":
        assert float(drawn.std()) == pytest.approx(1, rel=0.02)


def batches(name):
    """A network's, with its loss."""
    network = NETWORKS[name]
    return network.build(), network.batches(), network.forward_loss


@pytest.mark.parametrize("name", ["mlp", "conv2d", "embedding", "llama", "gpt2", "bert-sequence"])
def test_any_model(name):
    model, data, forward_loss = batches(name)
    twin = NETWORKS[name].build()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()
    found = landscape(model, data, SMALL, random=twin, forward_loss=forward_loss)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    start = Losses(twin.eval(), data, forward_loss)()
    for curve in found.curves:  # the twin has the same weights, so both starts have the same curves
        assert curve.losses[2] == start
        same = next(c for c in found.of(PRETRAINED, curve.direction) if c.seed == curve.seed)
        assert curve.losses == same.losses
    assert len(found.curves) == 2 * (SMALL.seeds + 1)
    for plane in found.planes:
        assert plane.losses[1][1] == start
        assert plane.losses[1] == found.of(plane.start)[0].losses[::2]  # across is the first random line


def test_an_image_classifier_beside_its_random_twin():
    model = vit()
    data = [
        {"pixel_values": torch.randn(2, 2, 8, 8, dtype=torch.float64), "labels": torch.tensor([0, 2])}
        for _ in range(2)
    ]

    def forward_loss(model, batch):
        return model(batch["pixel_values"]).logits, batch["labels"]

    found = landscape(model, data, SMALL, forward_loss=forward_loss)
    assert set(found.losses) == {PRETRAINED, RANDOM}
    assert landscape(model, data, SMALL).of(PRETRAINED) == found.of(PRETRAINED)  # a transformers model needs none


def test_losses_are_those_of_weights_moved_by_hand():
    model, data, forward_loss = batches("mlp")
    found = landscape(model, data, SMALL, random=False, forward_loss=forward_loss, gradient=False)
    for curve, i in product(found.of(PRETRAINED), range(5)):
        moved = NETWORKS["mlp"].build()
        with torch.no_grad():
            for place in places(moved):
                step = Gaussian(curve.seed).at(place, place.parameter.detach().clone())
                place.parameter.add_(curve.alphas[i] * step)
        assert curve.losses[i] == pytest.approx(Losses(moved, data, forward_loss)(), rel=1e-12)


def test_a_loss_that_is_quadratic_has_its_own_curvature():
    """1/2 |W x - y|^2 per item: along d the second derivative is the mean of |D x|^2."""
    torch.manual_seed(1)
    model = nn.Linear(4, 3, bias=False).double()
    x, y = torch.randn(8, 4, dtype=torch.float64), torch.randn(8, 3, dtype=torch.float64)
    grid = Grid(points=41, seeds=3, plane=0)
    found = landscape(model, [(x, y)], grid, random=False, forward_loss=lambda m, b: (m(b[0]), b[1]))
    place = places(model)[0]
    items = Losses(model, [(x, y)], lambda m, b: (m(b[0]), b[1])).reader.read((x, y)).items
    for curve in found.of(PRETRAINED):
        direction = Gaussian(curve.seed).at(place, model.weight.detach())
        assert curve.shape.roughness == pytest.approx(float((x @ direction.T).square().sum()) / items, rel=1e-6)
        assert curve.shape.excess_variation == 0
    down = found.of(PRETRAINED, "gradient")[0].losses
    assert down[21] < down[20] < down[19]


def test_minus_the_gradient_is_autograds():
    model, data, forward_loss = batches("mlp")
    known = places(model)
    gradients = Losses(model, data, forward_loss).gradients({p.name: p.parameter for p in known})
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    items = sum(len(batch["labels"]) for batch in data)
    total = sum(nn.functional.cross_entropy(*forward_loss(model, batch), reduction="sum") for batch in data) / items
    total.backward()
    for place in known:
        torch.testing.assert_close(gradients[place.name], place.parameter.grad)
    steepest = Steepest(gradients, known)
    length = sum(float(steepest.at(p, p.parameter).square().sum()) for p in known) ** 0.5
    assert length == pytest.approx(REACH * sum(float(p.parameter.detach().square().sum()) for p in known) ** 0.5)


@pytest.mark.parametrize("stop", [None, RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_come_back_bit_by_bit(dtype, stop):
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
    model[0].requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    calls, flags = [], [parameter.requires_grad for parameter in model.parameters()]

    def forward_loss(model, batch):
        calls.append(not torch.equal(model[0].weight, before["0.weight"]))
        if stop is not None and len(calls) == 6:
            raise stop
        return model(batch[0]), batch[1]

    data = [(torch.randn(5, 4).to(dtype), torch.randint(3, (5,)))]
    with pytest.raises(stop) if stop else torch.no_grad():
        landscape(model, data, SMALL, random=False, forward_loss=forward_loss)
    assert any(calls)
    for key, value in model.state_dict().items():
        assert torch.equal(value.view(torch.uint8), before[key].view(torch.uint8))
    assert flags == [parameter.requires_grad for parameter in model.parameters()]


def test_weights_that_do_not_come_back_are_told():
    model = nn.Linear(3, 3)

    def spoil(weights):
        weights.kept[0].add_(1)

    with pytest.raises(HoldfastError, match="not those of before"), moving(model) as weights:
        spoil(weights)


def test_towards_the_tuned_weights():
    network = NETWORKS["gpt2"]  # whose layers store their weights the other way round
    model = get_peft_model(network.build(), LoraConfig(r=2, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    tuned = Losses(model.eval(), network.batches())()
    shifts = holdfast.shifts(model)
    found = landscape(model.unload(), network.batches(), replace(SMALL, span=1.0), tuned=shifts, random=False)
    curve = found.of(PRETRAINED, "tuned")[0]
    assert curve.losses[-1] == pytest.approx(tuned, rel=1e-5)
    assert curve.losses[2] == found.losses[PRETRAINED]
    assert f"to {tuned:.3f} nats at alpha = 1" in finding(found, {}).words
    with pytest.raises(HoldfastError, match="not in the model"):
        Towards(model, {"nowhere.weight": torch.zeros(2)}).check(places(network.build()))


def test_a_random_twin_is_of_its_seed():
    model = NETWORKS["llama"].build()
    one, same, other = (random_twin(model, seed) for seed in (0, 0, 1))
    differing = [not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert any(differing)
    assert next(one.parameters()).dtype == torch.float64
    assert [p.shape for p in one.parameters()] == [p.shape for p in model.parameters()]


def test_what_is_refused():
    model, data, forward_loss = batches("mlp")
    for grid in (Grid(points=4), Grid(points=3), Grid(plane=2), Grid(span=0.0), Grid(seeds=0), Grid(tau=math.nan)):
        with pytest.raises(HoldfastError):
            landscape(model, data, grid, forward_loss=forward_loss)
    with pytest.raises(HoldfastError, match="not a transformers model"):
        landscape(model, data, SMALL, forward_loss=forward_loss)
    with pytest.raises(HoldfastError, match="no batches"):
        landscape(model, [], SMALL, random=False, forward_loss=forward_loss)
    with pytest.raises(HoldfastError, match="normalise"):
        landscape(model, data, replace(SMALL, normalise="row"), random=False, forward_loss=forward_loss)
    adapted = get_peft_model(model, LoraConfig(target_modules=["0"]))
    with pytest.raises(HoldfastError, match="carries adapters"):
        landscape(adapted, data, SMALL, random=False, forward_loss=forward_loss)


def test_a_start_that_is_not_finite_is_refused():
    model, data, forward_loss = batches("mlp")
    with torch.no_grad():
        model[0].weight.fill_(math.nan)
    with pytest.raises(HoldfastError, match="nan"):
        landscape(model, data, SMALL, random=False, forward_loss=forward_loss)


def made(pretrained, random):
    """A landscape of these curves: alpha -> loss for each seed."""
    from holdfast.analysis.landscape import Curve, Landscape

    grid = Grid(points=101, seeds=3, plane=0)
    found = Landscape(grid, losses={PRETRAINED: 1.0, RANDOM: 2.0}, moved=10)
    for start, law in ((PRETRAINED, pretrained), (RANDOM, random)):
        for seed in range(3):
            places = grid.alphas(101)
            losses = [(1 + 0.01 * seed) * law(a) for a in places]
            curve = Curve(start, "gaussian", seed, places, losses, shape(places, losses, floor=1e-4, tau=0.1))
            found.curves.append(curve)
    return found


@pytest.mark.parametrize(
    ("pretrained", "random", "holds", "says"),
    [
        (lambda a: 3 * math.sin(20 * a), lambda a: 0.1 * a, True, "holds here"),
        (lambda a: 3 * a**2, lambda a: 0.1 * math.sin(20 * a), False, "the oscillation does not"),
        (lambda a: 0.1 * a**2, lambda a: 3 * a**2, False, "does not hold here"),
        (lambda a: a**2, lambda a: a**2 + 1, None, "can't be told"),
    ],
)
def test_the_claim_is_judged(pretrained, random, holds, says):
    found = made(pretrained, random)
    assert claim(found)["holds"] is holds
    assert says in finding(found, {"model": "m"}).words
