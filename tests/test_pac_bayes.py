"""PAC-Bayes: every bound and divergence by hand, coverage where the true risk is known, noise, risk, certificates."""

import itertools
import math

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from holdfast.analysis.pac_bayes.bounds import (
    BOUNDS,
    bernstein,
    kl_bernoulli,
    kl_inverse,
    linear,
    linear_at,
    mcallester,
    sampled,
    seeger,
)
from holdfast.analysis.pac_bayes.certificate import certify, delta_of_draws
from holdfast.analysis.pac_bayes.divergence import scaled, support, support_of_all
from holdfast.analysis.pac_bayes.posterior import centre, drawn, noise_scale, put, stochastic_risk
from holdfast.analysis.pac_bayes.risk import Losses
from holdfast.analysis.pac_bayes.shape import Isotropic, Laplace, distance
from holdfast.analysis.pac_bayes.sparse import sparse_space
from holdfast.curvature.diagonal import Diagonal
from holdfast.curvature.kronecker import Kronecker
from holdfast.errors import HoldfastError
from holdfast.sift import SiftConfig
from holdfast.sift.selection import select as sift_select

# Bounds


def test_bounds_by_hand():
    # r 0.1, KL 5, n 100, delta 0.05: ln(2 sqrt(100) / 0.05) = ln 400
    c = (5 + math.log(400)) / 100
    assert mcallester(0.1, 5, 100, 0.05) == pytest.approx(0.1 + math.sqrt((5 + math.log(400)) / 200))
    p = seeger(0.1, 5, 100, 0.05)
    assert p > 0.1
    assert 0.1 * math.log(0.1 / p) + 0.9 * math.log(0.9 / (1 - p)) == pytest.approx(c)
    assert linear_at(0.1, 5, 100, 0.05, rate=50) == pytest.approx(0.1 + (5 + math.log(20)) / 50 + 50 / 800)
    assert sampled(0.1, 100, 0.05) == pytest.approx(kl_inverse(0.1, math.log(40) / 100))
    by_hand = 0.1 + math.sqrt(2 * 0.04 * math.log(40) / 100) + 7 * 1.1 * math.log(40) / (3 * 99)
    assert bernstein(0.1, 0.04, 100, 0.05, 1.1) == pytest.approx(by_hand)


def test_a_risk_of_zero_by_hand():
    # kl(0, p) = -ln(1 - p)
    assert kl_inverse(0.0, 0.3) == pytest.approx(1 - math.exp(-0.3))
    assert seeger(0.0, 0.0, 400, 0.1) == pytest.approx(1 - (2 * 20 / 0.1) ** (-1 / 400))


@pytest.mark.parametrize("q", [0.0, 1e-6, 0.2, 0.5, 0.97, 1.0])
@pytest.mark.parametrize("c", [0.0, 1e-6, 0.05, 1.0, 40.0])
def test_kl_inverse_inverts_and_never_falls_short(q, c):
    p = kl_inverse(q, c)
    assert q <= p <= 1
    assert p == 1.0 or kl_bernoulli(q, p) >= c * (1 - 1e-9) - 1e-12
    assert kl_bernoulli(q, min(max(q, p - 1e-6), 1.0)) <= c + 1e-12
    assert p <= q + math.sqrt(c / 2) + 1e-8  # Pinsker


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds_grow_with_risk_and_divergence_and_shrink_with_examples(name):
    bound = BOUNDS[name]
    for more, less in itertools.pairwise([(0.4, 9, 50), (0.3, 9, 50), (0.3, 4, 50), (0.3, 4, 500)]):
        assert bound(*more, 0.05) > bound(*less, 0.05)
    assert bound(0.3, 4, 500, 0.01) > bound(0.3, 4, 500, 0.1)
    assert bound(2 * 0.3, 4, 500, 0.05, 2.0) == pytest.approx(2 * bound(0.3, 4, 500, 0.05))  # losses in [0, 2]
    assert seeger(0.3, 4, 500, 0.05) <= mcallester(0.3, 4, 500, 0.05)


def test_the_grid_of_the_linear_bound_costs_little():
    for divergence in (0, 1, 30, 200):
        best = min(linear_at(0.3, divergence, 500, 0.05, rate) for rate in range(10, 5000, 5))
        assert best <= linear(0.3, divergence, 500, 0.05) <= best + 0.04


