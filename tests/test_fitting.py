"""Fitting models in place: what is written, what it costs then, and what is refused."""

import copy
from typing import Any

import pytest
import torch
from adapted import adapt, effective_shifts, lora, move, pissa, sift
from cli_runs import make_model
from laws import EXACT, dense
from networks import NETWORKS
from peft import LoraConfig, get_peft_model
from penalising import anchor_of
from torch import Tensor, nn
from torch.testing import assert_close

import holdfast
from holdfast import Anchor, HoldfastError, catalogue
from holdfast.curvature.curvature import Coupled, Curvature
from holdfast.fitting.moving import Moving
from holdfast.fitting.way import Way
from holdfast.fitting.ways import WAYS
from holdfast.penalties.quadratic import Penalty

FLAVOURS = ["lora", "rslora", "lora-fa", "patterns", "two", "sift", "sifts"]
PLACES = ["mlp", "conv2d", "embedding", "llama", "gpt2", "bert-tokens"]
FILTERED = [k for k in catalogue.names("curvature") if catalogue.curvature(k).spectrum is not Curvature.spectrum]
COUPLED = [k for k in catalogue.names("curvature") if issubclass(catalogue.curvature(k), Coupled)]
each_place = pytest.mark.parametrize("name", PLACES)


def moved(flavour: str, name: str) -> Any:
    torch.manual_seed(0)  # of LoRA's random half
    return move(adapt(flavour, NETWORKS[name]))


def deltas(model: nn.Module, name: str) -> dict[str, Tensor]:
    """Each layer's shift, read through PEFT's own merging."""
    return effective_shifts(model, NETWORKS[name])


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def half(model: nn.Module, anchor: Anchor, **options: Any) -> float:
    """Half of the forecast, as a budget."""
    return Moving(model, anchor, **options).forecast() / 2


@pytest.mark.parametrize("flavour", FLAVOURS)
@each_place
def test_a_factor_for_each_layer_is_written_exactly(flavour: str, name: str) -> None:
    model = moved(flavour, name)
    before, born = deltas(model, name), state(model)
    moving = Moving(model, anchor_of(name, "kronecker"))
    factors = {layer: 0.1 + 0.2 * number for number, layer in enumerate(moving.moves)}
    moving.scale(factors)
    assert_close(deltas(model, name), {n: factors[n] * delta for n, delta in before.items()}, **EXACT)
    moving.scale(0.0)
    assert_close(deltas(model, name), {n: torch.zeros_like(delta) for n, delta in before.items()}, rtol=0, atol=0)
    moving.scale(1.0)
    assert all(torch.equal(tensor, born[key]) for key, tensor in model.state_dict().items())


@each_place
def test_a_wholly_tuned_layer_is_written_exactly(name: str) -> None:
    reference = holdfast.snapshot(NETWORKS[name].build())
    model = moved("full", name)
    before, born = deltas(model, name), state(model)
    moving = Moving(model, anchor_of(name, "kronecker"), reference)
    assert set(moving.moves) == set(before)
    moving.scale(0.3)
    assert_close(deltas(model, name), {n: 0.3 * delta for n, delta in before.items()}, **EXACT)
    moving.scale(0.0)
    assert all(torch.equal(holdfast.snapshot(model)[layer], weight) for layer, weight in reference.items())
    moving.scale(1.0)
    assert all(torch.equal(tensor, born[key]) for key, tensor in model.state_dict().items())


@each_place
@pytest.mark.parametrize("flavour", ["lora", "full", "sift"])
def test_another_shift_is_written_as_near_as_the_rank_allows(flavour: str, name: str) -> None:
    reference = holdfast.snapshot(NETWORKS[name].build())
    model = moved(flavour, name)
    moving = Moving(model, anchor_of(name, "kronecker"), reference if flavour == "full" else None)
    wanted = {n: torch.randn(move.shift().shape, dtype=torch.float64) for n, move in moving.moves.items()}
    lost = {n: move.put(wanted[n]) for n, move in moving.moves.items()}
    for layer, delta in deltas(model, name).items():
        away = float((delta - wanted[layer]).square().sum() / wanted[layer].square().sum())
        assert lost[layer] == pytest.approx(away, abs=1e-12)
        rank = torch.linalg.matrix_rank(delta)
        if flavour == "lora":
            values = torch.linalg.svdvals(wanted[layer])
            best = float(values[rank:].square().sum() / values.square().sum())
            assert away == pytest.approx(best, abs=1e-12)  # Eckart-Young
            moving.moves[layer].put(delta)
            assert_close(deltas(model, name)[layer], delta, **EXACT)
        elif flavour == "sift":
            assert_close(torch.where(delta != 0, delta, wanted[layer]), wanted[layer], **EXACT)  # all that it can hold
            assert 0 < away < 1
        else:
            assert away < 1e-20
    moving.scale(1.0)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("kind", [kind for kind in FILTERED if catalogue.curvature(kind).forecasts])
