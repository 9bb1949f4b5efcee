"""Every way of making a model trainable, on every tiny network: what the shift says and what it reaches."""

import copy
import warnings
from typing import Any

import pytest
import torch
from adapted import ALPHA, CASES, RANK, adapt, effective_shifts, move
from laws import EXACT, drawn
from networks import NETWORKS, Network, matrix
from peft import PeftModel
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import GPT2LMHeadModel

import holdfast
from holdfast import catalogue
from holdfast.shifts.low_rank import LowRank
from holdfast.shifts.read import shifts, snapshot
from holdfast.shifts.shift import Shift
from holdfast.targets import select

FLOAT32: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}  # PEFT computes PiSSA's start in float32
each_case = pytest.mark.parametrize(("flavour", "name"), CASES)


def near(flavour: str) -> dict[str, Any]:
    """The precision in which a flavour is set up."""
    return FLOAT32 if flavour == "pissa" else EXACT


def shifts_of(model: nn.Module, network: Network) -> dict[str, Shift]:
    """Read against the weights of the network as built; adapters that leave those alone need no reference."""
    return shifts(model, snapshot(network.build()))


@each_case
def test_zero_at_birth(flavour: str, name: str) -> None:
    network = NETWORKS[name]
    for shift in shifts_of(adapt(flavour, network), network).values():
        assert_close(shift.matrix(), torch.zeros(shift.shape, dtype=torch.float64), **near(flavour))


@each_case
def test_anchor_plus_shift_is_the_effective_weight(flavour: str, name: str) -> None:
    network = NETWORKS[name]
    model = move(adapt(flavour, network))
    found = {layer: shift.matrix().detach() for layer, shift in shifts_of(model, network).items()}
    assert_close(found, effective_shifts(model, network), **near(flavour))
    for shift in found.values():
        assert float(shift.abs().max()) > 1e-3  # it did move


@each_case
def test_the_function_is_the_anchor_moved_by_the_shift(flavour: str, name: str) -> None:
    network = NETWORKS[name]
    model, plain = move(adapt(flavour, network)).eval(), network.build()
    with torch.no_grad():
        for layer, shift in shifts_of(model, network).items():
            module = plain.get_submodule(layer)
            matrix(module, module.weight).add_(shift.matrix().reshape(matrix(module, module.weight).shape))
        batch = network.batches(5)[0]
        assert_close(outputs(model, network, batch), outputs(plain, network, batch), **near(flavour))


def outputs(model: nn.Module, network: Network, batch: dict[str, Tensor]) -> Tensor:
    """Logits at the positions that count."""
    if network.forward_loss is not None:
        return network.forward_loss(model, batch)[0]
    logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    return logits if logits.dim() == 2 else logits[batch["attention_mask"] != 0]