@pytest.mark.parametrize(
    ("arguments", "says"),
    [((0.3, 1, 7, 0.05), "too few"), ((1.3, 1, 70, 0.05), "a risk of 1.3"), ((0.3, -1, 70, 0.05), "KL -1"),
     ((0.3, 1, 70, 1.0), "delta 1.0")],
)  # fmt: skip
def test_what_no_bound_takes_is_refused(arguments, says):
    for bound in BOUNDS.values():
        with pytest.raises(HoldfastError, match=says):
            bound(*arguments)


def threshold_world(generator, n):
    """x uniform, y = [x > 1/2] flipped with probability 0.1; losses of [x > theta] on a grid of theta: (n, thetas)."""
    x = torch.rand(n, generator=generator, dtype=torch.float64)
    y = (x > 0.5) ^ (torch.rand(n, generator=generator) < 0.1)
    return ((x[:, None] > THETAS) != y[:, None]).double()


THETAS = torch.linspace(0, 1, 41, dtype=torch.float64)
TRUE = 0.1 + 0.8 * (THETAS - 0.5).abs()


@pytest.mark.parametrize("name", BOUNDS)
def test_coverage_where_the_true_risk_is_known(name):
    """Gibbs posteriors that depend on the sample: the bound fails no more often than delta, and is not trivial."""
    generator, delta, n = torch.Generator().manual_seed(0), 0.1, 60
    prior = torch.full_like(THETAS, 1 / len(THETAS))
    failures, values, runs = 0, [], 400
    for _ in range(runs):
        mean = threshold_world(generator, n).mean(0)
        posterior = torch.softmax(-n * mean, 0)
        kl = float((posterior * (posterior / prior).log()).sum())
        bound = BOUNDS[name](float(posterior @ mean), kl, n, delta)
        failures += float(posterior @ TRUE) > bound
        values.append(bound)
    assert failures <= delta * runs
    assert max(values) < 0.75


def test_coverage_of_sampling():
    """Both estimates of an expectation from few draws fail no more often than delta."""
    generator, delta, runs, draws = torch.Generator().manual_seed(0), 0.1, 1000, 30
    found = torch.rand(runs, draws, generator=generator, dtype=torch.float64).pow(3)  # mean 1/4
    for bound in (
        lambda one: sampled(float(one.mean()), draws, delta),
        lambda one: bernstein(float(one.mean()), float(one.var()), draws, delta, 1.0),
    ):
        assert sum(bound(one) < 0.25 for one in found) <= delta * runs


# Divergences


def test_divergence_of_one_dimension_by_hand():
    # KL(N(1, 2^2) || N(0, 3^2)) = ln(3/2) + (4 + 1) / 18 - 1/2
    assert scaled(1, 2.0, 3.0, 1.0) == pytest.approx(math.log(1.5) + 5 / 18 - 0.5)
    assert scaled(7, 0.3, 0.3, 2.0) == pytest.approx(2.0 / (2 * 0.09))
    assert scaled(7, 0.3, 0.3, 0.0) == 0.0
    with pytest.raises(HoldfastError, match="standard deviations"):
        scaled(7, 0.0, 1.0, 1.0)


def test_divergences_agree_with_torch():
    torch.manual_seed(0)
    shift = torch.randn(9).double()
    q, p = torch.distributions.Normal(shift, 0.5), torch.distributions.Normal(torch.zeros(9).double(), 0.7)
    by_torch = float(torch.distributions.kl_divergence(q, p).sum())
    assert scaled(9, 0.5, 0.7, float(shift.square().sum())) == pytest.approx(by_torch)


def test_support_by_hand_and_below_its_bound():
    assert support([(10, 3), (6, 1)]) == pytest.approx(math.log(120) + math.log(6))
    assert support([(10, 0), (5, 5)]) == pytest.approx(0.0, abs=1e-9)
    for d, k in ((100, 1), (10**6, 10**4), (50, 50)):
        assert support([(d, k)]) <= k * math.log(math.e * d / k) + 1e-9
    assert support_of_all([(4, 2), (3, 1)]) == pytest.approx(math.log(math.comb(7, 3)) + math.log(8))


def test_every_choice_over_all_tensors_has_its_share_of_the_prior():
    """Counted one by one: the shares exp(-nats) of all ways to choose within two tensors add up to at most 1."""
    sizes = (4, 3)
    ways = itertools.product(*(range(size + 1) for size in sizes))
    number = {ks: math.prod(map(math.comb, sizes, ks)) for ks in ways}
    shares = sum(n * math.exp(-support_of_all(zip(sizes, ks, strict=True))) for ks, n in number.items())
    assert shares == pytest.approx(1.0)
    fixed = number[2, 1] * math.exp(-support(zip(sizes, (2, 1), strict=True)))
    assert fixed == pytest.approx(1.0)


