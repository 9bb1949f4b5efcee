"""Where no shift can be read, the reason is named."""

import copy
from typing import Any

import pytest
from adapted import adapt, lora, move
from networks import NETWORKS
from peft import AdaLoraConfig, IA3Config, LoraConfig, VeraConfig, get_peft_model

from holdfast.errors import HoldfastError
from holdfast.shifts.read import shifts, snapshot


def test_merged_adapters_are_refused() -> None:
    model = move(adapt("lora", NETWORKS["mlp"]))
    model.merge_adapter()
    with pytest.raises(HoldfastError, match="unmerge_adapter"):
        shifts(model)
    model.unmerge_adapter()
    shifts(model)


@pytest.mark.parametrize(
    "config",
    [
        VeraConfig(target_modules=["up_proj"], r=2),
        AdaLoraConfig(target_modules=["up_proj"], init_r=2, target_r=1, total_step=10),
    ],
    ids=lambda config: type(config).__name__,
)
def test_tuners_whose_shift_is_not_known_are_refused(config: Any) -> None:
    model = get_peft_model(NETWORKS["llama"].build(), config)
    with pytest.raises(HoldfastError, match="is not read yet"):
        shifts(model)


def test_scales_of_a_bias_are_refused() -> None:
    model = get_peft_model(NETWORKS["mlp"].build(), IA3Config(target_modules=["0"], feedforward_modules=[]))
    with pytest.raises(HoldfastError, match="which scale its bias too"):
        shifts(model)
    model = get_peft_model(NETWORKS["mlp"].build(), IA3Config(target_modules=["0"], feedforward_modules=["0"]))
    assert list(shifts(model)) == ["0"]


def test_scales_of_a_convolution_are_refused() -> None:
    model = get_peft_model(NETWORKS["conv2d"].build(), IA3Config(target_modules=["first"], feedforward_modules=[]))
    with pytest.raises(HoldfastError, match="scales of a layer that is not linear"):
        shifts(model)


def test_variants_of_lora_whose_shift_is_not_known_are_refused() -> None:
    network = NETWORKS["llama"]
    settings = LoraConfig(target_modules=["up_proj"], alora_invocation_tokens=[3, 4], task_type="CAUSAL_LM")
    model = get_peft_model(network.build(), settings)
    with pytest.raises(HoldfastError, match="is not read yet"):
        shifts(model)


def test_convolutions_that_peft_adapts_differently_are_refused() -> None:
    network = NETWORKS["dilated"]
    for layer in ("first", "second"):
        with pytest.raises(HoldfastError, match="dilation or its padding mode"):
            shifts(lora(network, network.build(), target_modules=[layer]))


def test_several_active_adapters_with_a_magnitude_are_refused() -> None:
    network = NETWORKS["mlp"]
    model = lora(network, network.build(), use_dora=True)
    model.add_adapter("second", LoraConfig(r=1, target_modules=["0", "2", "4"]))
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(HoldfastError, match="one adapter at a time"):
        shifts(model)


def test_full_fine_tuning_needs_a_reference_and_something_to_train() -> None:
    network = NETWORKS["mlp"]
    model = network.build()
    with pytest.raises(HoldfastError, match=r"holdfast\.snapshot"):
        shifts(model)
    reference = snapshot(model)
    with pytest.raises(HoldfastError, match="no layer of the model is trainable"):
        shifts(copy.deepcopy(model).requires_grad_(False), reference)
    with pytest.raises(HoldfastError, match="'2' is not in the reference"):
        shifts(model, {layer: weight for layer, weight in reference.items() if layer != "2"})