@pytest.mark.parametrize("flavour", ["lora", "full", "sift"])
def test_the_forecast_is_the_budget(how: str, kind: str, flavour: str) -> None:
    reference = holdfast.snapshot(NETWORKS["llama"].build()) if flavour == "full" else None
    model, anchor = moved(flavour, "llama"), anchor_of("llama", kind)
    budget = half(model, anchor, reference=reference)
    found = holdfast.fit(model, anchor, budget, how, reference=reference)
    again = Moving(model, anchor, reference).forecast()
    assert found.forecast_after == again
    assert again == pytest.approx(budget, rel=1e-3 if how == "project" else 1e-7)
    assert found.steered_by == "forecast"
    assert found.changed
    assert set(found.factors) == set(found.prices_before) == set(found.prices_after)


@pytest.mark.parametrize("kind", COUPLED)
def test_coupled_curvatures_are_held_by_factors(kind: str) -> None:
    anchor = anchor_of("llama", kind)
    for how in ("scale", "layers"):
        model = moved("lora", "llama")
        budget = half(model, anchor)
        found = holdfast.fit(model, anchor, budget, how)
        assert Penalty(model, anchor).predicted_forgetting == pytest.approx(budget, rel=1e-6)
        assert all(0 <= factor <= 1 for factor in found.factors.values())
        assert (len(set(found.factors.values())) == 1) == (how == "scale")
    with pytest.raises(HoldfastError, match="no eigenbasis"):
        holdfast.fit(moved("lora", "llama"), anchor, budget, "project")