def curvatures():
    torch.manual_seed(0)
    a, b = torch.randn(3, 5).double(), torch.randn(4, 6).double()
    return {
        "diagonal": Diagonal(torch.rand(3, 4).double()),
        "kronecker": Kronecker.of(b @ b.T / 6, a @ a.T / 5),
    }


def dense(curvature):
    """C as a matrix on vectors of (3, 4)."""
    return torch.stack([curvature.apply(e.reshape(3, 4)).flatten() for e in torch.eye(12).double()])


@pytest.mark.parametrize("kind", ["diagonal", "kronecker"])
def test_a_laplace_prior_is_the_dense_gaussian(kind):
    curvature = curvatures()[kind]
    shape = Laplace({"w": curvature}, {"w": lambda tensor: tensor}, damping=0.2)
    c = dense(curvature)
    precision = c / (c.trace() / 12) + 0.2 * torch.eye(12)
    one, other = torch.randn(3, 4).double(), torch.randn(3, 4).double()
    delta = (one - other).flatten()
    assert distance(shape, {"w": one}, {"w": other}) == pytest.approx(float(delta @ precision @ delta))
    s, s0 = 0.3, 0.5
    q, p = (
        torch.distributions.MultivariateNormal(mean.flatten(), precision_matrix=precision / scale**2)
        for mean, scale in ((one, s), (other, s0))
    )
    by_torch = float(torch.distributions.kl_divergence(q, p))
    assert scaled(12, s, s0, distance(shape, {"w": one}, {"w": other})) == pytest.approx(by_torch)
    generator = torch.Generator().manual_seed(0)
    noise = torch.stack([shape.noise("w", one, generator).flatten() for _ in range(20_000)])
    torch.testing.assert_close(noise.T @ noise / len(noise), precision.inverse(), atol=0.1, rtol=0.1)


def test_a_laplace_prior_sees_transposed_tensors_and_leaves_others_isotropic():
    shape = Laplace({"w": curvatures()["kronecker"]}, {"w": lambda tensor: tensor.T}, damping=0.2)
    stored = torch.randn(4, 3).double()
    plain = Laplace({"w": curvatures()["kronecker"]}, {"w": lambda tensor: tensor}, damping=0.2)
    assert shape.distance("w", stored) == pytest.approx(plain.distance("w", stored.T))
    one, other = (s.noise("w", t, torch.Generator().manual_seed(3)) for s, t in ((shape, stored), (plain, stored.T)))
    torch.testing.assert_close(one, other.T)
    assert shape.distance("other", stored) == pytest.approx(1.2 * float(stored.square().sum()))
    with pytest.raises(HoldfastError, match="curvature is zero"):
        Laplace({"w": Diagonal(torch.zeros(2, 2))}, {"w": lambda tensor: tensor})


# Noise and risk


def quadratic():
    """A parameter whose risk is |w|^2 / 2: under noise of scale s around 0 it rises by d s^2 / 2."""
    weight = nn.Parameter(torch.zeros(4000))
    return {"w": weight}, lambda: float(weight.detach().double().square().sum() / 2)


def test_noise_scale_is_where_the_rise_meets_the_tolerance():
    parameters, risk = quadratic()
    around = centre(parameters)
    scale = noise_scale(risk, parameters, around, Isotropic(), tolerance=0.5, draws=8, rounds=16)
    assert scale == pytest.approx(math.sqrt(2 * 0.5 / 4000), rel=0.05)
    torch.testing.assert_close(parameters["w"].detach(), around["w"], rtol=0, atol=0)
    assert noise_scale(risk, parameters, around, Isotropic(), tolerance=2.0) > scale


