"""One weight used more than once: tied embeddings, two modules on one parameter, a module called twice."""

import warnings
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import slow
import torch
import torch.nn.functional as F
from adapted import lora, move
from architectures import VOCABULARY, Twice, initialised, llama
from laws import EXACT, drawn
from networks import NETWORKS, Network, logits_and_labels, matrix
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import PreTrainedModel

from holdfast.anchor import Anchor
from holdfast.errors import HoldfastError
from holdfast.penalties.quadratic import Penalty
from holdfast.plan import choosing

EMBED, HEAD = "model.embed_tokens", "lm_head"
SUMMED = {"rtol": 1e-8, "atol": 1e-12}  # float64 over fifteen layers


def tied() -> PreTrainedModel:
    """A Llama whose head is its embedding."""
    model = llama()
    model.config.tie_word_embeddings = True
    model.tie_weights()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    return model


NETWORK = replace(NETWORKS["llama"], name="tied", build=tied, targets=".*")


def trained(model: nn.Module) -> nn.Module:
    """Every weight of a layer trains; norms, which carry no penalty, stay."""
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.dim() > 1)
    return model


def anchor_of(network: Network = NETWORK, model: nn.Module | None = None, **options: Any) -> Anchor:
    """The data's own labels: nothing is drawn."""
    options = {"fisher": "data", "targets": network.targets, "progress": False} | options
    given = network.build() if model is None else model
    return Anchor.estimate(given, network.batches(2), forward_loss=network.forward_loss, **options)


@cache
def rows_of(*names: str) -> tuple[dict[str, slow.Rows], int]:
    """The slow twin's rows of both uses, each counted as a layer of its own."""
    model = tied()
    return slow.row_gradients(NETWORK, model, {name: model.get_submodule(name) for name in names})


@pytest.mark.parametrize("kind", ["kronecker", "diagonal", "eigen", "tracekron"])
def test_each_use_is_measured_in_its_own_layout(kind: str) -> None:
    anchor = anchor_of(curvature=kind)
    rows, items = rows_of(EMBED, HEAD)
    assert anchor.curvatures[EMBED].shape == (8, VOCABULARY)
    assert anchor.curvatures[HEAD].shape == (VOCABULARY, 8)
    assert anchor.weights[EMBED]["sha256"] == anchor.weights[HEAD]["sha256"]
    for seed, name in enumerate((EMBED, HEAD)):
        delta = drawn(seed, *anchor.curvatures[name].shape)
        assert_close(anchor.curvatures[name].apply(delta), slow.TWINS[kind](rows[name], items, delta), **EXACT)


@pytest.mark.parametrize("kind", ["kronecker", "diagonal"])
def test_both_uses_price_the_one_shift(kind: str) -> None:
    anchor, model = anchor_of(curvature=kind), trained(tied())
    born = {name: module.weight.detach().clone() for name, module in model.named_modules() if name in anchor.weights}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # every trained weight has a price
        penalty = Penalty(model, anchor, strength=3.0)
    move(model)
    names = list(anchor.curvatures)
    assert {EMBED, HEAD} < set(names)
    rows, items = rows_of(*names)
    wanted, slopes = torch.zeros((), dtype=torch.float64), {}
    for name in names:
        module = model.get_submodule(name)
        delta = matrix(module, module.weight.detach() - born[name])
        slopes[name] = slow.TWINS[kind](rows[name], items, delta)
        wanted += 1.5 * (delta * slopes[name]).sum()
    assert_close(penalty().detach(), wanted, **SUMMED)
    penalty().backward()
    assert_close(model.lm_head.weight.grad, 3.0 * (slopes[HEAD] + slopes[EMBED].T), **SUMMED)
    assert_close(float(wanted), 3.0 * sum(penalty.per_layer().values()), rtol=1e-9, atol=0)


def test_a_vocabulary_of_gradients_is_kept_diagonal(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = anchor_of()
    monkeypatch.setattr(choosing, "WIDEST", VOCABULARY - 1)
    narrow = anchor_of()
    gradients = {name: sorted(curvature.tensors()) for name, curvature in narrow.curvatures.items()}
    assert "gradients.diagonal" in gradients[HEAD]
    assert "gradients.full" in gradients[EMBED]
    assert "inputs.diagonal" in gradients[EMBED]
    kept, full = (anchor.curvatures[HEAD] for anchor in (narrow, whole))
    assert_close(kept.gradients.diagonal(), full.gradients.diagonal(), **EXACT)
    assert_close(kept.inputs.matrix, full.inputs.matrix, **EXACT)
    assert narrow.facts["plan"]["notes"]


def gradient_of(model: Any, row: dict[str, Tensor]) -> Tensor:
    """d loss / d the one weight of one sequence, through all its uses, by plain autograd: (vocabulary, width)."""
    logits, labels = slow.scored(NETWORK, model, row)
    return torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), model.lm_head.weight)[0]