@each_case
def test_save_and_load(flavour: str, name: str, tmp_path: Any) -> None:
    network = NETWORKS[name]
    model = move(adapt(flavour, network))
    wanted = {layer: shift.matrix().detach() for layer, shift in shifts_of(model, network).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # embeddings beside a tied head; no configuration to look up
        again = reloaded(model, network, tmp_path)
    found = {layer: shift.matrix().detach() for layer, shift in shifts_of(again, network).items()}
    assert_close(found, wanted, **near(flavour))


def reloaded(model: nn.Module, network: Network, folder: Any) -> nn.Module:
    """The model written to files and read into a fresh base model."""
    if not isinstance(model, PeftModel):
        torch.save(model.state_dict(), folder / "weights.pt")
        again = network.build().requires_grad_(False)
        again.load_state_dict(torch.load(folder / "weights.pt"))
        for layer, module in select(again, network.targets).items():
            module.weight.requires_grad_(model.get_submodule(layer).weight.requires_grad)
        return again
    model.save_pretrained(folder)
    base = network.build()
    changed = getattr(model.peft_config["default"], "init_lora_weights", None) == "pissa"
    again = PeftModel.from_pretrained(base.float() if changed else base, folder).double()
    for extra in [adapter for adapter in model.peft_config if adapter != "default"]:
        again.load_adapter(folder / extra, adapter_name=extra)
    again.base_model.set_adapter(list(model.peft_config))
    return again


@each_case
def test_gradients_reach_exactly_what_is_trained(flavour: str, name: str) -> None:
    network = NETWORKS[name]
    model = move(adapt(flavour, network))
    total = sum((shift.matrix() * drawn(1, *shift.shape)).sum() for shift in shifts_of(model, network).values())
    total.backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


class Form:
    """Any symmetric form, dense."""

    def __init__(self, out: int, inn: int) -> None:
        self.shape = (out, inn)
        root = drawn(2, out * inn, out * inn)
        self.form = root @ root.T

    def apply(self, delta: Tensor) -> Tensor:
        """C D."""
        return (self.form @ delta.flatten()).reshape(delta.shape)

    def thin(self, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        """(C D) down^T and up^T (C D)."""
        priced = self.apply(up @ down)
        return priced @ down.T, up.T @ priced

    def sparse(self, values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """C D at the entries of D."""
        delta = torch.zeros(self.shape, dtype=values.dtype).index_put((rows, columns), values)
        return self.apply(delta)[rows, columns]


def test_products_are_half_the_gradients_of_the_form() -> None:
    structures = set()
    for flavour, name in CASES:
        network = NETWORKS[name]
        if name not in ("mlp", "embedding"):
            continue
        for shift in shifts_of(move(adapt(flavour, network)), network).values():
            structures.add(shift.structure)
            form = Form(*shift.shape)
            delta = shift.matrix()
            assert delta.shape == shift.shape
            whole = (delta * form.apply(delta)).sum()
            for part, product in zip(shift.parts, shift.products(form), strict=True):
                assert_close((part * product).sum(), whole, **EXACT)
                if part.requires_grad:  # a half of LoRA may be frozen
                    (gradient,) = torch.autograd.grad(whole, part, retain_graph=True)
                    assert_close(2 * product, gradient, **EXACT)
    assert structures == set(catalogue.names("shift"))  # every structure was met


@pytest.mark.parametrize("name", ["mlp", "llama", "gpt2", "conv2d", "embedding"])
def test_low_rank_adapters_are_never_materialised(name: str) -> None:
    network = NETWORKS[name]
    for flavour in ("lora", "rslora", "patterns", "two"):
        for shift in shifts(adapt(flavour, network)).values():
            assert isinstance(shift, LowRank)


def test_ranks_and_scalings_are_the_configured_ones() -> None:
    network = NETWORKS["mlp"]
    found: dict[str, Any] = shifts(adapt("patterns", network))
    assert [(shift.up.shape[1], shift.scale) for shift in found.values()] == [(3, 5 / 3), (2, 3 / 2), (2, 3 / 2)]
    stabilised: Any = shifts(adapt("rslora", network))["0"]
    assert_close(stabilised.scale, ALPHA / RANK**0.5)


def test_a_layer_whose_adapters_are_all_inactive_has_not_moved() -> None:
    network = NETWORKS["mlp"]
    model = move(adapt("two", network))
    model.set_adapter("extra")  # it stands on one layer only
    found = {layer: shift.matrix().detach() for layer, shift in shifts(model).items()}
    assert_close(found, effective_shifts(model, network), **EXACT)
    assert_close(found["2"], torch.zeros_like(found["2"]), rtol=0, atol=0)


def test_only_active_adapters_count() -> None:
    network = NETWORKS["llama"]
    model = move(adapt("two", network))
    model.set_adapter("default")
    found = {layer: shift.matrix().detach() for layer, shift in shifts(model).items()}
    assert_close(found, effective_shifts(model, network), **EXACT)


def test_disabled_adapters_have_not_moved_the_model() -> None:
    network = NETWORKS["mlp"]
    model = move(adapt("lora", network))
    with model.disable_adapter():
        for shift in shifts(model).values():
            assert_close(shift.matrix(), torch.zeros(shift.shape, dtype=torch.float64), rtol=0, atol=0)


def test_the_package_is_the_verb() -> None:
    model = move(adapt("lora", NETWORKS["mlp"]))
    assert_close(holdfast.shifts(model)["0"].matrix(), shifts(model)["0"].matrix(), rtol=0, atol=0)


def test_a_tied_weight_has_moved_in_both_its_roles() -> None:
    network = NETWORKS["gpt2"]
    config = copy.deepcopy(network.build().config)
    config.tie_word_embeddings = True
    model = GPT2LMHeadModel(config).double()
    reference = snapshot(model)
    moved = shifts(move(model), reference)
    assert_close(moved["transformer.wte"].matrix(), moved["lm_head"].matrix().T)
