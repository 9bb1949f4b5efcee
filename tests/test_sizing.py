"""A budget of parameters: the size that it sets is the largest within it, counted on a copy without weights."""

import copy

import pytest
import torch
from cli_runs import make_model
from torch import nn

from holdfast import HoldfastError, catalogue
from holdfast.targets import ALL_LINEAR
from holdfast.tuners.amount import Amount
from holdfast.tuners.options import chosen
from holdfast.tuners.sizing import by_component, largest, solve, trained
from holdfast.tuners.weightless import weightless

SIZED = [name for name in catalogue.names("tuner") if catalogue.tuner(name).sizes]
BUDGETS = (900, 2_345, 9_000)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("method", SIZED)
def test_the_largest_size_within_the_budget(method, budget):
    tuner = chosen(catalogue.tuner(method), {})
    count = lambda form, size: trained(form.sized(size).prepare(make_model(300), ALL_LINEAR))  # noqa: E731
    forms = [tuner, *tuner.smaller()]
    if not tuner.counts and (least := count(forms[-1], forms[-1].least)) > budget:
        with pytest.raises(HoldfastError, match=f"{least:,} already at its smallest"):
            solve(make_model(300), tuner, ALL_LINEAR, budget)
        return
    found = solve(make_model(300), tuner, ALL_LINEAR, budget)
    size = getattr(found.options, tuner.sizes[0]) or 0
    assert count(found, size) <= budget < count(found, size + 1)
    if tuner.counts:
        assert count(found, size) == budget


@pytest.mark.parametrize("method", [name for name in catalogue.names("tuner") if name not in (*SIZED, "bitfit")])
def test_what_has_no_size_says_what_it_trains(method):
    tuner = chosen(catalogue.tuner(method), {})
    count = trained(tuner.prepare(make_model(300), ALL_LINEAR))
    with pytest.raises(HoldfastError, match=f"trains {count:,} parameters of this model, and has no size"):
        solve(make_model(300), tuner, ALL_LINEAR, 1_000)


def test_a_convadapter_below_its_gate():
    """The first of the smaller gates that fits, the mixing with what is left, and no gate at all in the end."""
    tuner = chosen(catalogue.tuner("convadapter"), {"se_reduction": 2})  # said, so that it is kept
    blocks, widths = 2, 32  # of the model
    without = blocks * (8 * widths + 5 * widths // 2)
    gate = lambda reduction: blocks * 2 * widths * (widths // reduction)  # noqa: E731
    with pytest.raises(HoldfastError, match=f"trains {without + gate(2):,} already at its smallest"):
        solve(make_model(300), tuner, ALL_LINEAR, without + gate(2) - 1)
    tuner = chosen(catalogue.tuner("convadapter"), {})
    for budget, reduction in ((without + gate(16), 16), (without + gate(16) - 1, 32), (without + gate(32) - 1, None)):
        found = solve(make_model(300), tuner, ALL_LINEAR, budget)
        assert (found.options.se_reduction, found.options.mixing) == (reduction, None)
    with pytest.raises(HoldfastError, match=f"{without:,} already"):
        solve(make_model(300), tuner, ALL_LINEAR, without - 1)
    with pytest.raises(HoldfastError, match=f"{without + gate(16):,} already"):
        solve(make_model(300), chosen(catalogue.tuner("convadapter"), {"preset": "paper"}), ALL_LINEAR, without)


def test_what_is_set_by_hand_stays():
    tuner = chosen(catalogue.tuner("prefix"), {"hidden": 4})
    assert solve(make_model(300), tuner, ALL_LINEAR, 2_000).options.hidden == 4


def test_counting_leaves_the_model_alone():
    model = make_model(300)
    before, names = copy.deepcopy(model.state_dict()), [name for name, _ in model.named_modules()]
    solve(model, chosen(catalogue.tuner("lora"), {}), ALL_LINEAR, 2_000)
    assert [name for name, _ in model.named_modules()] == names
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_copy_without_weights():
    model = make_model(300)  # its embedding and its output layer are tied
    model.register_buffer("steps", torch.zeros(3))
    found = weightless(model)
    assert {tensor.device.type for tensor in (*found.parameters(), *found.buffers())} == {"meta"}
    shapes = [{name: tensor.shape for name, tensor in one.named_parameters()} for one in (model, found)]
    assert shapes[0] == shapes[1]
    assert found.lm_head.weight is found.model.embed_tokens.weight
    assert type(found) is type(model)
    assert {tensor.device.type for tensor in model.parameters()} == {"cpu"}


@pytest.mark.parametrize("budget", range(3, 40))
@pytest.mark.parametrize("least", [0, 1])
def test_search(budget, least):
    asked = []

    def count(size):
        asked.append(size)
        return 3 + 2 * size if size else 3 - least

    if count(least) > budget:
        return
    found = largest(count, budget, least)
    assert count(found) <= budget < count(found + 1)
    assert len(asked) < 16


def test_a_count_that_grows_no_more_ends_the_search():
    assert largest(lambda size: min(size, 5), 100) >= 5


def test_components():
    tuner = chosen(catalogue.tuner("dora"), {}, rank=2)
    model = tuner.prepare(make_model(300), ALL_LINEAR)
    assert by_component(model, tuner) == {"lora_A": 1_024, "lora_B": 1_152, "lora_magnitude_vector": 576}
    blocks = {"bottleneck": {"down", "up"}, "convadapter": {"norm", "convolutions", "squeeze-excitation"}}
    for name, parts in blocks.items():
        tuner = chosen(catalogue.tuner(name), {})
        model = tuner.prepare(make_model(300), ALL_LINEAR)
        found = by_component(model, tuner)
        assert set(found) == parts
        assert sum(found.values()) == trained(model)
    for hidden, parts in ((None, {"prefix"}), (4, {"prefix", "network"})):
        tuner = chosen(catalogue.tuner("prefix"), {"hidden": hidden})
        model = tuner.prepare(make_model(300), ALL_LINEAR)
        assert set(by_component(model, tuner)) == parts
    full = chosen(catalogue.tuner("full"), {})
    assert by_component(full.prepare(nn.Sequential(nn.Linear(3, 4)), "0"), full) == {"weight": 12}


@pytest.mark.parametrize(
    ("said", "count"),
    [("0.5%", 5), ("0.29%", 2), (".5 %", 5), ("100%", 1000), (120, 120), ("1_200", 1200), ("1,200", 1200)],
)
def test_amounts(said, count):
    assert Amount.parse(said).of(1_000) == count


def test_a_share_is_exact():
    assert Amount.parse("29%").of(100) == 29  # 0.29 * 100 is 28.999...


@pytest.mark.parametrize("said", ["0%", "101%", "0", -3, "half", "0.5", "", True, "1e5", "5%%"])
def test_amounts_that_are_none(said):
    with pytest.raises(HoldfastError, match=r"such as 0\.5%"):
        Amount.parse(said)