@pytest.mark.parametrize("kind", COUPLED)
def test_the_coupling_is_the_price_of_any_factors(kind: str) -> None:
    moving = Moving(moved("lora", "llama"), anchor_of("llama", kind))
    form = moving.coupling()
    for seed in range(3):
        factors = torch.rand(len(form), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        moving.scale(dict(zip(moving.moves, factors.tolist(), strict=True)))
        assert moving.forecast() == pytest.approx(float(factors @ form @ factors), rel=1e-9)


@pytest.mark.parametrize("kind", [*FILTERED, "samples"])
def test_the_filter_of_entries_is_the_minimum_among_them(kind: str) -> None:
    """Against the dense system (w I + mu C_II) v' = w v of each layer, for the mu that the budget asks for."""
    model, anchor = moved("sift", "mlp"), anchor_of("mlp", kind)
    moving = Moving(model, anchor)
    born = {name: m.shift().matrix().detach() for name, m in moving.moves.items()}
    worths = {name: float(number + 1) for number, name in enumerate(born)}
    budget = moving.forecast() / 3
    WAYS["project"](moving, worths).aim(budget)
    assert moving.forecast() == pytest.approx(budget, rel=1e-3)
    multipliers = []
    for name, delta in born.items():
        left, form = moving.shift(name).matrix().detach(), dense(anchor.curvatures[name])
        weight = worths[name] / float(delta.square().sum())
        force = torch.where(delta.flatten() != 0, form @ left.flatten(), 0.0) / weight
        gone = (delta - left).flatten()
        multiplier = float(gone @ force / (force @ force))
        assert_close(gone, multiplier * force, rtol=1e-6, atol=1e-9 * float(delta.abs().max()))
        multipliers.append(multiplier)
    assert multipliers == pytest.approx([multipliers[0]] * len(born), rel=1e-6)
    assert multipliers[0] > 0


@pytest.mark.parametrize("kind", FILTERED)
def test_the_filter_is_the_minimum_that_it_claims(kind: str) -> None:
    """Against the dense system (w I + mu C) D' = w D of each layer, for the mu that the budget asks for."""
    reference = holdfast.snapshot(NETWORKS["mlp"].build())
    model, anchor = moved("full", "mlp"), anchor_of("mlp", kind)
    moving = Moving(model, anchor, reference)
    born = {name: m.shift().matrix().detach() for name, m in moving.moves.items()}
    worths = {name: float(number + 1) for number, name in enumerate(born)}
    WAYS["project"](moving, worths).aim(moving.forecast() / 3)
    multipliers = []
    for name, delta in born.items():
        left, form = moving.shift(name).matrix().detach(), dense(anchor.curvatures[name])
        weight = worths[name] / float(delta.square().sum())
        force = (form @ left.flatten()) / weight  # D - D' = mu force
        gone = (delta - left).flatten()
        multiplier = float(gone @ force / (force @ force))
        assert_close(gone, multiplier * force, rtol=1e-6, atol=1e-9 * float(delta.abs().max()))
        multipliers.append(multiplier)
    assert multipliers == pytest.approx([multipliers[0]] * len(born), rel=1e-6)
    assert multipliers[0] > 0


@pytest.mark.parametrize("flavour", ["full", "sift"])
def test_directions_keep_more_than_layers_and_layers_more_than_one_factor(flavour: str) -> None:
    reference = holdfast.snapshot(NETWORKS["llama"].build()) if flavour == "full" else None
    anchor = anchor_of("llama", "kronecker")
    away = {}
    for how in WAYS:
        model = moved(flavour, "llama")
        before = deltas(model, "llama")
        holdfast.fit(model, anchor, half(model, anchor, reference=reference), how, reference=reference)
        away[how] = sum(float((d - before[n]).square().sum()) for n, d in deltas(model, "llama").items())
    assert away["project"] < away["layers"] < away["scale"]


@pytest.mark.parametrize("flavour", ["lora", "sift"])
def test_inside_its_budget_an_adapter_is_left_alone(flavour: str) -> None:
    anchor = anchor_of("llama", "kronecker")
    for how in WAYS:
        model = moved(flavour, "llama")
        born = state(model)
        found = holdfast.fit(model, anchor, 3 * half(model, anchor), how)
        assert not found.changed
        assert set(found.factors.values()) == {1.0}
        assert all(torch.equal(tensor, born[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("kind", ["kronecker", "identity"])
@pytest.mark.parametrize("flavour", ["lora", "sift"])
def test_what_is_measured_decides_where_there_is_data(how: str, kind: str, flavour: str) -> None:
    """Also with an anchor that forecasts nothing; the model that is left has the loss that was measured."""
    model, batches = moved(flavour, "llama"), known()
    found = holdfast.fit(model, anchor_of("llama", kind), "loss 5%", how, source=batches, progress=False)
    with model.disable_adapter():
        base = loss(model, batches)
    assert found.steered_by == "measurement"
    assert found.limit == pytest.approx(0.05 * base)
    assert found.forgetting_after == pytest.approx(loss(model, batches) - base, abs=1e-6)
    assert found.forgetting_before > found.limit
    assert 0.95 * found.limit <= found.forgetting_after <= found.limit
    assert found.forgetting_after in [rise for _, rise in found.search]


def test_where_all_moves_cost_alike_all_ways_are_one() -> None:
    found = {}
    for how in WAYS:
        model = moved("lora", "llama")
        fitted = holdfast.fit(model, anchor_of("llama", "identity"), 0.1, how, source=known(), progress=False)
        found[how] = list(fitted.factors.values())
    assert found["layers"] == pytest.approx(found["scale"], rel=1e-9)
    assert found["project"] == pytest.approx(found["scale"], rel=2e-3)  # its forecasts are within 0.1 %


def loss(model: Any, batches: list[dict[str, Tensor]]) -> float:
    """The plain mean over scored tokens."""
    total, items = 0.0, 0
    with torch.no_grad():
        for batch in batches:
            count = int((batch["labels"][:, 1:] != -100).sum())
            total += float(model(**batch).loss) * count
            items += count
    return total / items


def test_points_of_accuracy_are_a_budget() -> None:
    model, batches = moved("lora", "llama"), known()
    found = holdfast.fit(model, anchor_of("llama", "kronecker"), "accuracy 30", source=batches, progress=False)
    assert (found.unit, found.limit) == ("points", 30)
    assert found.forgetting_after <= 30 < found.forgetting_before


def known() -> list[dict[str, Tensor]]:
    """Batches of which the base model knows every label."""
    network = NETWORKS["llama"]
    batches = [batch | {"labels": likeliest(network.build(), batch)} for batch in network.batches(2)]
    return [{name: tensor.repeat(100, 1) for name, tensor in batch.items()} for batch in batches]


def likeliest(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Labels that the base model itself would give, so that it is always right."""
    with torch.no_grad():
        best = model(**{k: v for k, v in batch.items() if k != "labels"}).logits.argmax(dim=2)
    labels = torch.full_like(batch["labels"], -100)
    labels[:, 1:] = torch.where(batch["attention_mask"][:, 1:] != 0, best[:, :-1], -100)
    return labels


@pytest.mark.parametrize("flavour", ["lora", "sift"])
def test_worth_is_what_the_target_says(flavour: str) -> None:
    network, anchor = NETWORKS["llama"], anchor_of("llama", "kronecker")
    plain, told = moved(flavour, "llama"), moved(flavour, "llama")
    budget = half(plain, anchor)
    first = holdfast.fit(plain, anchor, budget)
    second = holdfast.fit(told, anchor, budget, target=network.batches(2), progress=False)
    assert first.worths != second.worths
    assert first.factors != second.factors
    assert second.forecast_after == pytest.approx(budget, rel=1e-7)
    merged = copy.deepcopy(moved(flavour, "llama")).merge_and_unload()
    measured = Anchor.estimate(merged, network.batches(2), fisher="data", targets=network.targets, progress=False)
    delta = deltas(moved(flavour, "llama"), "llama")
    wanted = {n: 0.5 * float((delta[n] * c.apply(delta[n].clone())).sum()) for n, c in measured.curvatures.items()}
    assert second.worths == pytest.approx(wanted, rel=1e-8)
    base, came = network.build(), holdfast.snapshot(moved(flavour, "llama"))
    assert all(torch.equal(w, came[n]) for n, w in holdfast.snapshot(base).items())
    assert all(torch.equal(w, holdfast.snapshot(told)[n]) for n, w in holdfast.snapshot(base).items())


REFUSED = {
    "dora": (lambda m: lora(NETWORKS["llama"], m, use_dora=True), "DoRA", "merge it"),
    "pissa": (lambda m: pissa(NETWORKS["llama"], m), "started from", "plain LoRA"),
    "saved": (lambda m: lora(NETWORKS["llama"], m, modules_to_save=["lm_head"]), "modules_to_save", "without"),
    "bias": (lambda m: lora(NETWORKS["llama"], m, bias="lora_only"), "biases", "bias='none'"),
    "lora bias": (lambda m: lora(NETWORKS["llama"], m, lora_bias=True), "biases", "bias='none'"),
    "sift's biases": (lambda m: sift(NETWORKS["llama"], m, biases=True), "biases", "bias='none'"),
    "norms": (
        lambda m: move(sift(NETWORKS["llama"], m, target_modules=["q_proj", "input_layernorm"])),
        "no price for them: .*input_layernorm", "targets",
    ),
    "bare": (lambda m: m, "no adapter", "PeftModel.from_pretrained"),
    "other layers": (
        lambda m: get_peft_model(m, LoraConfig(target_modules=["q_proj", "lm_head"])), "no curvature", "targets",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore")
def test_what_scaling_can_not_bring_back_is_refused(case: str) -> None:
    make, why, remedy = REFUSED[case]
    model = make(NETWORKS["llama"].build())
    born = state(model)
    with pytest.raises(HoldfastError, match=why) as caught:
        holdfast.fit(model, anchor_of("llama", "kronecker"), 0.01)
    assert remedy in str(caught.value)
    assert all(torch.equal(tensor, born[key]) for key, tensor in model.state_dict().items())


def test_merged_adapters_and_other_models_are_refused() -> None:
    anchor = anchor_of("llama", "kronecker")
    model = moved("lora", "llama")
    model.merge_adapter()
    with pytest.raises(HoldfastError, match="unmerge_adapter"):
        holdfast.fit(model, anchor, 0.01)
    with pytest.raises(HoldfastError, match="nothing in common"):
        holdfast.fit(moved("lora", "gpt2"), anchor, 0.01)
    other = NETWORKS["llama"].build()
    move(other.requires_grad_(True))
    with pytest.raises(HoldfastError, match="differs from the anchored weight"):
        holdfast.fit(lora(NETWORKS["llama"], other), anchor, 0.01)


def test_a_wholly_tuned_model_needs_the_anchored_reference_and_prices() -> None:
    base, anchor = NETWORKS["llama"].build(), anchor_of("llama", "kronecker")
    reference = holdfast.snapshot(base)
    tuned = move(copy.deepcopy(base).requires_grad_(True))
    with pytest.raises(HoldfastError, match=r"has no price for them: .*embed_tokens"):
        holdfast.fit(tuned, anchor, 0.01, reference=reference)
    with pytest.raises(HoldfastError, match="differs from the anchored weight"):
        holdfast.fit(tuned, anchor, 0.01, reference=holdfast.snapshot(tuned))
    layer = next(iter(anchor.curvatures))
    with pytest.raises(HoldfastError, match="not in the reference"):
        holdfast.fit(tuned, anchor, 0.01, reference={n: w for n, w in reference.items() if n != layer})
    found = holdfast.fit(copy.deepcopy(base), anchor, 0.01, reference=reference)
    assert (found.factors, found.changed, found.forecast_after) == ({}, False, 0.0)


def test_budgets_and_anchors_that_decide_nothing_are_refused() -> None:
    model, anchor = moved("lora", "llama"), anchor_of("llama", "kronecker")
    for budget in ("loss 1%", "accuracy 1"):
        with pytest.raises(HoldfastError, match="none is named"):
            holdfast.fit(model, anchor, budget)
    for budget in (-1.0, 0.0, "much"):
        with pytest.raises(HoldfastError, match="budget"):
            holdfast.fit(model, anchor, budget)
    with pytest.raises(HoldfastError, match="predicts nothing"):
        holdfast.fit(model, anchor_of("llama", "identity"), 0.01)
    with pytest.raises(HoldfastError, match="size of a move"):
        holdfast.fit(model, anchor_of("llama", "absolute"), 0.01)
    with pytest.raises(HoldfastError, match="did you mean layers"):
        holdfast.fit(model, anchor, 0.01, "layer")
    own = Anchor.estimate(model, NETWORKS["llama"].batches(2), space="adapter", progress=False)
    with pytest.raises(HoldfastError, match="does not say where it started"):
        holdfast.fit(model, own, 0.01)


def test_several_adapters_share_a_factor_and_no_filter() -> None:
    model, anchor = moved("two", "llama"), anchor_of("llama", "kronecker")
    budget = half(model, anchor)
    with pytest.raises(HoldfastError, match="one adapter at a time"):
        holdfast.fit(model, anchor, budget, "project")
    holdfast.fit(model, anchor, budget, "layers")
    assert Penalty(model, anchor).predicted_forgetting == pytest.approx(budget, rel=1e-6)


def test_layers_that_share_a_tuned_weight_have_one_factor() -> None:
    tied, tuned = (make_model(40).double() for _ in range(2))
    tuned.load_state_dict(tied.state_dict())
    batches = [{"input_ids": torch.arange(20).reshape(2, 10)}]
    anchor = Anchor.estimate(tied, batches, targets=".*(embed_tokens|lm_head|q_proj)", progress=False)
    reference = holdfast.snapshot(tied)
    tuned.requires_grad_(False).model.embed_tokens.weight.requires_grad_(True)
    move(tuned)
    budget = half(tuned, anchor, reference=reference)
    for how in ("layers", "project"):
        with pytest.raises(HoldfastError, match="share one weight"):
            holdfast.fit(tuned, anchor, budget, how, reference=reference)
    found = holdfast.fit(tuned, anchor, budget, "scale", reference=reference)
    assert found.forecast_after == pytest.approx(budget, rel=1e-7)


def test_an_interrupted_fit_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model, anchor = moved("lora", "llama"), anchor_of("llama", "kronecker")
    born, tried = state(model), []

    def stop(self: Any, limit: float) -> None:
        aim(self, limit)
        tried.append(limit)
        if len(tried) > 1:
            raise KeyboardInterrupt

    aim = WAYS["layers"].aim
    monkeypatch.setattr(WAYS["layers"], "aim", stop)
    with pytest.raises(KeyboardInterrupt):
        holdfast.fit(model, anchor, 0.05, source=known(), progress=False)
    assert len(tried) == 2
    assert all(torch.equal(tensor, born[key]) for key, tensor in model.state_dict().items())


def test_a_budget_that_so_few_data_can_not_measure_is_refused() -> None:
    model, anchor = moved("lora", "llama"), anchor_of("llama", "kronecker")
    born = state(model)
    with pytest.raises(HoldfastError, match="is below what"):
        holdfast.fit(model, anchor, 0.01, source=NETWORKS["llama"].batches(2), progress=False)
    assert all(torch.equal(tensor, born[key]) for key, tensor in model.state_dict().items())


def test_any_module_is_fitted_with_a_loss_of_its_own() -> None:
    network, model = NETWORKS["mlp"], moved("lora", "mlp")
    source = [{name: tensor.repeat(60, *[1] * (tensor.dim() - 1)) for name, tensor in batch.items()}
              for batch in network.batches(2)]  # fmt: skip
    labels = [network.build()(batch["x"]).argmax(dim=-1) for batch in source]
    source = [batch | {"labels": label} for batch, label in zip(source, labels, strict=True)]
    options = {"source": source, "forward_loss": network.forward_loss, "progress": False}
    found = holdfast.fit(model, anchor_of("mlp", "kronecker"), 0.1, **options)
    assert found.forgetting_after <= 0.1 < found.forgetting_before


def test_every_way_says_what_it_does() -> None:
    assert all(issubclass(way, Way) and way.what and way.__doc__ for way in WAYS.values())