def test_draws_are_taken_back_to_the_bit():
    parameters = {"w": nn.Parameter(torch.randn(100).bfloat16())}
    around = centre(parameters)

    def interrupted():
        with drawn(parameters, around, Isotropic(), 0.1, torch.Generator()):
            assert not torch.equal(parameters["w"], around["w"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    torch.testing.assert_close(parameters["w"].detach(), around["w"], rtol=0, atol=0)


def test_a_draw_of_low_precision_is_rounded_once():
    """A function of the Gaussian draw alone, so that the prior can be rounded alike and KL can only fall."""
    parameters = {"w": nn.Parameter(torch.randn(1000, generator=torch.Generator().manual_seed(1)).bfloat16())}
    around = centre(parameters)
    noise = torch.randn(1000, generator=torch.Generator().manual_seed(2))
    with drawn(parameters, around, Isotropic(), 0.7, torch.Generator().manual_seed(2)):
        assert torch.equal(parameters["w"], (around["w"].float() + 0.7 * noise).bfloat16())


def test_distances_of_low_precision_are_not_rounded():
    one, other = torch.tensor([1.0]).bfloat16(), torch.tensor([2.0**-10]).bfloat16()
    assert distance(Isotropic(), {"w": one}, {"w": other}) == pytest.approx((1 - 2.0**-10) ** 2, rel=1e-9)


def classifier():
    torch.manual_seed(0)
    net = nn.Linear(5, 3)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(200, 5, generator=generator)
    return net, [(x, y) for x, y in zip(inputs, (inputs[:, :3]).argmax(1), strict=True)]


def by_rows(model, batch):
    return model(batch[0]), batch[1]


def test_losses_of_a_classifier_equal_the_slow_ones():
    net, examples = classifier()
    inputs, labels = torch.stack([x for x, _ in examples]), torch.stack([y for _, y in examples])
    wrong = Losses(forward_loss=by_rows).of(net, examples)
    torch.testing.assert_close(wrong, (net(inputs).argmax(1) != labels).double())
    nats = Losses("nats", ceiling=1.5, forward_loss=by_rows, batch_size=7).of(net, examples)
    slow = nn.functional.cross_entropy(net(inputs), labels, reduction="none").clamp(max=1.5) / 1.5
    torch.testing.assert_close(nats, slow.detach().double(), rtol=1e-5, atol=1e-6)


def test_the_loss_of_a_document_is_the_mean_of_its_tokens():
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=30, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                         num_attention_heads=2, num_key_value_heads=2)  # fmt: skip
    model = LlamaForCausalLM(config)
    rows = [{"input_ids": (ids := torch.randint(0, 30, (length,))), "labels": ids} for length in (9, 4, 7)]
    found = Losses(batch_size=2).of(model, rows)
    for one, row in zip(found, rows, strict=True):
        logits = model(row["input_ids"][None]).logits[0, :-1]
        wrong = (logits.argmax(1) != row["input_ids"][1:]).double().mean()
        assert float(one) == pytest.approx(float(wrong))
    with pytest.raises(HoldfastError, match="no scored item"):
        Losses().of(model, [{"input_ids": torch.tensor([1, 2]), "labels": torch.tensor([-100, -100])}])


@pytest.mark.parametrize("loss", [{"kind": "accuracy"}, {"kind": "nats", "ceiling": 0.0}])
def test_unknown_losses_are_refused(loss):
    with pytest.raises(HoldfastError, match="error or nats"):
        Losses(**loss)


def test_regressions_have_no_bounded_loss():
    with pytest.raises(HoldfastError, match="one of classes"):
        Losses(forward_loss=lambda m, b: (m(b[0]), b[1])).of(nn.Linear(5, 1), [(torch.randn(5), torch.randn(1))])


@pytest.mark.parametrize("scale", [1e-6, 0.3, 2.0])
def test_stochastic_risk_covers_the_mean_over_many_draws(scale):
    net, examples = classifier()
    parameters, losses = dict(net.named_parameters()), Losses(forward_loss=by_rows, batch_size=200)
    around = centre(parameters)
    generator, slow = torch.Generator().manual_seed(9), []
    for _ in range(300):
        with drawn(parameters, around, Isotropic(), scale, generator):
            slow.append(float(losses.of(net, examples).mean()))
    truth = sum(slow) / len(slow)
    found = stochastic_risk(net, parameters, around, Isotropic(), scale, examples, losses, draws=400, delta=0.01)
    assert found.mean == pytest.approx(truth, abs=0.06)
    assert truth <= found.most <= found.mean + 0.25
    assert found.centre == pytest.approx(float(losses.of(net, examples).mean()))
    for before, after in zip(around.values(), net.parameters(), strict=True):
        torch.testing.assert_close(after.detach(), before, rtol=0, atol=0)


# Certificates


def trained_classifier(examples, net):
    inputs, labels = torch.stack([x for x, _ in examples]), torch.stack([y for _, y in examples])
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs), labels).backward()
        optimizer.step()