def test_what_is_left_out_are_products_between_the_uses() -> None:
    model = tied()
    anchor = anchor_of(curvature="diagonal", per="sequence")
    uses = {name: torch.zeros(VOCABULARY, 8, dtype=torch.float64) for name in (EMBED, HEAD)}
    whole, cross = (torch.zeros(VOCABULARY, 8, dtype=torch.float64) for _ in range(2))
    for row in NETWORK.rows:
        alone = replace(NETWORK, rows=[row])
        rows, _ = slow.row_gradients(alone, model, {name: model.get_submodule(name) for name in uses})
        embed, head = (sum(own for _, own in rows[name]) for name in (EMBED, HEAD))
        uses[EMBED] += embed.T.square() / anchor.items
        uses[HEAD] += head.square() / anchor.items
        cross += 2 * embed.T * head / anchor.items
        whole += gradient_of(model, row).square() / anchor.items
    assert_close(anchor.curvatures[EMBED].fisher.T, uses[EMBED], **EXACT)
    assert_close(anchor.curvatures[HEAD].fisher, uses[HEAD], **EXACT)
    assert_close(whole, uses[EMBED] + uses[HEAD] + cross, **EXACT)
    assert float(cross.abs().max()) > 0.01 * float(whole.abs().max())  # it is there to be left out


def test_joint_samples_keep_the_products_between_the_uses() -> None:
    anchor, model = anchor_of(curvature="samples-joint", targets=[EMBED, HEAD]), trained(tied())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name == f"{EMBED}.weight")
    gradients = [gradient_of(model, row) for row in NETWORK.rows]
    penalty = Penalty(model, anchor, strength=2.0)
    before = model.lm_head.weight.detach().clone()
    move(model)
    delta = model.lm_head.weight.detach() - before
    wanted = sum((own * delta).sum() ** 2 for own in gradients) / anchor.items
    assert_close(penalty().detach(), wanted, **SUMMED)


@pytest.mark.parametrize(("targeted", "missing"), [(EMBED, HEAD), (HEAD, EMBED)])
def test_one_use_alone_is_refused_while_the_weight_trains(targeted: str, missing: str) -> None:
    anchor, model = anchor_of(targets=[targeted]), trained(tied())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name == f"{EMBED}.weight")
    with pytest.raises(HoldfastError, match=rf"{missing}\n.*\n.*\n.*share one weight"):
        Penalty(model, anchor)
    model.lm_head.weight.requires_grad_(False)
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(True)
    Penalty(model, anchor_of(targets=["layers.0.mlp.up_proj"]))


def test_an_adapter_on_one_use_is_priced_at_that_use() -> None:
    anchor = anchor_of()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's remark on tied weights
        model = lora(NETWORK, tied(), target_modules=["lm_head"])
    penalty = Penalty(model, anchor, strength=2.0)
    assert list(penalty.per_layer()) == [HEAD]
    move(model)
    layer = model.base_model.model.lm_head
    delta = layer.get_delta_weight("default").detach()
    rows, items = rows_of(HEAD)
    wanted = (delta * slow.kronecker(rows[HEAD], items, delta)).sum()
    assert_close(penalty().detach(), wanted, **SUMMED)


class Mirrored(nn.Module):
    """Two linear modules on one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


def test_two_modules_on_one_parameter_are_two_uses() -> None:
    network = replace(NETWORKS["twice"], build=lambda: initialised(Mirrored()))
    model = trained(network.build())
    anchor = anchor_of(network, model)
    penalty = Penalty(model, anchor, strength=2.0)
    before = model.first.weight.detach().clone()
    move(model)
    delta = model.first.weight.detach() - before
    uses = [anchor.curvatures[name].apply(delta.clone()) for name in ("first", "second")]
    per_layer = penalty.per_layer()
    assert_close(2 * (per_layer["first"] + per_layer["second"]), float((delta * sum(uses)).sum()), rtol=1e-9, atol=0)


def test_a_module_called_twice_is_one_use_of_both_calls() -> None:
    network, model = NETWORKS["twice"], initialised(Twice())
    per_token, per_sequence = (
        anchor_of(network, curvature="diagonal", per=per).curvatures["shared"].fisher for per in ("token", "sequence")
    )
    rows, items = slow.row_gradients(network, model, {"shared": model.shared})
    assert_close(per_token, sum(own.square() for _, own in rows["shared"]) / items, **EXACT)
    whole = torch.zeros(4, 4, dtype=torch.float64)
    for row in network.rows:
        logits, labels = logits_and_labels(model, network.collate([row]))
        loss = F.cross_entropy(logits, labels, reduction="sum")
        whole += torch.autograd.grad(loss, model.shared.weight)[0].square() / items
    assert_close(per_sequence, whole, **EXACT)