def test_a_certificate_of_a_classifier_holds_and_says_something():
    """Train on half, certify on the other: non-vacuous, above the true risk, and worse from a farther prior."""
    net, examples = classifier()
    losses, parameters = Losses(forward_loss=by_rows, batch_size=200), dict(net.named_parameters())
    start = centre(parameters)
    trained_classifier(examples[:100], net)
    half = centre(parameters)
    shape, second = Isotropic(), examples[100:]
    scale = noise_scale(
        lambda: float(losses.of(net, examples[:100]).mean()), parameters, half, shape, tolerance=0.02, rounds=10
    )
    risk = stochastic_risk(
        net, parameters, half, shape, scale, second, losses, draws=500, delta=delta_of_draws(0.05)
    )  # fmt: skip
    near = certify("half", half, half, shape, scale, risk, len(second), delta=0.05)
    far = certify("start", half, start, shape, scale, risk, len(second), delta=0.05)
    paid = certify("half", half, half, shape, scale, risk, len(second), delta=0.05, support=5.0)
    assert near.divergence == 0.0
    assert not near.vacuous
    assert near.value < paid.value < 1
    assert far.value > near.value
    assert far.divergence == pytest.approx(
        sum(float((half[k] - start[k]).square().sum()) for k in half) / (2 * scale**2), rel=1e-5
    )
    for one in (near, far, paid):
        assert sum(one.parts.values()) == pytest.approx(one.value)
        assert min(one.parts.values()) >= 0
    fresh = torch.randn(5000, 5, generator=torch.Generator().manual_seed(77))
    put(parameters, half)
    assert float((net(fresh).argmax(1) != fresh[:, :3].argmax(1)).double().mean()) < near.value


def test_a_far_prior_is_called_vacuous_and_other_tensors_are_refused():
    net, examples = classifier()
    losses, parameters = Losses(forward_loss=by_rows, batch_size=200), dict(net.named_parameters())
    here = centre(parameters)
    risk = stochastic_risk(net, parameters, here, Isotropic(), 1e-3, examples, losses, draws=50, delta=0.01)
    there = {name: tensor + 5 for name, tensor in here.items()}
    far = certify("far", here, there, Isotropic(), 1e-3, risk, 200, delta=0.05)
    assert far.vacuous
    assert far.value == pytest.approx(1.0)
    with pytest.raises(HoldfastError, match="other tensors"):
        certify("far", here, {"weight": here["weight"]}, Isotropic(), 1e-3, risk, 200, delta=0.05)


def test_a_sparse_adapter_pays_for_the_choice_of_its_entries():
    net, examples = classifier()
    model = nn.Sequential(net)
    sifted = get_peft_model(model, SiftConfig(target_modules=["0"], density=0.4, score="random", decay_to="zero"))
    sift_select(sifted)
    space = sparse_space(sifted)
    assert space.sizes == [(15, 6)]
    assert space.support == pytest.approx(math.log(math.comb(15, 6)))
    assert sparse_space(net) is None
    losses, before = Losses(forward_loss=by_rows), net.weight.detach().clone()
    with torch.no_grad():
        for parameter in space.parameters.values():
            parameter += 0.5
    sifted(torch.zeros(1, 5))
    moved = net.weight.detach() - before
    here = centre(space.parameters)
    assert distance(Isotropic(), here, space.start) == pytest.approx(float(moved.square().sum()), rel=1e-5)
    found = losses.of(sifted, examples)
    with drawn(space.parameters, here, Isotropic(), 5.0, torch.Generator().manual_seed(0)):
        assert not torch.equal(losses.of(sifted, examples), found)  # the noise reaches the tensor
        sifted(torch.zeros(1, 5))
        assert int((net.weight.detach() != before + moved).sum()) == 6
    torch.testing.assert_close(losses.of(sifted, examples), found, rtol=0, atol=0)


def test_a_sparse_adapter_pays_more_where_the_data_shared_its_entries_out():
    def sifted(**asked):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 4))
        made = get_peft_model(model, SiftConfig(target_modules=["0"], score="random", density=0.4, **asked))
        sift_select(made)
        return sparse_space(made)

    own, shared = sifted(), sifted(scope="global")
    assert own.sizes == shared.sizes == [(15, 6)]
    assert shared.support == pytest.approx(math.log(math.comb(15, 6)) + math.log(16))
    assert shared.support > own.support
    assert own.alone
    assert not sifted(modules_to_save=["1"]).alone
